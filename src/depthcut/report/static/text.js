// Lists and texts.

export const unique = (values) => [...new Set(values)];

// The link keeps a list as one value.
export const joinList = (values) => [...values].join("~");
export const splitList = (text) => (text ? text.split("~") : []);

/** Escape what Plotly would read as a tag or a formula; text from records is only text. */
export const escapeForPlotly = (text) =>
  String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/\$/g, "&#36;");

export const clipText = (text, length) => (text.length > length ? text.slice(0, length - 1) + "…" : text);

export const searchWords = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);

/** Return whether each word occurs in one of the texts, whatever the case; values that are not text are ignored. */
export function matchesWords(words, values) {
  const texts = values.filter((value) => typeof value === "string").map((value) => value.toLowerCase());
  return words.every((word) => texts.some((text) => text.includes(word)));
}
