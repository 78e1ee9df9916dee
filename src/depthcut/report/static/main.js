// Controls, filters, and the order in which things are drawn.
const CONTROLS = { x: 0, y: 0, panels: 0, bands: 1, marks: 1, log: 1, fall: 0, strip: 0, map: 0, scale: 0, agree: 0, by: 0, gain: 0, cost: 0, pace: 0, logx: 1, theme: 0, "find-falls": 0, "find-runs": 0 };

function fill(id, options) {
  $(id).replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
  $(id).closest("label").hidden = options.length < 2;
}

function fillControls() {
  fill("x", [...Object.keys(AXES), ...data.quantities].map((name) => [name, axisName(name)]));
  fill("fall", fallNames.map((name) => [name, name]));
  fill("strip", STRIPS.map(({ name }) => [name, name]));
  fill("map", MAPS.map(({ name }) => [name, name]));
  fill("gain", data.measures.map((measure) => [measure.name, measure.name]));
  fill("cost", COSTS.map((name) => [name, axisName(name)]));
  for (const [id, box] of Object.entries(CONTROLS)) {
    $(id).addEventListener($(id).type === "search" ? "input" : "change", () => set({ [id]: box ? ($(id).checked ? "1" : "") : $(id).value }));
  }
  $("by").querySelector("[value=ranks]").disabled = !data.ranks.length;
}

function showControls() {
  const current = { ...state, fall: chosenFall() || "", gain: chosenGain() || "", cost: chosenCost() };
  const compared = state.by === "overlap" ? OVERLAPS : RANKS;
  for (const [key, list] of Object.entries({ strip: STRIPS, map: MAPS, agree: compared })) current[key] = (pick(list, key) || { name: "" }).name;
  fill("agree", compared.map(({ name }) => [name, name]));
  for (const [id, box] of Object.entries(CONTROLS)) {
    if (box) $(id).checked = Boolean(state[id]);
    else if ($(id).value !== current[id] && document.activeElement !== $(id)) $(id).value = current[id];
  }
  const chosen = new Set(chosenMeasures());
  const flip = (name) => set({ measures: data.measures.map((m) => m.name).filter((m) => chosen.has(m) !== (m === name)).join("~") });
  keepFocus($("measures"), () => $("measures").replaceChildren(el("legend", {}, "Tasks"), ...data.measures.map(({ name }) =>
    el("label", {}, el("input", { type: "checkbox", value: name, checked: chosen.has(name), onchange: () => flip(name) }), name))));
}

function keepFocus(box, rebuild) {
  const focused = document.activeElement, value = box.contains(focused) ? focused.value : null, facet = focused.dataset && focused.dataset.facet;
  rebuild();
  if (value != null) [...box.querySelectorAll("input, button")].find((each) => each.value === value && each.dataset.facet === facet)?.focus();
}

function drawFacets() {
  keepFocus($("facets"), () => $("facets").replaceChildren(...Object.entries(FACETS).map(([facet, word]) => {
    const counts = new Map();
    for (const line of data.lines) counts.set(line.of[facet], (counts.get(line.of[facet]) || 0) + 1);
    if (counts.size < 2) return null;
    const turn = (value) => { hidden[facet].has(value) ? hidden[facet].delete(value) : hidden[facet].add(value); set({}); };
    const every = (values) => { hidden[facet] = new Set(values); set({}); };
    const boxes = [...counts].sort(([a], [b]) => compare(a, b)).map(([value, count]) => el("label", {},
      el("input", { type: "checkbox", value, "data-facet": facet, checked: !hidden[facet].has(value), onchange: () => turn(value) }), `${named(facet, value)} `, el("span", { class: "quiet" }, String(count))));
    const tools = [["all", []], ["none", [...counts.keys()]]].map(([text, values]) => el("button", { type: "button", value: text, "data-facet": facet, "aria-label": `${word}: ${text}`, onclick: () => every(values) }, text));
    return el("fieldset", {}, el("legend", {}, word, ...tools), ...boxes);
  }).filter(Boolean)));
  const shown = shownLines().length;
  $("shown").textContent = `${shown} of ${data.lines.length} curves, ${data.runs.filter((_, i) => runPasses(i)).length} of ${data.runs.length} runs`;
}

