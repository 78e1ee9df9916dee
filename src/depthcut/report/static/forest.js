// The transitions of all curves, to compare: a forest plot.
import { data, transitionOf } from "./data.js";
import { formatInterval } from "./numbers.js";
import { errorBars } from "./panels.js";
import { clipToFigure, isNarrow, plotAxis } from "./plots.js";
import { shownLines } from "./selection.js";
import { state } from "./state.js";
import { escapeForPlotly } from "./text.js";
import { figureColors, lineStyle, lineTitle } from "./theme.js";
import { sortByMidpoint, transitionTasks } from "./transitions.js";

const MOST_ROWS = 60;
const QUANTITIES = ["midpoint", "onset", "width", "moved by healing"];
const NOTHING = { type: "scatter", mode: "markers", x: [0], y: [0], marker: { opacity: 0 }, hoverinfo: "skip" };

const tasks = transitionTasks(data.transitions);
export const transitionTaskNames = tasks.names;

export const chosenTransitionTask = () => (tasks.names.includes(state.fall) ? state.fall : tasks.first);

export const forestFigure = {
  name: "forest",
  description: "Transitions with their 95 % intervals, one row per curve",
  build() {
    const task = chosenTransitionTask();
    const curves = shownLines().map((line) => ({ line, transition: transitionOf(line, task) }));
    const sorted = sortByMidpoint(curves.filter(({ transition }) => transition));
    if (!sorted.length) {
      return {
        note: task ? "No visible curve has this number." : "No curve has an accuracy or a loss.",
      };
    }
    const drawn = sorted.slice(0, MOST_ROWS).map((curve, i, { length }) => ({ ...curve, y: length - 1 - i }));
    const seen = sorted.filter(({ transition }) => transition.midpoint).length;
    const rest = sorted.length > MOST_ROWS ? ` The first ${MOST_ROWS} are drawn; the table has all.` : "";
    return {
      traces: forestTraces(drawn.filter(({ transition }) => transition.midpoint)),
      layout: forestLayout(drawn),
      rows: sorted.map((curve) => csvRow(curve, task)),
      head: ["model", "curve", "task", ...QUANTITIES.flatMap((name) => [name, name + " low", name + " high"]), "note"],
      note: `A transition is seen in ${seen} of ${sorted.length} curves.${rest}`,
    };
  },
};

function forestTraces(curves) {
  if (!curves.length) return [NOTHING];
  const styles = curves.map(({ line }) => lineStyle(line));
  const color = styles.map((style) => style.color);
  const onset = { symbol: "triangle-right-open", size: 9, color };
  const midpoint = { symbol: styles.map((style) => style.symbol), size: 10, color, line: { width: 1.6, color } };
  return [
    intervalTrace(curves, "onset", 0.24, onset, () => ""),
    intervalTrace(curves, "midpoint", 0, midpoint, ({ width }) => `<br>width ${formatInterval(width)}`),
  ];
}

function intervalTrace(curves, quantity, down, marker, moreText) {
  const intervals = curves.map(({ transition }) => transition[quantity]);
  const text = curves.map(({ line, transition }) => {
    const name = `<b>${escapeForPlotly(lineTitle(line))}</b>`;
    return `${name}<br>${quantity} ${formatInterval(transition[quantity])}${moreText(transition)}`;
  });
  return {
    type: "scatter",
    mode: "markers",
    x: intervals.map(([estimate]) => estimate),
    y: curves.map(({ y }) => y - down),
    error_x: errorBars(intervals, figureColors().quiet),
    marker,
    text,
    hovertemplate: "%{text}<extra></extra>",
  };
}

function forestLayout(curves) {
  const names = curves.map(({ line }) => escapeForPlotly(clipToFigure(lineTitle(line))));
  const unseen = curves.filter(({ transition }) => !transition.midpoint);
  return {
    height: 90 + 30 * curves.length,
    annotations: unseen.map(({ transition, y }) => reasonAnnotation(transition.why, y)),
    margin: { l: 20, r: 30, t: 56, b: 16 },
    xaxis: plotAxis({ side: "top", title: { text: "share of layers cut" }, tickformat: ".0%", range: [-0.01, 1] }),
    yaxis: plotAxis({
      tickvals: curves.map(({ y }) => y),
      ticktext: names,
      range: [-0.7, curves.length - 0.3],
      automargin: true,
    }),
  };
}

function reasonAnnotation(why, y) {
  const reason = isNarrow() ? data.reasons[why].split(":")[0] : data.reasons[why];
  const font = { color: figureColors().quiet, size: 11.5 };
  return { x: 0, y, text: escapeForPlotly(reason), showarrow: false, xanchor: "left", font };
}

function csvRow({ line, transition }, task) {
  const { midpoint, onset, width, moved, why } = transition;
  const numbers = [midpoint, onset, width, moved].flatMap((interval) => interval || [null, null, null]);
  return [line.of.model, line.label, task, ...numbers, data.reasons[why]];
}
