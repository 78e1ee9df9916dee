// The traces of a panel of curves. Plotly's time grows with the number of traces: bands, levels and midpoints share them.
import { denseOf, findMeasure, transitionOf } from "./data.js";
import { formatInterval, formatNumber, formatPercent, formatWithError } from "./numbers.js";
import { errorBars } from "./panels.js";
import { bandOutline, midpointScore } from "./scores.js";
import { state } from "./state.js";
import { escapeForPlotly } from "./text.js";
import { figureColors, lineStyle, lineTitle } from "./theme.js";

const TEXT_ON_HOVER = "%{text}<extra></extra>";

/** Return one trace for all bands of a colour, with gaps between them. */
export function bandTraces(panel, place) {
  const traces = new Map();
  for (const { line, points } of state.bands ? panel.curves : []) {
    const outline = bandOutline(points);
    if (!outline) continue;
    const { color } = lineStyle(line);
    if (!traces.has(color)) traces.set(color, bandTrace(color, place));
    traces.get(color).x.push(...outline.x, null);
    traces.get(color).y.push(...outline.y, null);
  }
  return [...traces.values()];
}

const bandTrace = (color, place) => ({
  type: "scatter",
  xaxis: place.x,
  yaxis: place.y,
  x: [],
  y: [],
  fill: "toself",
  fillcolor: color,
  opacity: 0.16,
  line: { width: 0 },
  mode: "lines",
  hoverinfo: "skip",
});

export function lineTrace({ line, points }, name, place) {
  const { color, dash, symbol } = lineStyle(line);
  return {
    type: "scatter",
    xaxis: place.x,
    yaxis: place.y,
    x: points.map(({ x }) => x),
    y: points.map(({ y }) => y),
    mode: "lines+markers",
    line: { color, dash, width: 2 },
    marker: { color, symbol, size: 7, line: { width: 1.4, color } },
    text: points.map((point) => pointText(line, name, point)),
    hovertemplate: TEXT_ON_HOVER,
    customdata: points.map(({ runs }) => runs[0] ?? null),
  };
}

function pointText(line, name, { y, error, dropped, seeds }) {
  const { depth, recipe } = line.of;
  const seedText = seeds === 1 ? "1 seed" : seeds + " seeds";
  return [
    `<b>${escapeForPlotly(lineTitle(line))}</b>`,
    `${escapeForPlotly(name)}: ${escapeForPlotly(formatWithError(y, error))}`,
    `${dropped} of ${depth} layers cut (${formatPercent(dropped / depth)})`,
    dropped || recipe ? seedText : "dense model",
  ].join("<br>");
}

/** Return one trace for all midpoints of a panel, or none where the axis does not count layers cut. */
export function midpointTraces(panel, place) {
  if (!state.marks || (state.x !== "fraction" && state.x !== "dropped")) return [];
  const marks = panel.curves.flatMap((curve) => midpointMark(curve, panel.name) ?? []);
  if (!marks.length) return [];
  const trace = {
    type: "scatter",
    mode: "markers",
    xaxis: place.x,
    yaxis: place.y,
    x: marks.map(({ interval }) => interval[0]),
    y: marks.map(({ y }) => y),
    text: marks.map(({ text }) => text),
    hovertemplate: TEXT_ON_HOVER,
    marker: {
      symbol: "diamond-tall",
      size: 12,
      color: marks.map(({ color }) => color),
      line: { color: figureColors().paper, width: 1 },
    },
    error_x: errorBars(
      marks.map(({ interval }) => interval),
      figureColors().quiet,
    ),
  };
  return [trace];
}

function midpointMark({ line, score }, name) {
  const midpoint = transitionOf(line, name)?.midpoint;
  if (!midpoint || score.floor == null || score.top == null) return null;
  const scale = state.x === "dropped" ? line.of.depth : 1;
  return {
    interval: midpoint.map((share) => share * scale),
    y: midpointScore(score, findMeasure(name), state.y, denseOf(line)),
    color: lineStyle(line).color,
    text: `<b>${escapeForPlotly(lineTitle(line))}</b><br>midpoint ${formatInterval(midpoint)}`,
  };
}

/** Return one trace for the dense levels and chance, with gaps between them, and their annotations. */
export function levelTraces(panel, place, logScale) {
  const levels = panelLevels(panel);
  if (!levels.length) return { traces: [], annotations: [] };
  const positions = panel.curves.flatMap(({ points }) => points.map(({ x }) => x));
  const [low, high] = [Math.min(...positions), Math.max(...positions)];
  const start = state.x.includes("/") ? low : Math.min(0, low);
  const color = figureColors().quiet;
  const annotations = levels.map(({ value, name }) => ({
    x: name === "chance" ? start : high,
    y: logScale ? Math.log10(value) : value,
    xref: place.x,
    yref: place.y,
    text: escapeForPlotly(name),
    showarrow: false,
    xanchor: name === "chance" ? "left" : "right",
    yanchor: "bottom",
    font: { size: 10.5, color },
  }));
  const trace = {
    type: "scatter",
    x: levels.flatMap(() => [start, high, null]),
    y: levels.flatMap(({ value }) => [value, value, null]),
    text: levels.flatMap(({ value, name }) => Array(3).fill(`${escapeForPlotly(name)}: ${formatNumber(value)}`)),
    xaxis: place.x,
    yaxis: place.y,
    mode: "lines",
    line: { color, width: 1.2, dash: "1px,3px" },
    hovertemplate: TEXT_ON_HOVER,
  };
  return { traces: [trace], annotations };
}

/** Return {value, name} of each dense model and of chance, each once. */
function panelLevels({ name, curves }) {
  const severalModels = new Set(curves.map(({ line }) => line.of.model)).size > 1;
  const isAccuracy = findMeasure(name).kind === "accuracy";
  const levels = new Map();
  const add = (key, level) => levels.has(key) || levels.set(key, level);
  for (const { line, score } of curves) {
    const { model } = line.of;
    const dense = severalModels ? `dense ${model}` : "dense";
    if (score.top != null) add(model + line.dense, { value: score.top, name: dense });
    if (score.floor != null && isAccuracy) add("chance", { value: score.floor, name: "chance" });
  }
  return [...levels.values()];
}
