// The scores of all blocks of layers: a heat map by the first layer and the size of a block.
import { data } from "./data.js";
import { plotAxis } from "./plots.js";
import { chosenEntry } from "./selection.js";
import { state } from "./state.js";
import { withUnit } from "./strips.js";

export const mapEntries = data.maps.map((map) => ({ ...map, name: withUnit(`${map.model}: ${map.metric}`, map.unit) }));

export const mapsFigure = {
  name: "maps",
  description: "Scores of all blocks of layers, by their first layer and their size",
  build() {
    const map = chosenEntry(mapEntries, "map");
    if (!map) {
      return { note: "No record's scores are in the cache next to its study (outputs/cache/scores)." };
    }
    return {
      traces: [scoreTrace(map), ...chosenBlockTraces(map)],
      layout: {
        height: 480,
        margin: { l: 56, r: 16, t: 16, b: 48 },
        xaxis: blockAxis("first layer of the block", [-0.5, map.depth - 0.5]),
        yaxis: blockAxis("layers in the block", [0.5, map.depth + 0.5]),
      },
      rows: csvRows(map),
      head: ["model", "metric", "layers in the block", "first layer", "score", "within its size", "chosen"],
    };
  },
};

const blockAxis = (text, range) => plotAxis({ title: { text }, showgrid: false, range });

function scoreTrace(map) {
  const normalised = state.scale === "rows";
  const title = { font: { size: 12.5 }, text: normalised ? "within<br>its size" : "score" };
  return {
    type: "heatmap",
    z: normalised ? map.normalised : map.scores,
    x: map.layers.map((_, i) => i),
    y: map.scores.map((_, i) => i + 1),
    colorscale: "Viridis",
    hoverongaps: false,
    customdata: map.scores,
    colorbar: { title, thickness: 14, outlinewidth: 0 },
    hovertemplate: "layers %{x} on, %{y} in all<br>score %{customdata:.4g}<extra></extra>",
  };
}

/** Return the rings of the blocks that were cut: black on white, seen on every colour. */
function chosenBlockTraces(map) {
  const rings = (size, color, width, hover) => ({
    type: "scatter",
    mode: "markers",
    x: Object.values(map.chosen),
    y: Object.keys(map.chosen).map(Number),
    marker: { symbol: "circle-open", size, color, line: { width, color } },
    ...hover,
  });
  return [
    rings(11, "#ffffff", 2.5, { hovertemplate: "cut: layers %{x} on, %{y} in all<extra></extra>" }),
    rings(7, "#000000", 1.5, { hoverinfo: "skip" }),
  ];
}

function csvRows({ model, metric, scores, normalised, chosen }) {
  const cell = (score, i, start) =>
    score == null
      ? []
      : [[model, metric, i + 1, start, score, normalised[i][start], chosen[i + 1] === start ? "cut" : ""]];
  return scores.flatMap((row, i) => row.flatMap((score, start) => cell(score, i, start)));
}
