// What a cut buys, and how healing goes.
const COSTS = ["kept", ...data.quantities];
const chosenCost = () => (COSTS.includes(state.cost) ? state.cost : COSTS.find((name) => name === "size/weight_bytes") || COSTS.find((name) => name.startsWith("size/")) || "kept");
const chosenGain = () => (measureOf(state.gain) ? state.gain : (firstMeasures()[0] || (data.measures[0] || {}).name));

FIGURES.pareto = {
  says: "Score against memory or speed, and the points that no other beats",
  build() {
    const [name, cost] = [chosenGain(), chosenCost()];
    if (!name) return { note: "Nothing was measured." };
    const best = measureOf(name).kind === "accuracy" ? 1 : -1, cheap = cost.startsWith("speed/") && !/second|latency|peak|ms$/.test(cost.replace("per_second", "")) ? 1 : -1;
    const cuts = shownLines().flatMap((line) => bought(line, name, cost)), dots = [...cuts, ...uncut(name, cost)];
    if (!cuts.length) return { note: `No point that is shown has both ${name} and ${axisName(cost)}.` };
    const front = unbeaten(dots, cheap, best), ahead = new Set(front);
    const traces = [...new Set(cuts.map((p) => p.line))].flatMap((line) => [false, true].map((first) => dotted(line, cuts.filter((p) => p.line === line && ahead.has(p) === first), first, name, cost)));
    traces.push({ type: "scatter", mode: "lines", x: front.map((p) => p.x), y: front.map((p) => p.y), line: { color: ink().quiet, width: 1.6, shape: cheap < 0 ? "hv" : "vh" }, hoverinfo: "skip" });
    for (const p of dots.filter((each) => !each.line)) traces.push({ type: "scatter", mode: "markers", x: [p.x], y: [p.y], marker: { symbol: "star", size: 14, color: ink().text, line: { width: 1, color: ink().paper } }, hovertemplate: `dense ${plain(p.model)}: ${short(p.y)}<extra></extra>` });
    const layout = { height: 440, xaxis: axis({ title: { text: plain(axisName(cost)) }, ...tickformat(cost) }), yaxis: axis({ title: { text: plain(name) }, type: best < 0 && Math.max(...dots.map((p) => p.y)) > 8 ? "log" : "linear" }) };
    const rows = dots.map((p) => [p.model, p.line ? p.line.label : "dense", p.n, p.x, p.y, p.e ?? null, ahead.has(p) ? "unbeaten" : ""]);
    const note = `${front.length} of ${dots.length} points are beaten by none in both.`;
    return { traces, layout, rows, note, head: ["model", "curve", "layers cut", axisName(cost), name, "standard error", "front"], click: (point) => point.customdata != null && set({ run: data.runs[point.customdata].digest }, true) };
  },
};

// What each cut of a curve costs and scores; the dense models' points stand for no curve.
function bought(line, name, cost) {
  const score = scored(line, name, "raw"), x = across(line, cost);
  if (!score) return [];
  return line.dropped.map((n, i) => ({ line, model: line.of.model, n, x: x[i], y: score.value[i], e: score.stderr[i], run: line.runs[i][0] })).filter((p) => p.x != null && p.y != null);
}
const uncut = (name, cost) => [...new Set(shownLines().map(dense))].filter((level) => level && level.y[name]).map((level) => ({ line: null, model: level.model, n: 0, x: atDense(data.lines.find((line) => dense(line) === level), cost), y: level.y[name][0], e: level.y[name][1] })).filter((p) => p.x != null);

// Points that are beaten are small and faint.
function dotted(line, points, first, name, cost) {
  const { color, symbol } = look(line);
  const text = points.map((p) => `<b>${plain(title(line))}</b><br>${p.n} of ${line.of.depth} layers cut<br>${plain(name)}: ${plain(within(p.y, p.e))}<br>${plain(axisName(cost))}: ${short(p.x)}`);
  const bars = first ? { error_y: { type: "data", array: points.map((p) => p.e || 0), thickness: 0.8, width: 2, color } } : {};
  return { type: "scatter", mode: "markers", x: points.map((p) => p.x), y: points.map((p) => p.y), ...bars, marker: { color, symbol, size: first ? 10 : 7, opacity: first ? 1 : 0.4, line: { width: 1.4, color } }, customdata: points.map((p) => p.run), text, hovertemplate: "%{text}<extra></extra>" };
}

