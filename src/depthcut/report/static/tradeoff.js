// Score against memory or speed, and the points that no other point beats.
import { axisName, axisTickFormat } from "./axes.js";
import { data, denseOf, findMeasure } from "./data.js";
import { moreIsBetter, paretoFront } from "./fronts.js";
import { formatNumber, formatWithError } from "./numbers.js";
import { plotAxis } from "./plots.js";
import { initialMeasures, linePositions, lineScore, lineStart, shownLines } from "./selection.js";
import { openRunOfPoint, state } from "./state.js";
import { escapeForPlotly, unique } from "./text.js";
import { figureColors, lineStyle, lineTitle } from "./theme.js";

const LOG_SCALE_ABOVE = 8; // nats

export const costNames = ["kept", ...data.quantities];

export function chosenCost() {
  if (costNames.includes(state.cost)) return state.cost;
  if (costNames.includes("size/weight_bytes")) return "size/weight_bytes";
  return costNames.find((name) => name.startsWith("size/")) || "kept";
}

export const chosenGain = () => (findMeasure(state.gain) ? state.gain : initialMeasures()[0] || data.measures[0]?.name);

export const tradeoffFigure = {
  name: "pareto",
  description: "Score against memory or speed, and the points that no other point beats",
  build() {
    const [gain, cost] = [chosenGain(), chosenCost()];
    if (!gain) return { note: "Nothing was measured." };
    const cuts = shownLines().flatMap((line) => cutPoints(line, gain, cost));
    if (!cuts.length) return { note: `No visible point has both ${gain} and ${axisName(cost)}.` };
    const points = [...cuts, ...densePoints(gain, cost)];
    const moreGain = findMeasure(gain).kind === "accuracy";
    const front = paretoFront(points, moreIsBetter(cost) ? 1 : -1, moreGain ? 1 : -1);
    const unbeaten = new Set(front);
    const logScale = !moreGain && Math.max(...points.map(({ y }) => y)) > LOG_SCALE_ABOVE;
    return {
      traces: tradeoffTraces(points, front, gain, cost),
      layout: {
        height: 440,
        xaxis: plotAxis({ title: { text: escapeForPlotly(axisName(cost)) }, ...axisTickFormat(cost) }),
        yaxis: plotAxis({ title: { text: escapeForPlotly(gain) }, type: logScale ? "log" : "linear" }),
      },
      rows: points.map((p) => [
        ...[p.model, p.line ? p.line.label : "dense", p.dropped, p.x, p.y, p.error ?? null],
        unbeaten.has(p) ? "unbeaten" : "",
      ]),
      head: ["model", "curve", "layers cut", axisName(cost), gain, "standard error", "front"],
      note: `${front.length} of ${points.length} points are beaten by none in both.`,
      click: openRunOfPoint,
    };
  },
};

/** Return what each cut of a curve costs and scores. */
function cutPoints(line, gain, cost) {
  const score = lineScore(line, gain, "raw");
  const x = linePositions(line, cost);
  if (!score) return [];
  const points = line.dropped.map((dropped, i) => ({
    line,
    model: line.of.model,
    dropped,
    x: x[i],
    y: score.value[i],
    error: score.stderr[i],
    run: line.runs[i][0],
  }));
  return points.filter(({ x, y }) => x != null && y != null);
}

/** Return what each dense model costs and scores; these points belong to no curve. */
function densePoints(gain, cost) {
  const known = unique(shownLines().map(denseOf)).filter((dense) => dense?.y[gain]);
  const points = known.map((dense) => {
    const line = data.lines.find((each) => denseOf(each) === dense);
    const [y, error] = dense.y[gain];
    return { line: null, model: dense.model, dropped: 0, x: lineStart(line, cost), y, error };
  });
  return points.filter(({ x }) => x != null);
}

/** Return the traces: of each curve its beaten points, then its unbeaten ones; the front; the dense models. */
function tradeoffTraces(points, front, gain, cost) {
  const unbeaten = new Set(front);
  const lines = unique(points.map(({ line }) => line)).filter(Boolean);
  const ofLine = (line, ahead) => points.filter((point) => point.line === line && unbeaten.has(point) === ahead);
  const cuts = lines.flatMap((line) =>
    [false, true].map((ahead) => cutTrace(line, ofLine(line, ahead), ahead, gain, cost)),
  );
  const dense = points.filter(({ line }) => !line).map(denseTrace);
  return [...cuts, frontTrace(front, moreIsBetter(cost)), ...dense];
}

const frontTrace = (front, moreX) => ({
  type: "scatter",
  mode: "lines",
  x: front.map(({ x }) => x),
  y: front.map(({ y }) => y),
  line: { color: figureColors().quiet, width: 1.6, shape: moreX ? "vh" : "hv" },
  hoverinfo: "skip",
});

const denseTrace = ({ model, x, y }) => ({
  type: "scatter",
  mode: "markers",
  x: [x],
  y: [y],
  marker: { symbol: "star", size: 14, color: figureColors().text, line: { width: 1, color: figureColors().paper } },
  hovertemplate: `dense ${escapeForPlotly(model)}: ${formatNumber(y)}<extra></extra>`,
});

/** Return the trace of points of a curve; beaten ones are small and faint, and have no error bars. */
function cutTrace(line, points, ahead, gain, cost) {
  const { color, symbol } = lineStyle(line);
  const error = { type: "data", array: points.map((p) => p.error || 0), thickness: 0.8, width: 2, color };
  return {
    type: "scatter",
    mode: "markers",
    x: points.map(({ x }) => x),
    y: points.map(({ y }) => y),
    ...(ahead ? { error_y: error } : {}),
    marker: { color, symbol, size: ahead ? 10 : 7, opacity: ahead ? 1 : 0.4, line: { width: 1.4, color } },
    customdata: points.map(({ run }) => run),
    text: points.map((point) => pointText(point, gain, cost)),
    hovertemplate: "%{text}<extra></extra>",
  };
}

const pointText = ({ line, dropped, x, y, error }, gain, cost) =>
  [
    `<b>${escapeForPlotly(lineTitle(line))}</b>`,
    `${dropped} of ${line.of.depth} layers cut`,
    `${escapeForPlotly(gain)}: ${escapeForPlotly(formatWithError(y, error))}`,
    `${escapeForPlotly(axisName(cost))}: ${formatNumber(x)}`,
  ].join("<br>");
