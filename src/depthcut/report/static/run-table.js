// The table of runs, and the CSV of all their numbers.
import { data, runLabels } from "./data.js";
import { byId, element } from "./dom.js";
import { facetValueText } from "./filters.js";
import { formatPercent } from "./numbers.js";
import { numberNames, runNumbers } from "./records.js";
import { chosenMeasures, runPassesFilters } from "./selection.js";
import { openRun, state } from "./state.js";
import { methodName } from "./styles.js";
import { fillSortableTable, saveCsv } from "./tables.js";
import { matchesWords, searchWords } from "./text.js";

const CSV_HEAD = [
  ...["digest", "study", "finished", "model", "metric", "prune", "replace", "healing", "unit", "depth", "share cut"],
  ...["plan", "seed"],
];
const COLUMNS = [
  { head: "Run", show: runLink },
  ...["Study", "Model", "Choice", "Healing"].map((head) => ({ head })),
  { head: "Cut", number: true, show: formatPercent },
  { head: "Seed", number: true },
];

export function drawRunTable() {
  const names = chosenMeasures();
  const scores = names.flatMap((name) => [name, "healed"]).map((head) => ({ head, number: true }));
  fillSortableTable({
    id: "runs-table",
    caption: "Runs: one row per record",
    columns: [...COLUMNS, ...scores],
    rows: runRows(names),
    sortKey: "sort-runs",
  });
  const [summary, list] = byId("failed").children;
  byId("failed").hidden = !data.failures.length;
  summary.textContent = `Points that failed (${data.failures.length})`;
  list.replaceChildren(...data.failures.map(([folder, reason]) => element("li", {}, `${folder}: ${reason}`)));
}

function runLink(digest) {
  const click = (event) => {
    event.preventDefault();
    openRun(digest);
  };
  return element("a", { href: "#run=" + digest, onclick: click }, digest.slice(0, 8));
}

/** Return {run, label} of the runs that pass the filters. */
const filteredRuns = () =>
  data.runs.map((run, i) => ({ run, label: runLabels[i] })).filter((_, i) => runPassesFilters(i));

function runRows(names) {
  const words = searchWords(state["find-runs"]);
  return filteredRuns().flatMap(({ run, label }) => {
    const texts = [run.study, label.model, methodName(label), facetValueText("recipe", label.recipe)];
    if (!matchesWords(words, [...texts, run.words, run.digest, label.evaluation])) return [];
    const numbers = runNumbers(run, data.parts);
    const scores = names.flatMap((name) => ["pruned", "healed"].map((stage) => numbers[`${stage}/${name}`] ?? null));
    return [[run.digest, ...texts, run.fraction, label.recipe ? run.seed : null, ...scores]];
  });
}

export function saveRuns() {
  const names = numberNames(data.runs, data.parts);
  const rows = filteredRuns().map(({ run, label }) => {
    const method = [label.model, label.metric, label.prune, label.replace, label.recipe];
    const plan = [run.unit, run.depth, run.fraction, run.words, run.seed];
    const numbers = runNumbers(run, data.parts);
    return [run.digest, run.study, run.finished, ...method, ...plan, ...names.map((name) => numbers[name] ?? null)];
  });
  saveCsv("depthcut-runs", [...CSV_HEAD, ...names], rows);
}
