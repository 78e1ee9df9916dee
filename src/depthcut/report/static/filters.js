// Which curves and runs are shown.
import { FACETS } from "./link.js";

const WORDS_FOR_EMPTY = {
  recipe: "not healed",
  metric: "no metric",
  evaluation: "same for all",
  unit: "layer",
};

/** Return whether none of the values of a curve or run is hidden. */
export const passesFilters = (values, hidden) =>
  Object.keys(FACETS).every((facet) => !hidden[facet].has(values[facet] ?? ""));

export const facetValueText = (facet, value) => value || WORDS_FOR_EMPTY[facet] || "none";

/** Return how many curves have each value of a facet. */
export function countFacetValues(lines, facet) {
  const counts = new Map();
  for (const line of lines) counts.set(line.of[facet], (counts.get(line.of[facet]) || 0) + 1);
  return counts;
}

/** Return the entry of that name; else the first whose model is not hidden; else the first. */
export const chooseByName = (entries, name, hiddenModels) =>
  entries.find((entry) => entry.name === name) || entries.find((entry) => !hiddenModels.has(entry.model)) || entries[0];
