// The state of the page, which the link keeps. Only this module changes it, except for the theme while printing.
import { data } from "./data.js";
import { decodeLink, defaultState, encodeLink } from "./link.js";
import { needsLogScale } from "./scores.js";

const defaults = defaultState(needsLogScale(data.lines, data.measures));
let notify = () => {};

/** A value for each key of defaultState. */
export const state = {};
/** The values that each facet hides, as sets. */
export const hidden = {};

/** Call `listener` after each change, with the run whose page was open before. */
export function onStateChange(listener) {
  notify = listener;
}

/** Read the state from the link. */
export function loadState() {
  const linked = decodeLink(location.hash, defaults);
  Object.assign(state, linked.state);
  Object.assign(hidden, linked.hidden);
}

export function setState(changes, { newHistoryEntry = false } = {}) {
  const runBefore = state.run;
  Object.assign(state, changes);
  const words = encodeLink(state, hidden, defaults);
  const address = words ? "#" + words : location.pathname + location.search;
  history[newHistoryEntry ? "pushState" : "replaceState"](null, "", address);
  notify(runBefore);
}

/** Go to the page of a run, or with "" back to the overview. */
export const openRun = (digest) => setState({ run: digest }, { newHistoryEntry: true });

/** Open the run of a point of a figure, if it has one. */
export const openRunOfPoint = ({ customdata }) => customdata != null && openRun(data.runs[customdata].digest);

export function hideFacetValues(facet, values) {
  hidden[facet] = new Set(values);
  setState({});
}

export function resetState() {
  history.replaceState(null, "", location.pathname + location.search);
  loadState();
}
