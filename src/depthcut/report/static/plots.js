// Plotly: its start, its options, and what all plots have in common.
import { byId } from "./dom.js";
import { figureColors } from "./theme.js";

const OPTIONS = {
  displaylogo: false,
  responsive: true,
  modeBarButtonsToRemove: ["sendChartToCloud", "sendDataToCloud", "toImage", "lasso2d", "select2d"],
  plotlyServerURL: "",
  showEditInChartStudio: false,
};

const NARROW = 600; // pixels

export const plotlyStarted = () => typeof Plotly !== "undefined";

/** Run the inlined plotly. It takes longer to start than the rest of the page, which is shown first. */
export function startPlotly() {
  if (plotlyStarted()) return;
  const script = document.createElement("script");
  script.textContent = byId("plotly").textContent;
  document.head.append(script);
}

export const figureWidth = () => byId("main").clientWidth;

export const isNarrow = () => figureWidth() < NARROW;

function baseLayout(more) {
  const { paper, text } = figureColors();
  const family = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif";
  return {
    paper_bgcolor: paper,
    plot_bgcolor: paper,
    font: { color: text, size: 12.5, family },
    margin: { l: 62, r: 16, t: 28, b: 48 },
    showlegend: false,
    hovermode: "closest",
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
    hoverlabel: { align: "left", font: { size: 12 } },
    ...more,
  };
}

/** Return an axis. `automargin` only where labels are names: plotly draws all again after it measures them. */
export const plotAxis = ({ title, ...more }) => ({
  gridcolor: figureColors().grid,
  linecolor: figureColors().quiet,
  zeroline: false,
  ticks: "outside",
  tickcolor: figureColors().quiet,
  ticklabeloverflow: "allow",
  title: { standoff: 6, font: { size: 12.5 }, ...title },
  ...more,
});

/** Draw a plot. It is hidden from screen readers, which get the table; so the Tab key passes its buttons over. */
export function drawPlot(node, traces, layout) {
  for (const event of node.on ? ["plotly_click", "plotly_afterplot"] : []) node.removeAllListeners(event);
  const width = document.documentElement.classList.contains("printing") ? { width: node.clientWidth } : {};
  Plotly.react(node, traces, baseLayout({ ...layout, ...width }), OPTIONS);
  const skipButtons = () => {
    for (const button of node.querySelectorAll(".modebar-btn")) button.tabIndex = -1;
  };
  node.on("plotly_afterplot", skipButtons);
  skipButtons();
}

export function savePicture(node, name, format) {
  const size = { width: Math.max(node.clientWidth, 640), height: node.clientHeight || 420 };
  return Plotly.downloadImage(node, { format, filename: name, ...size, scale: format === "png" ? 2 : 1 });
}
