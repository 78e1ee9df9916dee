// The table of runs, and a run's own page.
const numbersOf = (run) => Object.fromEntries(data.parts[run.numbers].map((name, i) => [name, run.values[i]]));
const numberNames = unique(unique(data.runs.map((run) => run.numbers)).flatMap((part) => data.parts[part]));
const configOf = (run) => Object.assign({}, ...run.config.map((part) => data.parts[part]));
const chosenBy = (label) => [label.metric, label.prune, label.replace === "none" ? "" : label.replace].filter(Boolean).join(" ");

function runRows() {
  const wanted = state["find-runs"].toLowerCase().split(/\s+/).filter(Boolean), names = chosenMeasures();
  const rows = [];
  data.runs.forEach((run, i) => {
    if (!runPasses(i)) return;
    const label = labels[i], numbers = numbersOf(run), words = [run.study, label.model, chosenBy(label), label.recipe || "not healed"];
    const text = [...words, run.words, run.digest, label.evaluation].join(" ").toLowerCase();
    if (!wanted.every((word) => text.includes(word))) return;
    rows.push([run.digest, ...words, run.fraction, label.recipe ? run.seed : null, ...names.flatMap((name) => ["pruned", "healed"].map((stage) => numbers[`${stage}/${name}`] ?? null))]);
  });
  return rows;
}

function drawRunTable() {
  const names = chosenMeasures(), open = (digest) => el("a", { href: "#run=" + digest, onclick: (event) => { event.preventDefault(); set({ run: digest }, true); } }, digest.slice(0, 8));
  const columns = [{ head: "Run", show: open }, { head: "Study" }, { head: "Model" }, { head: "Choice" }, { head: "Healing" }, { head: "Cut", number: true, show: percent }, { head: "Seed", number: true }];
  for (const name of names) columns.push({ head: name, number: true }, { head: "healed", number: true });
  sortable("runs-table", "Runs: a row a record", columns, runRows(), shownMost, "sort-runs");
  $("failed").hidden = !data.failures.length;
  $("failed").firstElementChild.textContent = `Points that failed (${data.failures.length})`;
  $("failed").lastElementChild.replaceChildren(...data.failures.map(([where, why]) => el("li", {}, `${where}: ${why}`)));
}

function saveRuns() {
  const head = ["digest", "study", "finished", "model", "metric", "prune", "replace", "healing", "unit", "depth", "share cut", "plan", "seed", ...numberNames];
  const rows = data.runs.map((run, i) => [run, labels[i], i]).filter(([, , i]) => runPasses(i)).map(([run, label]) => {
    const numbers = numbersOf(run);
    return [run.digest, run.study, run.finished, label.model, label.metric, label.prune, label.replace, label.recipe, run.unit, run.depth, run.fraction, run.words, run.seed, ...numberNames.map((name) => numbers[name] ?? null)];
  });
  saveCsv("depthcut-runs", head, rows);
}

// JSON's scalars are YAML's too.
function yaml(value, indent = "") {
  return Object.entries(value).map(([key, each]) => {
    const word = /^[A-Za-z_][\w-]*$/.test(key) ? key : JSON.stringify(key);
    if (each && typeof each === "object" && !Array.isArray(each) && Object.keys(each).length) return `${indent}${word}:\n${yaml(each, indent + "  ")}`;
    return `${indent}${word}: ${JSON.stringify(each)}\n`;
  }).join("");
}