function refresh() {
  document.documentElement.dataset.theme = theme();
  const one = Boolean(state.run);
  $("overview").hidden = one;
  $("run").hidden = !one;
  document.title = data.title;
  showControls();
  if (one) return drawRun();
  drawFacets();
  drawLegend();
  drawFallTable();
  drawRunTable();
  drawRunning();
  return redraw();
}

// Draw what the state says; where that is another run's page, or no longer one, go there.
let place = 0;
function turn(before) {
  if (!before && state.run) place = scrollY;
  refresh();
  if (before === state.run) return;
  scrollTo(0, state.run ? 0 : place);
  $(state.run ? "run" : "main").focus({ preventScroll: true });
}

function moved() {
  const before = state.run;
  readState();
  turn(before);
}

// A served page asks what has changed: what runs is drawn anew in place; when a point is done, all is read again, unless
// somebody types just then.
let lost = false;
async function follow() {
  const answer = await fetch("now").then((got) => (got.ok ? got.json() : null)).catch(() => null);
  const typing = document.activeElement.matches("input[type=search], select");
  if (lost === Boolean(answer)) say(answer ? "" : "The server does not answer; this is what it last said.");
  lost = !answer;
  if (answer && answer.version !== data.version && !typing) {
    sessionStorage.setItem("focus", document.activeElement.id);
    return location.reload();
  }
  if (answer && JSON.stringify(answer.running) !== JSON.stringify(data.running)) {
    data.running = answer.running;
    if (!state.run) drawRunning();
    spoil(FIGURES.healing);
    if (!state.run) drawNear();
  }
  if (answer) $("words").textContent = answer.words;
  return setTimeout(follow, data.follow);
}

$("title").textContent = data.title;
$("words").textContent = data.words;
$("foot").textContent = `Made by depthcut at ${data.made}.`;
$("link").addEventListener("click", () => navigator.clipboard.writeText(location.href).then(() => say("Copied."), () => say("Copy the address of this page.")));
$("print").addEventListener("click", () => print());
$("reset").addEventListener("click", () => { history.replaceState(null, "", location.pathname + location.search); readState(); refresh(); say("Reset."); });
$("runs-csv").addEventListener("click", saveRuns);
for (const link of [...document.querySelectorAll("nav a"), $("skip")]) {
  // The part behind the # keeps the state, so a section is gone to without it.
  link.addEventListener("click", (event) => { event.preventDefault(); const to = $(link.hash.slice(1)); to.scrollIntoView(); (to.querySelector("h2") || to).setAttribute("tabindex", "-1"); (to.querySelector("h2") || to).focus({ preventScroll: true }); });
}
addEventListener("hashchange", moved);
addEventListener("popstate", moved);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
let asShown = "";
addEventListener("beforeprint", () => {
  startPlotly();
  asShown = state.theme;
  state.theme = "light";
  document.documentElement.classList.add("printing"); // as wide as a sheet: the figures are drawn to fit
  refresh();
  for (const figure of state.run ? [] : Object.values(FIGURES)) draw(figure, true);
});
addEventListener("afterprint", () => {
  state.theme = asShown;
  document.documentElement.classList.remove("printing");
  refresh();
  document.querySelectorAll(".js-plotly-plot").forEach((node) => Plotly.Plots.resize(node));
});

readState();
$("filters").open = innerWidth > 800;
fillControls();
document.querySelectorAll("figure[data-figure]").forEach(prepare);
refresh();
document.querySelectorAll("figure[data-figure]").forEach((node) => inView.observe(node));
painted(() => { startPlotly(); state.run ? drawRun() : redraw(); document.documentElement.dataset.ready = "1"; });
if (data.follow) {
  $(sessionStorage.getItem("focus") || "none")?.focus({ preventScroll: true });
  sessionStorage.removeItem("focus");
  follow();
}
