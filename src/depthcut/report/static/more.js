// What a cut buys, and how healing goes.
const COSTS = ["kept", ...data.quantities];
const chosenCost = () => (COSTS.includes(state.cost) ? state.cost : COSTS.find((name) => name === "size/weight_bytes") || COSTS.find((name) => name.startsWith("size/")) || "kept");
const chosenGain = () => (measureOf(state.gain) ? state.gain : (firstMeasures()[0] || (data.measures[0] || {}).name));

FIGURES.pareto = {
  says: "Score against memory or speed, and the points that no other beats",
  build() {
    const [name, cost] = [chosenGain(), chosenCost()];
    if (!name) return { note: "Nothing was measured." };
    const best = measureOf(name).kind === "accuracy" ? 1 : -1, cheap = cost.startsWith("speed/") && !/second|latency|ms$/.test(cost.replace("per_second", "")) ? 1 : -1;
    const points = [], traces = [];
    for (const line of shownLines()) {
      const score = scored(line, name, "raw"), x = across(line, cost);
      if (!score) continue;
      const own = line.dropped.map((n, i) => ({ x: x[i], y: score.value[i], e: score.stderr[i], n, line, run: line.runs[i][0] })).filter((p) => p.x != null && p.y != null);
      if (!own.length) continue;
      const style = look(line);
      traces.push({ type: "scatter", mode: "markers", x: own.map((p) => p.x), y: own.map((p) => p.y), error_y: { type: "data", array: own.map((p) => p.e || 0), thickness: 0.8, width: 2, color: style.color }, marker: { color: style.color, symbol: style.symbol, size: 8, line: { width: 1.4, color: style.color } }, customdata: own.map((p) => p.run), text: own.map((p) => `<b>${plain(title(line))}</b><br>${p.n} of ${line.of.depth} layers cut<br>${plain(name)}: ${plain(within(p.y, p.e))}<br>${plain(axisName(cost))}: ${short(p.x)}`), hovertemplate: "%{text}<extra></extra>" });
      points.push(...own);
    }
    const dots = points.slice();
    for (const level of new Set(shownLines().map((line) => dense(line)).filter(Boolean))) {
      const line = data.lines.find((each) => dense(each) === level), x = atDense(line, cost);
      if (x == null || !level.y[name]) continue;
      dots.push({ x, y: level.y[name][0], n: 0, line: null, of: level });
      traces.push({ type: "scatter", mode: "markers", x: [x], y: [level.y[name][0]], marker: { symbol: "star", size: 14, color: ink().text }, hovertemplate: `dense ${plain(level.model)}: ${short(level.y[name][0])}<extra></extra>` });
    }
    if (!points.length) return { note: `No point that is shown has both ${name} and ${axisName(cost)}.` };
    const front = unbeaten(dots, cheap, best);
    traces.unshift({ type: "scatter", mode: "lines", x: front.map((p) => p.x), y: front.map((p) => p.y), line: { color: ink().quiet, width: 1.6, shape: cheap < 0 ? "hv" : "vh" }, hoverinfo: "skip" });
    const layout = { height: 440, xaxis: axis({ title: { text: plain(axisName(cost)) } }), yaxis: axis({ title: { text: plain(name) }, type: best < 0 && Math.max(...dots.map((p) => p.y)) > 8 ? "log" : "linear" }) };
    const rows = dots.map((p) => [p.line ? p.line.of.model : p.of.model, p.line ? p.line.label : "dense", p.n, p.x, p.y, p.e ?? null, front.includes(p) ? "unbeaten" : ""]);
    return { traces, layout, rows, head: ["model", "curve", "layers cut", axisName(cost), name, "standard error", "front"], click: (point) => point.customdata != null && set({ run: data.runs[point.customdata].digest }, true) };
  },
};

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
    if (!all.length) return { note: data.healing.length ? "No healing curve passes the filters." : "No run was healed." };
    const curves = all.slice(0, 150);
    const lineOf = new Map(filtered().filter((line) => line.of.recipe).flatMap((line) => line.runs.flat().map((run) => [run, line])));
    const traces = healingTraces(curves, state.pace, () => ({ width: 1.6 }));
    traces.forEach((trace, i) => { const line = lineOf.get(curves[i].run); if (line) trace.line = { ...trace.line, color: look(line).color, dash: look(line).dash }; });
    const layout = { height: 420, xaxis: axis({ title: { text: state.pace }, type: state.logx ? "log" : "linear" }), yaxis: axis({ title: { text: "training loss (nats a token)" } }) };
    const rows = all.flatMap((curve) => curve.loss.map((loss, i) => [data.runs[curve.run].digest, labels[curve.run].model, labels[curve.run].recipe, data.runs[curve.run].fraction, data.parts[curve.tokens][i], curve.seconds[i], loss]));
    return { traces, layout, rows, head: ["run", "model", "healing", "share cut", "tokens", "seconds", "loss"], click: (point) => set({ run: data.runs[point.customdata].digest }, true), note: all.length > 150 ? `150 of ${all.length} healing curves are drawn; filter to see others.` : "" };
  },
};
