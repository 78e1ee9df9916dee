// The layers that each method drops, by the size of the cut.
import { data } from "./data.js";
import { formatPercent } from "./numbers.js";
import { panelGrid, panelHeading } from "./panels.js";
import { clipToFigure, figureWidth, plotAxis } from "./plots.js";
import { chosenEntry, filteredLines } from "./selection.js";
import { droppedLayersText, stripKey, stripName } from "./strips.js";
import { unique } from "./text.js";
import { shareColorscale } from "./theme.js";

const MOST_STRIPS = 24;

/** Return the models whose cuts are known, each {name, model}. */
export const stripEntries = unique(data.strips.map(({ model }) => model)).map((model) => ({ name: model, model }));

export const stripsFigure = {
  name: "strips",
  description: "Which layers each way of choosing drops, by the size of the cut",
  build() {
    const strips = shownStrips();
    if (!strips.length) return { note: "No cut passes the filters." };
    const drawn = strips.slice(0, MOST_STRIPS);
    const mostSizes = Math.max(...drawn.map(({ rows }) => Object.keys(rows).length));
    const height = 70 + (mostSizes > 20 ? 13 : 15) * mostSizes;
    const grid = panelGrid(drawn.length, 2, height, figureWidth() || 900, 0.09);
    const layout = { height: grid.height, annotations: [], margin: { l: 78, r: 16, t: 28, b: 44 } };
    drawn.forEach((strip, i) => addAxes(layout, strip, grid.place(i)));
    return {
      traces: drawn.map((strip, i) => stripTrace(strip, grid.place(i))),
      layout,
      rows: drawn.flatMap(csvRows),
      head: ["model", "choice", "layers cut", "share", "which"],
      note:
        strips.length > MOST_STRIPS
          ? `The first ${MOST_STRIPS} of ${strips.length} ways of choosing; filter to see others.`
          : "",
    };
  },
};

/** Return the strips of the chosen model whose method has a curve that passes the filters. */
function shownStrips() {
  const model = chosenEntry(stripEntries, "strip")?.name;
  const kept = new Set(filteredLines().map(({ of }) => stripKey(of.model, [of.metric, of.prune], of.unit)));
  const hasCurve = (strip) => !data.lines.length || kept.has(stripKey(strip.model, [strip.chooser], strip.unit));
  return data.strips.filter((strip) => strip.model === model && hasCurve(strip));
}

const cutSizes = ({ rows }) =>
  Object.keys(rows)
    .map(Number)
    .sort((one, other) => one - other);

function stripTrace(strip, place) {
  const sizes = cutSizes(strip);
  return {
    type: "heatmap",
    xaxis: place.x,
    yaxis: place.y,
    z: sizes.map((size) => strip.rows[size]),
    x: strip.rows[sizes[0]].map((_, layer) => layer),
    y: sizes.map((size) => formatPercent(size / strip.depth)),
    zmin: 0,
    zmax: 1,
    colorscale: shareColorscale(),
    showscale: false,
    xgap: 1,
    ygap: 1,
    hovertemplate: "layer %{x}, cut %{y}: %{z:.0%}<extra></extra>",
  };
}

function addAxes(layout, strip, place) {
  const axis = (domain, anchor, title, more) =>
    plotAxis({ domain, anchor, showgrid: false, ...more, title: title ? { text: title } : undefined });
  layout["xaxis" + place.n] = axis(place.xDomain, place.y, place.bottom && "layer");
  layout["yaxis" + place.n] = axis(place.yDomain, place.x, place.left && "share cut", { type: "category" });
  layout.annotations.push(panelHeading(clipToFigure(stripName(strip)), place));
}

function csvRows(strip) {
  return cutSizes(strip).map((size) => {
    const layers = droppedLayersText(strip.rows[size]);
    return [strip.model, stripName(strip), size, size / strip.depth, layers];
  });
}