function drawRun() {
  const at = data.runs.findIndex((run) => run.digest === state.run), run = data.runs[at];
  const back = el("p", {}, el("a", { href: "#", id: "back", onclick: (event) => { event.preventDefault(); set({ run: "" }, true); } }, "← all runs"));
  if (!run) {
    $("run").replaceChildren(back, el("p", {}, `There is no run ${state.run} in this report.`));
    return;
  }
  document.title = `${labels[at].model}: ${run.words} – ${data.title}`;
  const label = labels[at], config = yaml(configOf(run)), gone = new Set(run.drop.flatMap(([a, b]) => Array.from({ length: b - a }, (_, i) => a + i)));
  const stack = el("div", { class: "stack", role: "img", "aria-label": run.words }, ...Array.from({ length: run.depth }, (_, i) => el("span", { class: gone.has(i) && "gone" }, String(i))));
  const command = `python run.py --config "${run.folder}/config.yaml"`;
  const copy = el("button", { type: "button", id: "copy", onclick: () => navigator.clipboard.writeText(command).then(() => say("Copied."), () => say("Could not copy.")) }, "Copy");
  const keep = el("button", { type: "button", id: "config", onclick: () => save("config.yaml", config, "text/yaml") }, "Save config.yaml");
  const shown = el("div", { class: "plot", "aria-hidden": "true" }), curve = data.healing.find((each) => each.run === at);
  const facts = [["study", run.study], ["model", label.model], ["metric", label.metric || "none"], ["pruner", label.prune], ["replacement", label.replace], ["healing", label.recipe || "none"], ["seed", run.seed], ["share cut", percent(run.fraction)], ["finished", run.finished], ["device", run.device], ["commit", run.commit], ["folder", run.folder], ["digest", run.digest]];
  $("run").replaceChildren(back,
    el("h2", { id: "h-run" }, `${label.model}: ${run.words}`), stack,
    ...run.says.map((line) => el("p", {}, line)),
    el("div", { class: "side" }, el("div", {}, el("h3", {}, "Scores"), stages(run)), el("div", {}, el("h3", {}, "What it is"), pairs("What it is", facts))),
    ...(curve ? [el("h3", {}, "Healing"), shown] : []),
    el("h3", {}, "Run it again"), el("p", { class: "quiet" }, "In a checkout at the same commit; where the folder is not at hand, save the config and name its folder instead."),
    el("pre", { id: "command" }, command), copy, " ", keep,
    el("h3", {}, "Config"), el("pre", { id: "config-text", tabindex: "0" }, config),
    el("div", { class: "side" }, el("div", {}, el("h3", {}, "Other numbers"), others(run)), el("div", {}, el("h3", {}, "Versions"), pairs("Versions", Object.entries(data.parts[run.versions]))), el("div", {}, el("h3", {}, "How the layers were chosen"), pairs("How the layers were chosen", run.notes.length ? run.notes : [["notes", "none"]]))));
  if (curve && typeof Plotly !== "undefined") {
    shown.style.height = "300px";
    plot(shown, healingTraces([curve], state.pace, () => ({ color: ink().full, width: 2 })), { height: 300, xaxis: axis({ title: { text: state.pace } }), yaxis: axis({ title: { text: "training loss" } }) });
  }
}
const pairs = (caption, rows) => el("table", {}, el("caption", { class: "unseen" }, caption), el("tbody", {}, ...rows.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value == null ? "" : String(value))))));

function stages(run) {
  const numbers = numbersOf(run), names = unique(Object.keys(numbers).filter((name) => /^(dense|pruned|healed)\//.test(name) && !/(_stderr|_finite|\/items|\/tokens)$/.test(name)).map((name) => name.slice(name.indexOf("/") + 1)));
  const cellOf = (stage, name) => el("td", { class: "number" }, numbers[`${stage}/${name}`] == null ? "" : within(numbers[`${stage}/${name}`], numbers[`${stage}/${name}_stderr`]));
  return el("table", {}, el("caption", { class: "unseen" }, "Scores by stage"), el("thead", {}, el("tr", {}, el("td", {}), ...run.stages.map((stage) => el("th", { scope: "col", class: "number" }, stage)))),
    el("tbody", {}, ...names.map((name) => el("tr", {}, el("th", { scope: "row" }, name), ...run.stages.map((stage) => cellOf(stage, name))))));
}
function others(run) {
  const rows = Object.entries(numbersOf(run)).filter(([name]) => !/^(dense|pruned|healed)\//.test(name));
  return pairs("Other numbers", rows.map(([name, value]) => [name, name.startsWith("seconds/") ? short(value) + " s" : short(value)]));
}
