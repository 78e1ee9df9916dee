// Every figure: drawn when it comes into view, saved as SVG, PNG and CSV, and readable as a table.
// A figure is {name, build}; build gives {traces, layout, head, rows, note, click} or only {note} where there is nothing.
const FIGURES = {};
const PLOTLY = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["sendChartToCloud", "sendDataToCloud", "toImage", "lasso2d", "select2d"], plotlyServerURL: "", showEditInChartStudio: false };

function ink() {
  return theme() === "dark"
    ? { paper: "#14181d", text: "#e6e9ed", quiet: "#9aa5b1", grid: "#2c343d", empty: "#1d232a", full: "#79b8ff" }
    : { paper: "#ffffff", text: "#1b1f24", quiet: "#57606a", grid: "#e3e7eb", empty: "#f3f5f7", full: "#0059b3" };
}
function baseLayout(more) {
  const { paper, text } = ink();
  return {
    paper_bgcolor: paper, plot_bgcolor: paper, font: { color: text, size: 12.5, family: "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif" },
    margin: { l: 62, r: 16, t: 28, b: 48 }, showlegend: false, hovermode: "closest", dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", /* a finger scrolls the page */ hoverlabel: { align: "left", font: { size: 12 } }, ...more,
  };
}
// Margins that follow the labels are worked out anew for each axis, and then all is drawn again: only where labels are names.
const axis = ({ title, ...more }) => ({ gridcolor: ink().grid, linecolor: ink().quiet, zeroline: false, ticks: "outside", tickcolor: ink().quiet, ticklabeloverflow: "allow", title: { standoff: 6, font: { size: 12.5 }, ...title }, ...more });
// Of bytes the ticks say GB, of other large numbers G.
const tickformat = (name) => (name === "fraction" ? { tickformat: ".0%" } : /bytes/.test(name) ? { tickformat: ".3~s", ticksuffix: "B" } : name.includes("/") ? { tickformat: ".3~s" } : {});

function prepare(node) {
  const name = node.dataset.figure, figure = FIGURES[name];
  const save = (label, run) => el("button", { type: "button", "data-save": label, onclick: run }, label);
  const image = (format) => () => Plotly.downloadImage(figure.plot, { format, filename: "depthcut-" + name, width: Math.max(figure.plot.clientWidth, 640), height: figure.plot.clientHeight || 420, scale: format === "png" ? 2 : 1 });
  Object.assign(figure, { node, plot: el("div", { class: "plot", "aria-hidden": "true" }), note: el("p", { class: "note" }), table: el("details", {}, el("summary", {}, "Numbers of this figure")), dirty: true });
  figure.table.addEventListener("toggle", () => fillTable(figure));
  figure.bar = el("div", { class: "bar" }, el("span", { class: "quiet" }, "Save:"), save("SVG", image("svg")), save("PNG", image("png")), save("CSV", () => saveCsv("depthcut-" + name, figure.built.head, figure.built.rows)));
  node.setAttribute("aria-label", figure.says);
  node.append(figure.plot, figure.note, figure.bar, figure.table);
}

// Plotly takes longer to start than the rest of the page: it is not started before that is there to be read.
function startPlotly() {
  if (typeof Plotly !== "undefined") return;
  const script = document.createElement("script");
  script.textContent = $("plotly").textContent;
  document.head.append(script);
}

function draw(figure, whole) {
  if (!figure.dirty || typeof Plotly === "undefined") return;
  const built = (figure.built = figure.build(!whole && !figure.built));
  figure.dirty = Boolean(built.partial);
  figure.node.toggleAttribute("data-drawn", !figure.dirty);
  figure.note.textContent = built.note || "";
  const empty = !built.traces;
  for (const part of [figure.plot, figure.bar, figure.table]) part.hidden = empty;
  if (empty) return;
  figure.plot.style.height = built.layout.height + "px";
  plot(figure.plot, built.traces, built.layout);
  if (built.click) figure.plot.on("plotly_click", (event) => built.click(event.points[0]));
  fillTable(figure);
}

// What plotly draws is hidden from screen readers, which get the table; so its buttons are no stops of the Tab key.
function plot(node, traces, layout) {
  for (const event of node.on ? ["plotly_click", "plotly_afterplot"] : []) node.removeAllListeners(event);
  const width = document.documentElement.classList.contains("printing") ? { width: node.clientWidth } : {};
  Plotly.react(node, traces, baseLayout({ ...layout, ...width }), PLOTLY);
  const skip = () => node.querySelectorAll(".modebar-btn").forEach((button) => { button.tabIndex = -1; });
  node.on("plotly_afterplot", skip);
  skip();
}

const painted = (next) => requestAnimationFrame(() => setTimeout(next));

function fillTable(figure) {
  if (!figure.table.open || !figure.built || !figure.built.rows) return;
  const { head, rows } = figure.built;
  const line = (row) => el("tr", {}, ...row.map((value, i) => el(i ? "td" : "th", { scope: !i && "row", class: typeof value === "number" && "number" }, short(value))));
  const body = scrolled("Numbers of the figure: " + figure.says, el("thead", {}, el("tr", {}, ...head.map((word) => el("th", { scope: "col" }, word)))), el("tbody", {}, ...rows.slice(0, 500).map(line)));
  const rest = rows.length > 500 ? [el("p", { class: "quiet" }, `The first 500 of ${rows.length} rows; the CSV has all.`)] : [];
  figure.table.replaceChildren(figure.table.firstElementChild, body, ...rest);
}

const inView = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const figure = FIGURES[entry.target.dataset.figure];
    figure.near = entry.isIntersecting;
  }
  drawNear();
}, { rootMargin: "300px" });

// The figures in view one after the other, so that the first is there to be seen before the next is drawn.
function redraw() {
  for (const figure of Object.values(FIGURES)) spoil(figure);
  drawNear();
}
function spoil(figure) {
  figure.dirty = true;
  figure.node.removeAttribute("data-drawn");
}
function drawNear() {
  const figure = Object.values(FIGURES).find((each) => each.near && each.dirty && typeof Plotly !== "undefined");
  if (!figure) return;
  draw(figure);
  painted(drawNear);
}

// Panels side by side: where the axes of the one at place i lie, and what they are called.
function grid(count, most, rowHeight, gap = 0.075) {
  const width = $("main").clientWidth || 900;
  const columns = Math.max(1, Math.min(count, most, Math.floor(width / 330)));
  const rows = Math.ceil(count / columns), height = rows * rowHeight;
  const [across, down] = [columns > 1 ? gap : 0, rows > 1 ? 78 / height : 0];
  const place = (i) => {
    const [column, row] = [i % columns, Math.floor(i / columns)];
    const wide = (1 - across * (columns - 1)) / columns, high = (1 - down * (rows - 1)) / rows;
    const left = column * (wide + across), top = 1 - row * (high + down);
    const n = i ? String(i + 1) : "";
    return { n, x: "x" + n, y: "y" + n, xDomain: [left, left + wide], yDomain: [Math.max(0, top - high), top], left: column === 0, bottom: i + columns >= count };
  };
  return { place, height: height + 60, columns };
}
const heading = (text, place) => ({ text: "<b>" + plain(text) + "</b>", x: place.xDomain[0], y: place.yDomain[1], xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 12.5 } });
