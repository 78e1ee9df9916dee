// The curves, runs and scores that the state selects.
import { axisPositions, densePosition } from "./axes.js";
import { data, denseOf, findMeasure, runLabels, unhealedOf } from "./data.js";
import { chooseByName, passesFilters } from "./filters.js";
import { defaultMeasures, scaleScore } from "./scores.js";
import { hidden, state } from "./state.js";
import { splitList, unique } from "./text.js";

const MANY_LINES = 16;

export const models = unique(data.lines.map((line) => line.of.model));

/** Return the curves that the filters let through, also those that the legend switches off. */
export const filteredLines = () => data.lines.filter((line) => passesFilters(line.of, hidden));

export function shownLines() {
  const off = new Set(splitList(state.off));
  return filteredLines().filter((line) => !off.has(line.key));
}

/** Return whether the filters let through the run at index i. */
export const runPassesFilters = (i) => passesFilters(runLabels[i], hidden);

/** Return whether each model has separate panels; by default if one panel would hold too many curves. */
export const panelsPerModel = () =>
  state.panels === "auto" ? models.length > 1 && data.lines.length > MANY_LINES : state.panels === "model";

export const initialMeasures = () => defaultMeasures(data.measures, panelsPerModel());

export const chosenMeasures = () =>
  state.measures ? splitList(state.measures).filter(findMeasure) : initialMeasures();

/** Return the entry that the select `key` has chosen, by default one whose model passes the filters. */
export const chosenEntry = (entries, key) => chooseByName(entries, state[key], hidden.model);

export const lineScore = (line, name, scale) => scaleScore(line, findMeasure(name), scale, denseOf(line));

export const linePositions = (line, axis) => axisPositions(line, axis, unhealedOf(line));

export const lineStart = (line, axis) => densePosition(line, axis, denseOf(line));
