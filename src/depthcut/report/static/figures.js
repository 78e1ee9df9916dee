// Figures: drawn when they come into view, saved as SVG, PNG and CSV, and readable as tables.
//
// A figure is {name, description, build}. Its build() returns {traces, layout, head, rows, note, click}, or only {note}
// if there is nothing to draw. build(true) may return the first part only, marked `partial`, to show something early.
import { element } from "./dom.js";
import { formatNumber } from "./numbers.js";
import { drawPlot, plotlyStarted, savePicture } from "./plots.js";
import { saveCsv, scrollingTable } from "./tables.js";

const TABLE_ROWS = 500;
const views = new Map();

/** Show a figure in its element of the page. */
export function addFigure(figure) {
  const node = document.querySelector(`figure[data-figure=${figure.name}]`);
  const view = {
    figure,
    node,
    plot: element("div", { class: "plot", "aria-hidden": "true" }),
    note: element("p", { class: "note" }),
    table: element("details", {}, element("summary", {}, "Numbers of this figure")),
    outdated: true,
    inView: false,
    built: null,
  };
  view.bar = saveButtons(view);
  view.table.addEventListener("toggle", () => fillTable(view));
  node.setAttribute("aria-label", figure.description);
  node.append(view.plot, view.note, view.bar, view.table);
  views.set(figure.name, view);
}

function saveButtons(view) {
  const name = "depthcut-" + view.figure.name;
  const button = (label, save) => element("button", { type: "button", "data-save": label, onclick: save }, label);
  return element(
    "div",
    { class: "bar" },
    element("span", { class: "quiet" }, "Save:"),
    button("SVG", () => savePicture(view.plot, name, "svg")),
    button("PNG", () => savePicture(view.plot, name, "png")),
    button("CSV", () => saveCsv(name, view.built.head, view.built.rows)),
  );
}

/** Draw figures when they come into view. */
export function watchFigures() {
  const observer = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) views.get(entry.target.dataset.figure).inView = entry.isIntersecting;
      drawFiguresInView();
    },
    { rootMargin: "300px" },
  );
  for (const { node } of views.values()) observer.observe(node);
}

export function markOutdated(name) {
  const view = views.get(name);
  view.outdated = true;
  view.node.removeAttribute("data-drawn");
}

export function redrawFigures() {
  for (const name of views.keys()) markOutdated(name);
  drawFiguresInView();
}

/** Call `next` after the browser has painted. */
export const afterPaint = (next) => requestAnimationFrame(() => setTimeout(next));

/** Draw the figures in view one after the other, each shown before the next is drawn. */
export function drawFiguresInView() {
  const view = [...views.values()].find(({ inView, outdated }) => inView && outdated);
  if (!view || !plotlyStarted()) return;
  drawFigure(view, view.built !== null);
  afterPaint(drawFiguresInView);
}

/** Draw all figures at once, for a print. */
export function drawAllFigures() {
  for (const view of views.values()) drawFigure(view, true);
}

function drawFigure(view, whole) {
  if (!view.outdated || !plotlyStarted()) return;
  const built = view.figure.build(!whole);
  view.built = built;
  view.outdated = Boolean(built.partial);
  view.node.toggleAttribute("data-drawn", !view.outdated);
  view.note.textContent = built.note || "";
  const empty = !built.traces;
  for (const part of [view.plot, view.bar, view.table]) part.hidden = empty;
  if (empty) return;
  view.plot.style.height = built.layout.height + "px";
  drawPlot(view.plot, built.traces, built.layout);
  if (built.click) view.plot.on("plotly_click", (event) => built.click(event.points[0]));
  fillTable(view);
}

function fillTable({ figure, table, built }) {
  if (!table.open || !built?.rows) return;
  const cell = (value, i) => {
    const attributes = { scope: !i && "row", class: typeof value === "number" && "number" };
    return element(i ? "td" : "th", attributes, formatNumber(value));
  };
  const head = built.head.map((word) => element("th", { scope: "col" }, word));
  const rows = built.rows.slice(0, TABLE_ROWS).map((row) => element("tr", {}, ...row.map(cell)));
  const parts = [element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows)];
  const note = `The first ${TABLE_ROWS} of ${built.rows.length} rows; the CSV has all.`;
  const rest = built.rows.length > TABLE_ROWS ? [element("p", { class: "quiet" }, note)] : [];
  table.replaceChildren(
    table.firstElementChild,
    scrollingTable("Numbers of the figure: " + figure.description, ...parts),
    ...rest,
  );
}
