// Training loss while healing, also of the points that run now.
import { data, runLabels } from "./data.js";
import { byId, element } from "./dom.js";
import { formatNumber, formatPercent } from "./numbers.js";
import { plotAxis } from "./plots.js";
import { filteredLines, runPassesFilters, shownLines } from "./selection.js";
import { openRunOfPoint, state } from "./state.js";
import { escapeForPlotly } from "./text.js";
import { figureColors, lineStyle } from "./theme.js";
import { scrollingTable } from "./tables.js";

const MOST_CURVES = 150;
const THIN_LINES_ABOVE = 20;

export const healingFigure = {
  name: "healing",
  description: "Training loss while healing",
  build() {
    const curves = shownCurves();
    const running = data.running.filter(({ loss }) => loss.length);
    if (!curves.length && !running.length) {
      return { note: data.healing.length ? "No healing curve passes the filters." : "No run was healed." };
    }
    const notes = [
      curves.length > MOST_CURVES &&
        `${MOST_CURVES} of ${curves.length} healing curves are drawn; filter to see others.`,
      running.length && "Thick lines: points that are running.",
    ];
    return {
      traces: [...styledTraces(curves.slice(0, MOST_CURVES)), ...running.map(runningTrace)],
      layout: {
        height: 420,
        uirevision: state.pace + state.logx,
        xaxis: plotAxis({ title: { text: state.pace }, type: state.logx ? "log" : "linear" }),
        yaxis: plotAxis({ title: { text: "training loss (nats per token)" } }),
      },
      rows: [...curves.flatMap(finishedRows), ...running.flatMap(runningRows)],
      head: ["run", "model", "healing", "share cut", "tokens", "seconds", "loss"],
      note: notes.filter(Boolean).join(" "),
      click: openRunOfPoint,
    };
  },
};

/** Return the healing curves of the runs on shown curves; of all runs that pass, where there are no curves. */
function shownCurves() {
  const shown = new Set(shownLines().flatMap((line) => (line.of.recipe ? line.runs.flat() : [])));
  return data.healing.filter(({ run }) => shown.has(run) || (!data.lines.length && runPassesFilters(run)));
}

function styledTraces(curves) {
  const healed = filteredLines().filter((line) => line.of.recipe);
  const lineOfRun = new Map(healed.flatMap((line) => line.runs.flat().map((run) => [run, line])));
  return curves.map((curve) => {
    const line = lineOfRun.get(curve.run);
    const { color, dash } = line ? lineStyle(line) : {};
    const width = curves.length > THIN_LINES_ABOVE ? 1 : 1.6;
    return healingTrace(curve, line ? { width, color, dash } : { width });
  });
}

/** Return the trace of a run's healing, along tokens or seconds as the state says. */
export function healingTrace(curve, line) {
  const run = data.runs[curve.run];
  const { model, metric, prune, recipe } = runLabels[curve.run];
  const words = [model, metric, prune, recipe, formatPercent(run.fraction), "seed " + run.seed];
  const name = escapeForPlotly(words.filter(Boolean).join(" "));
  const thinned = curve.each > 1 ? `, mean of ${curve.each} steps` : "";
  return {
    type: "scatter",
    mode: curve.loss.length > 1 ? "lines" : "markers",
    x: state.pace === "tokens" ? data.parts[curve.tokens] : curve.seconds,
    y: curve.loss,
    line,
    customdata: curve.loss.map(() => curve.run),
    hovertemplate: `<b>${name}</b><br>%{x:.4g} ${state.pace}: %{y:.3f}${thinned}<extra></extra>`,
  };
}

/** Return the trace of a point that runs now, with a marker at its last step. */
function runningTrace(point) {
  const color = figureColors().text;
  return {
    type: "scatter",
    mode: "lines+markers",
    x: point[state.pace],
    y: point.loss,
    line: { width: 3, color },
    marker: { size: point.loss.map((_, i) => (i === point.loss.length - 1 ? 9 : 0)), color },
    hovertemplate: `<b>${escapeForPlotly(point.words)}</b>, running<br>%{x:.4g} ${state.pace}: %{y:.3f}<extra></extra>`,
  };
}

function finishedRows({ run, tokens, seconds, loss }) {
  const { digest, fraction } = data.runs[run];
  const { model, recipe } = runLabels[run];
  return loss.map((value, i) => [digest, model, recipe, fraction, data.parts[tokens][i], seconds[i], value]);
}

const runningRows = ({ digest, words, tokens, seconds, loss }) =>
  loss.map((value, i) => [digest, words, "running", null, tokens[i], seconds[i], value]);

/** Fill the table of the points that run now. */
export function drawRunningPoints() {
  byId("running").hidden = !data.running.length;
  const head = ["Running now", "Study", "Healing", "Loss"].map((word) => element("th", { scope: "col" }, word));
  const parts = [
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...data.running.map(runningRow)),
  ];
  byId("running").replaceChildren(scrollingTable("Points that run now", ...parts));
}

const runningRow = (point) =>
  element(
    "tr",
    {},
    element("th", { scope: "row" }, point.words),
    element("td", {}, point.study),
    element("td", {}, ...stepProgress(point)),
    element("td", { class: "number" }, formatNumber(point.loss.at(-1))),
  );

function stepProgress({ steps, words }) {
  if (!steps) return ["not healing yet, or no more"];
  const [step, total] = steps;
  const bar = element("progress", { max: total, value: step, "aria-label": "healing of " + words });
  return [bar, ` step ${step} of ${total}`];
}
