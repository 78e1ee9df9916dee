// The state of the page and its form in the link, after the "#". Users keep links, so keys never change.

export const FACETS = {
  model: "Model",
  metric: "Metric",
  prune: "Pruner",
  replace: "Replacement",
  recipe: "Healing",
  unit: "What goes",
  evaluation: "Evaluation",
};

/** Return the state of a page without a link. */
export const defaultState = (logScale) => ({
  x: "fraction",
  y: "raw",
  panels: "auto",
  bands: "1",
  marks: "1",
  log: logScale ? "1" : "",
  measures: "",
  off: "",
  fall: "",
  strip: "",
  map: "",
  scale: "rows",
  agree: "",
  by: "overlap",
  gain: "",
  cost: "",
  pace: "tokens",
  logx: "",
  theme: "auto",
  run: "",
  "find-falls": "",
  "find-runs": "",
  "sort-falls": "",
  "sort-runs": "",
});

/** Return {state, hidden} of a link: a value for each key of `defaults`, and the values that each facet hides. */
export function decodeLink(hash, defaults) {
  const words = new URLSearchParams(hash.replace(/^#/, ""));
  const state = Object.fromEntries(Object.entries(defaults).map(([key, value]) => [key, words.get(key) ?? value]));
  const hidden = Object.fromEntries(Object.keys(FACETS).map((facet) => [facet, new Set(words.getAll("no-" + facet))]));
  return { state, hidden };
}

/** Return the link of a state without its "#": what differs from the defaults. */
export function encodeLink(state, hidden, defaults) {
  const words = new URLSearchParams();
  for (const [key, value] of Object.entries(defaults)) if (state[key] !== value) words.set(key, state[key]);
  for (const [facet, values] of Object.entries(hidden)) for (const value of values) words.append("no-" + facet, value);
  return words.toString();
}
