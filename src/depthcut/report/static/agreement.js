// How far methods agree: layers that both drop, or the rank correlation of their scores.
import { data } from "./data.js";
import { byId } from "./dom.js";
import { clipToFigure, isNarrow, plotAxis } from "./plots.js";
import { chosenEntry } from "./selection.js";
import { state } from "./state.js";
import { withUnit } from "./strips.js";
import { escapeForPlotly } from "./text.js";
import { shareColorscale } from "./theme.js";

const MOST_WITH_NUMBERS = 14;
const OVERLAP_NOTE =
  "Mean share of dropped layers that two methods share, over the cut sizes that both have; " +
  "in brackets, the share expected by chance.";
const RANK_NOTE = "Spearman's correlation of the scores of single layers; lower scores go first.";

const named = (entries) => entries.map((entry) => ({ ...entry, name: withUnit(entry.model, entry.unit) }));
const overlapEntries = named(data.agreements);
const rankEntries = named(data.ranks);

export const agreementEntries = () => (state.by === "overlap" ? overlapEntries : rankEntries);

export const agreementFigure = {
  name: "agreement",
  description: "How many dropped layers the ways of choosing have in common, or how alike metrics rank the layers",
  build() {
    const byOverlap = state.by === "overlap";
    const entry = chosenEntry(agreementEntries(), "agree");
    byId("agreement-note").textContent = entry ? (byOverlap ? OVERLAP_NOTE : RANK_NOTE) : "";
    if (!entry) {
      return {
        note: byOverlap
          ? "There is one way of choosing only, or none: nothing to compare."
          : "No two metrics' scores of one model are at hand.",
      };
    }
    return byOverlap
      ? agreementPlot(entry.model, entry.choosers, entry.overlap, entry)
      : agreementPlot(entry.model, entry.metrics, entry.correlation);
  },
};

/** Return a matrix as a plot; `overlap` holds what chance gives and the number of sizes, where layers are compared. */
function agreementPlot(model, longNames, matrix, overlap) {
  const names = longNames.map(clipToFigure);
  const labels = names.map(escapeForPlotly);
  const text = matrix.map((row, i) => row.map((value, j) => cellText(value, i !== j && overlap?.luck[i][j])));
  const trace = {
    type: "heatmap",
    z: matrix,
    x: labels,
    y: labels,
    zmin: overlap ? 0 : -1,
    zmax: 1,
    colorscale: overlap ? shareColorscale() : "RdBu",
    xgap: 1,
    ygap: 1,
    colorbar: { thickness: 14, outlinewidth: 0 },
    text,
    texttemplate: names.length <= MOST_WITH_NUMBERS ? "%{text}" : "",
    hovertemplate: "%{y}<br>%{x}<br>%{text}<extra></extra>",
  };
  const cell = (value, i, j) => [value, overlap ? overlap.luck[i][j] : null, overlap ? overlap.sizes[i][j] : null];
  return {
    traces: [trace],
    layout: agreementLayout(names.length),
    rows: matrix.flatMap((row, i) => row.map((value, j) => [model, names[i], names[j], ...cell(value, i, j)])),
    head: ["model", "one", "other", overlap ? "overlap" : "rank correlation", "by luck", "sizes"],
  };
}

function cellText(value, luck) {
  if (value == null) return "–";
  return value.toFixed(2) + (typeof luck === "number" ? `<br>(${luck.toFixed(2)})` : "");
}

function agreementLayout(count) {
  const axis = { showgrid: false, automargin: true, type: "category" };
  return {
    height: 170 + 44 * count,
    margin: { l: 20, r: 16, t: 16, b: 20 },
    xaxis: plotAxis({ ...axis, tickangle: count > 5 || isNarrow() ? -40 : 0 }),
    yaxis: plotAxis({ ...axis, autorange: "reversed" }),
  };
}
