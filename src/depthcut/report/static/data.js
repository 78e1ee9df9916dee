// The data of the page, and indices of them that do not depend on the state.
import { byId } from "./dom.js";

export const data = JSON.parse(byId("data").textContent);

const unhealedLines = new Map(data.lines.filter((line) => !line.of.recipe).map((line) => [line.partner, line]));
const linePlaces = new Map(data.lines.map((line, i) => [line, i]));
const transitions = new Map(data.transitions.map((each) => [each.line + "~" + each.name, each]));

/** The values of each run that filters and tables use. */
export const runLabels = data.runs.map((run) => ({ ...data.parts[run.label], unit: run.unit }));

export const findMeasure = (name) => data.measures.find((measure) => measure.name === name);

export const denseOf = (line) => (line.dense == null ? null : data.dense[line.dense]);

/** Return the curve of the same cuts without healing, if there is one. */
export const unhealedOf = (line) => unhealedLines.get(line.partner);

export const transitionOf = (line, name) => transitions.get(linePlaces.get(line) + "~" + name);