// Points that no other beats in both; `cheap` and `best` are 1 where more is better, -1 where less is.
function unbeaten(points, cheap, best) {
  const sorted = [...points].sort((a, b) => (b.x - a.x) * cheap || (b.y - a.y) * best);
  const front = [];
  for (const point of sorted) if (!front.length || (point.y - front[front.length - 1].y) * best > 0) front.push(point);
  return front;
}

const runPasses = (i) => passes(labels[i]);
function healingTraces(curves, pace, style) {
  return curves.map((curve) => {
    const run = data.runs[curve.run], label = labels[curve.run];
    const name = [label.model, label.metric, label.prune, label.recipe, percent(run.fraction), "seed " + run.seed].filter(Boolean).join(" ");
    const each = curve.each > 1 ? `, mean of ${curve.each} steps` : "";
    return { type: "scatter", mode: curve.loss.length > 1 ? "lines" : "markers", x: pace === "tokens" ? data.parts[curve.tokens] : curve.seconds, y: curve.loss, line: style(label), customdata: curve.loss.map(() => curve.run), hovertemplate: `<b>${plain(name)}</b><br>%{x:.4g} ${pace}: %{y:.3f}${each}<extra></extra>` };
  });
}
FIGURES.healing = {
  says: "Training loss while healing",
  build() {
    const off = new Set(listed(state.off)), shown = new Set(filtered().filter((line) => line.of.recipe && !off.has(line.key)).flatMap((line) => line.runs.flat()));
    const all = data.healing.filter((curve) => shown.has(curve.run) || (!data.lines.length && runPasses(curve.run)));
    const running = data.running.filter((each) => each.loss.length);
    if (!all.length && !running.length) return { note: data.healing.length ? "No healing curve passes the filters." : "No run was healed." };
    const curves = all.slice(0, 150);
    const lineOf = new Map(filtered().filter((line) => line.of.recipe).flatMap((line) => line.runs.flat().map((run) => [run, line])));
    const traces = healingTraces(curves, state.pace, () => ({ width: curves.length > 20 ? 1 : 1.6 }));
    traces.forEach((trace, i) => { const line = lineOf.get(curves[i].run); if (line) trace.line = { ...trace.line, color: look(line).color, dash: look(line).dash }; });
    for (const each of running) traces.push({ type: "scatter", mode: "lines+markers", x: each[state.pace], y: each.loss, line: { width: 3, color: ink().text }, marker: { size: each.loss.map((_, i) => (i === each.loss.length - 1 ? 9 : 0)), color: ink().text }, hovertemplate: `<b>${plain(each.words)}</b>, running<br>%{x:.4g} ${state.pace}: %{y:.3f}<extra></extra>` });
    const layout = { height: 420, uirevision: state.pace + state.logx, xaxis: axis({ title: { text: state.pace }, type: state.logx ? "log" : "linear" }), yaxis: axis({ title: { text: "training loss (nats a token)" } }) };
    const rows = all.flatMap((curve) => curve.loss.map((loss, i) => [data.runs[curve.run].digest, labels[curve.run].model, labels[curve.run].recipe, data.runs[curve.run].fraction, data.parts[curve.tokens][i], curve.seconds[i], loss]));
    for (const each of running) rows.push(...each.loss.map((loss, i) => [each.digest, each.words, "running", null, each.tokens[i], each.seconds[i], loss]));
    const notes = [all.length > 150 && `150 of ${all.length} healing curves are drawn; filter to see others.`, running.length && "The thick lines are of points that run now."];
    return { traces, layout, rows, head: ["run", "model", "healing", "share cut", "tokens", "seconds", "loss"], click: (point) => point.customdata != null && set({ run: data.runs[point.customdata].digest }, true), note: notes.filter(Boolean).join(" ") };
  },
};

// What is at work, with how far it is.
function drawRunning() {
  $("running").hidden = !data.running.length;
  const bar = ({ steps, words }) => (steps ? [el("progress", { max: steps[1], value: steps[0], "aria-label": "healing of " + words }), ` step ${steps[0]} of ${steps[1]}`] : ["not healing yet, or no more"]);
  const line = (each) => el("tr", {}, el("th", { scope: "row" }, each.words), el("td", {}, each.study), el("td", {}, ...bar(each)), el("td", { class: "number" }, short(each.loss.at(-1))));
  const head = el("tr", {}, ...["Running now", "Study", "Healing", "Loss"].map((word) => el("th", { scope: "col" }, word)));
  $("running").replaceChildren(scrolled("Points that run now", el("thead", {}, head), el("tbody", {}, ...data.running.map(line))));
}
