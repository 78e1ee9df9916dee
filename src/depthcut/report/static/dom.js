// Elements of the page.

export const byId = (id) => document.getElementById(id);

/** Make an element. An attribute that starts with "on" is a listener; false, null and undefined set nothing. */
export function element(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

export const announce = (text) => {
  byId("said").textContent = text;
};

export const copyText = (text, failure) =>
  navigator.clipboard.writeText(text).then(
    () => announce("Copied."),
    () => announce(failure),
  );

export function saveFile(name, text, type) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** Rebuild the controls in a box, and give the focus back to the one that had it. */
export function keepFocus(box, rebuild) {
  const focused = document.activeElement;
  const value = box.contains(focused) ? focused.value : null;
  const facet = focused.dataset?.facet;
  rebuild();
  if (value == null) return;
  const controls = [...box.querySelectorAll("input, button")];
  controls.find((each) => each.value === value && each.dataset.facet === facet)?.focus();
}
