// The data, the state (which the link keeps), and small makers of elements, numbers and files.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

const FACETS = { model: "Model", metric: "Metric", prune: "Pruner", replace: "Replacement", recipe: "Healing", unit: "What goes", evaluation: "Evaluation" };
const losses = data.lines.flatMap((line) => data.measures.filter(({ kind, name }) => kind === "loss" && line.y[name]).flatMap(({ name }) => line.y[name][0].filter((value) => value > 0)));
const steep = Math.max(...losses) > 6 * Math.min(...losses); // what matters would be flat on a linear scale
const DEFAULTS = {
  x: "fraction", y: "raw", panels: "auto", bands: "1", marks: "1", log: steep ? "1" : "", measures: "", off: "", fall: "", strip: "", map: "",
  scale: "rows", agree: "", by: "overlap", gain: "", cost: "", pace: "tokens", logx: "", theme: "auto", run: "",
  "find-falls": "", "find-runs": "", "sort-falls": "", "sort-runs": "",
};
let state = {};
let hidden = {};

function readState() {
  const words = new URLSearchParams(location.hash.slice(1));
  state = { ...DEFAULTS };
  for (const key of Object.keys(DEFAULTS)) if (words.has(key)) state[key] = words.get(key);
  hidden = {};
  for (const facet of Object.keys(FACETS)) hidden[facet] = new Set(words.getAll("no-" + facet));
}

function stateWords() {
  const words = new URLSearchParams();
  for (const [key, value] of Object.entries(state)) if (value !== DEFAULTS[key]) words.set(key, value);
  for (const [facet, values] of Object.entries(hidden)) for (const value of values) words.append("no-" + facet, value);
  return words.toString();
}

function set(changes, leave) {
  const before = state.run;
  Object.assign(state, changes);
  const words = stateWords();
  history[leave ? "pushState" : "replaceState"](null, "", words ? "#" + words : location.pathname + location.search);
  turn(before);
}

const listed = (text) => (text ? text.split("~") : []);
const say = (text) => { $("said").textContent = text; };

// Plotly reads some tags and formulas in texts; what comes from records is text.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/\$/g, "&#36;");
const named = (facet, value) => value || { recipe: "not healed", metric: "no metric", evaluation: "same for all", unit: "layer" }[facet] || "none";

function short(value) {
  if (value == null || Number.isNaN(value)) return "";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (size >= 1e9) return (value / 1e9).toPrecision(3) + " G";
  if (size >= 1e6) return (value / 1e6).toPrecision(3) + " M";
  if (Number.isInteger(value)) return String(value);
  return size >= 1000 ? value.toFixed(0) : size >= 100 ? value.toFixed(1) : size >= 0.001 ? value.toFixed(3) : value.toExponential(1);
}
const percent = (value) => (value == null ? "" : (100 * value).toFixed(1) + " %");
const within = (value, error) => short(value) + (error ? " ± " + short(error) : "");

function cell(value) {
  if (value == null || (typeof value === "number" && !Number.isFinite(value))) return "";
  if (typeof value === "number") return String(value);
  let text = String(value);
  if (/^[\s]*[=+\-@]|^[\t\r\n]/.test(text)) text = "'" + text; // a spreadsheet would run it
  return /[",\r\n]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
}

function save(name, text, type) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
const saveCsv = (name, head, rows) => save(name + ".csv", "\ufeff" + [head, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n", "text/csv");

// A table whose heads sort it. Rows are arrays of values, the first says what a row is of; a column is {head, number, show}.
function sortable(id, caption, columns, rows, most, key) {
  const [by, way] = state[key].split(".");
  const at = by === "" ? -1 : Number(by);
  const sorted = at < 0 ? rows : [...rows].sort((a, b) => compare(a[at], b[at], way === "down" ? -1 : 1));
  const head = columns.map((column, i) => {
    const ordered = i === at ? (way === "down" ? "descending" : "ascending") : "none";
    const turn = () => { set({ [key]: i + (i === at && way !== "down" ? ".down" : ".up") }); document.querySelectorAll(`#${id} thead button`)[i].focus(); };
    const arrow = i === at ? [el("span", { "aria-hidden": "true" }, way === "down" ? " ▾" : " ▴")] : [];
    return el("th", { scope: "col", "aria-sort": ordered, class: column.number && "number" }, el("button", { type: "button", onclick: turn }, column.head, ...arrow));
  });
  const limit = most[id] || 200;
  const body = sorted.slice(0, limit).map((row) => el("tr", {}, ...columns.map((column, i) => {
    const shown = column.show ? column.show(row[i], row) : short(row[i]);
    return el(i ? "td" : "th", { scope: !i && "row", class: column.number ? "number" : column.wide && "wide" }, shown);
  })));
  const more = sorted.length > limit
    ? el("p", {}, `${limit} of ${sorted.length} rows. `, el("button", { type: "button", onclick: () => { most[id] = limit * 5; refresh(); } }, "Show more")) : null;
  $(id).replaceChildren(scrolled(caption, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body)), ...(more ? [more] : []));
  $(id + "-count").textContent = rows.length === 1 ? "1 row" : `${rows.length} rows`;
}

// A table in a box that scrolls, also by keyboard. Its caption is for those who do not see where it stands.
const scrolled = (caption, ...parts) => el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, el("table", {}, el("caption", { class: "unseen" }, caption), ...parts));

// What is missing comes last either way.
function compare(a, b, way = 1) {
  const [first, second] = [a, b].map((value) => (Array.isArray(value) ? value[0] : value));
  const [no, none] = [first == null || first === "", second == null || second === ""];
  if (no || none) return no - none;
  const both = typeof first === "number" && typeof second === "number";
  return way * (both ? first - second : String(first).localeCompare(String(second), undefined, { numeric: true }));
}
