// Plotly: its start, its options, and what all plots have in common.
import { byId } from "./dom.js";
import { clipText } from "./text.js";
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

/** Shorten a name to fit next to a figure. */
export const clipToFigure = (text) => clipText(text, isNarrow() ? 26 : 58);

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

/** Return an axis. Pass `automargin` only where labels are names: plotly measures them and draws everything twice. */
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

/** Draw a plot. Screen readers get the table instead, so its buttons are not tab stops. */
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
