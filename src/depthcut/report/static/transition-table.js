// The table of transitions.
import { data } from "./data.js";
import { facetValueText } from "./filters.js";
import { formatIntervalInPercent } from "./numbers.js";
import { shownLines } from "./selection.js";
import { state } from "./state.js";
import { methodAndUnit } from "./styles.js";
import { fillSortableTable } from "./tables.js";
import { matchesWords, searchWords } from "./text.js";
import { transitionNote } from "./transitions.js";

const INTERVALS = ["Midpoint, %", "Onset, %", "Width, %", "Moved by healing, %"];
const COLUMNS = [
  ...["Model", "Choice", "Healing", "Task"].map((head) => ({ head })),
  ...INTERVALS.map((head) => ({ head, number: true, show: formatIntervalInPercent })),
  { head: "Note", wide: true },
];

export function drawTransitionTable() {
  fillSortableTable({
    id: "falls-table",
    caption: "Transitions: one row per curve and task",
    columns: COLUMNS,
    rows: transitionRows(),
    sortKey: "sort-falls",
  });
}

/** Return the rows of the curves that are shown and match the search, those with a transition first. */
function transitionRows() {
  const words = searchWords(state["find-falls"]);
  const shown = new Set(shownLines());
  const transitions = data.transitions.filter(({ line }) => shown.has(data.lines[line]));
  const ordered = [...transitions].sort((one, other) => !one.midpoint - !other.midpoint);
  return ordered.map(transitionRow).filter((row) => matchesWords(words, row));
}

function transitionRow(transition) {
  const { of } = data.lines[transition.line];
  const { name, midpoint, onset, width, moved } = transition;
  const words = [of.model, methodAndUnit(of), facetValueText("recipe", of.recipe), name];
  return [...words, midpoint, onset, width, moved, transitionNote(transition, data.reasons)];
}
