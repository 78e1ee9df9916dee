// The page of one run: its plan, scores, healing, command, config and versions.
import { data, runLabels } from "./data.js";
import { byId, copyText, element, saveFile } from "./dom.js";
import { healingTrace } from "./healing.js";
import { formatNumber, formatPercent, formatWithError } from "./numbers.js";
import { drawPlot, plotAxis, plotlyStarted } from "./plots.js";
import { layersInRanges, otherNumbers, runConfig, runNumbers, scoreNames } from "./records.js";
import { openRun, state } from "./state.js";
import { hiddenCaption, pairTable } from "./tables.js";
import { figureColors } from "./theme.js";
import { yamlText } from "./yaml.js";

export function drawRunPage() {
  const place = data.runs.findIndex(({ digest }) => digest === state.run);
  if (place < 0) {
    const note = element("p", {}, `There is no run ${state.run} in this report.`);
    byId("run").replaceChildren(backLink(), note);
    return;
  }
  const run = data.runs[place];
  const label = runLabels[place];
  const curve = data.healing.find((each) => each.run === place);
  const plot = element("div", { class: "plot", "aria-hidden": "true" });
  document.title = `${label.model}: ${run.words} – ${data.title}`;
  byId("run").replaceChildren(
    backLink(),
    element("h2", { id: "h-run" }, `${label.model}: ${run.words}`),
    layerStack(run),
    ...run.says.map((finding) => element("p", {}, finding)),
    sideBySide(["Scores", scoreTable(run)], ["What it is", pairTable("What it is", runFacts(run, label))]),
    ...(curve ? [element("h3", {}, "Healing"), plot] : []),
    ...commandAndConfig(run),
    sideBySide(
      ["Other numbers", otherNumberTable(run)],
      ["Versions", pairTable("Versions", Object.entries(data.parts[run.versions]))],
      ["How the layers were chosen", pairTable("How the layers were chosen", runNotes(run))],
    ),
  );
  if (curve) drawHealing(plot, curve);
}

function backLink() {
  const click = (event) => {
    event.preventDefault();
    openRun("");
  };
  return element("p", {}, element("a", { href: "#", id: "back", onclick: click }, "← all runs"));
}

function sideBySide(...columns) {
  const nodes = columns.map(([title, content]) => element("div", {}, element("h3", {}, title), content));
  return element("div", { class: "side" }, ...nodes);
}

function layerStack({ words, depth, drop }) {
  const dropped = layersInRanges(drop);
  const layers = Array.from({ length: depth }, (_, i) =>
    element("span", { class: dropped.has(i) && "gone" }, String(i)),
  );
  return element("div", { class: "stack", role: "img", "aria-label": words }, ...layers);
}

const runNotes = ({ notes }) => (notes.length ? notes : [["notes", "none"]]);

const runFacts = (run, label) => [
  ["study", run.study],
  ["model", label.model],
  ["metric", label.metric || "none"],
  ["pruner", label.prune],
  ["replacement", label.replace],
  ["healing", label.recipe || "none"],
  ["seed", run.seed],
  ["share cut", formatPercent(run.fraction)],
  ["finished", run.finished],
  ["device", run.device],
  ["commit", run.commit],
  ["folder", run.folder],
  ["digest", run.digest],
];

function commandAndConfig(run) {
  const command = `python run.py --config "${run.folder}/config.yaml"`;
  const config = yamlText(runConfig(run, data.parts));
  const button = (id, onclick, text) => element("button", { type: "button", id, onclick }, text);
  const hint =
    "Run this in a checkout at the same commit. If the folder is not available, save the config and pass its path instead.";
  return [
    element("h3", {}, "Run it again"),
    element("p", { class: "quiet" }, hint),
    element("pre", { id: "command" }, command),
    button("copy", () => copyText(command, "Could not copy."), "Copy"),
    " ",
    button("config", () => saveFile("config.yaml", config, "text/yaml"), "Save config.yaml"),
    element("h3", {}, "Config"),
    element("pre", { id: "config-text", tabindex: "0" }, config),
  ];
}

/** Make the table of scores, one row a score and one column a stage. */
function scoreTable(run) {
  const numbers = runNumbers(run, data.parts);
  const cell = (name) => {
    const text = numbers[name] == null ? "" : formatWithError(numbers[name], numbers[name + "_stderr"]);
    return element("td", { class: "number" }, text);
  };
  const head = run.stages.map((stage) => element("th", { scope: "col", class: "number" }, stage));
  const rows = scoreNames(numbers).map((name) => {
    const cells = run.stages.map((stage) => cell(`${stage}/${name}`));
    return element("tr", {}, element("th", { scope: "row" }, name), ...cells);
  });
  return element(
    "table",
    {},
    hiddenCaption("Scores by stage"),
    element("thead", {}, element("tr", {}, element("td", {}), ...head)),
    element("tbody", {}, ...rows),
  );
}

function otherNumberTable(run) {
  const pairs = otherNumbers(runNumbers(run, data.parts)).map(([name, value]) => [
    name,
    formatNumber(value) + (name.startsWith("seconds/") ? " s" : ""),
  ]);
  return pairTable("Other numbers", pairs);
}

function drawHealing(node, curve) {
  if (!plotlyStarted()) return;
  node.style.height = "300px";
  drawPlot(node, [healingTrace(curve, { color: figureColors().full, width: 2 })], {
    height: 300,
    xaxis: plotAxis({ title: { text: state.pace } }),
    yaxis: plotAxis({ title: { text: "training loss" } }),
  });
}
