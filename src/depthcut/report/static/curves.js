// Score against the share of layers cut: one panel per task, with bands, dense levels, chance and midpoints.
import { axisName, axisTickFormat, LOG_TICKS } from "./axes.js";
import { bandTraces, levelTraces, lineTrace, midpointTraces } from "./curve-traces.js";
import { findMeasure } from "./data.js";
import { panelGrid, panelHeading } from "./panels.js";
import { figureWidth, plotAxis } from "./plots.js";
import { curvePoints, scoreTitle } from "./scores.js";
import { chosenMeasures, linePositions, lineScore, lineStart, panelsPerModel, shownLines } from "./selection.js";
import { openRunOfPoint, state } from "./state.js";
import { escapeForPlotly, unique } from "./text.js";

export const curvesFigure = {
  name: "curves",
  description: "Scores against the share of layers cut, one line per method and healing recipe",
  build(firstRowOnly) {
    const lines = shownLines();
    const panels = curvePanels(lines).filter(({ curves }) => curves.length);
    if (!panels.length) {
      return { note: lines.length ? "No curve has these numbers on this axis." : "No curve passes the filters." };
    }
    const { place, height, columns } = panelGrid(panels.length, 3, 300, figureWidth() || 900);
    const drawn = panels.slice(0, firstRowOnly ? columns : panels.length);
    const traces = [];
    const layout = { height, annotations: [] };
    drawn.forEach((panel, i) => addPanel(panel, place(i), traces, layout));
    return {
      traces,
      layout,
      rows: drawn.flatMap(panelRows),
      head: ["task", "model", "curve", axisName(state.x), "layers cut", "value", "standard error", "seeds"],
      note: lines.length === 1 ? "1 curve is shown." : `${lines.length} curves are shown.`,
      partial: drawn.length < panels.length,
      click: openRunOfPoint,
    };
  },
};

/** Return the panels, each {name, title, curves}. */
function curvePanels(lines) {
  const measures = chosenMeasures();
  const panel = (name, title, own) => ({ name, title, curves: drawableCurves(own, name) });
  if (!panelsPerModel()) return measures.map((name) => panel(name, name, lines));
  return unique(lines.map((line) => line.of.model)).flatMap((model) => {
    const own = lines.filter((line) => line.of.model === model);
    return measures.map((name) => panel(name, `${model}: ${name}`, own));
  });
}

/** Return {line, score, points} of the curves that have points on the axes as chosen. */
function drawableCurves(lines, name) {
  return lines.flatMap((line) => {
    const score = lineScore(line, name, state.y);
    const points = score ? curvePoints(line, score, linePositions(line, state.x), lineStart(line, state.x)) : [];
    return points.length ? [{ line, score, points }] : [];
  });
}

function addPanel(panel, place, traces, layout) {
  const measure = findMeasure(panel.name);
  const logScale = state.log && measure.kind === "loss";
  layout["xaxis" + place.n] = plotAxis({
    domain: place.xDomain,
    anchor: place.y,
    title: { text: escapeForPlotly(axisName(state.x)) },
    ...axisTickFormat(state.x),
    rangemode: state.x.includes("/") ? "normal" : "tozero",
  });
  layout["yaxis" + place.n] = plotAxis({
    domain: place.yDomain,
    anchor: place.x,
    ...(logScale ? { type: "log", tickvals: LOG_TICKS } : {}),
    title: { text: escapeForPlotly(scoreTitle(measure, state.y)) },
  });
  const levels = levelTraces(panel, place, logScale);
  layout.annotations.push(panelHeading(panel.title, place), ...levels.annotations);
  traces.push(...levels.traces, ...bandTraces(panel, place));
  traces.push(...panel.curves.map((curve) => lineTrace(curve, panel.name, place)), ...midpointTraces(panel, place));
}

function panelRows({ name, curves }) {
  return curves.flatMap(({ line, points }) =>
    points.map((p) => [name, line.of.model, line.label, p.x, p.dropped, p.y, p.error, p.seeds]),
  );
}
