// Score against what was cut: small multiples, bands, the dense level, chance, and the midpoints of the transitions.
const firstMeasures = () => {
  const most = [...data.measures].sort((one, other) => other.times - one.times);
  const good = most.filter((measure) => measure.kind === "accuracy" && measure.name.endsWith("/acc")).slice(0, 3);
  const losses = most.filter((measure) => measure.kind === "loss").slice(0, 1);
  return [...(byModel() ? good.slice(0, 1) : good), ...losses].map((measure) => measure.name);
};
// Many curves of several models in one panel tell nobody anything.
const byModel = () => (state.panels === "auto" ? models.length > 1 && data.lines.length > 16 : state.panels === "model");
const chosenMeasures = () => (state.measures ? listed(state.measures).filter(measureOf) : firstMeasures());

function panels(lines) {
  const names = chosenMeasures();
  if (!byModel()) return names.map((name) => ({ name, title: name, lines }));
  return unique(lines.map((line) => line.of.model)).flatMap((model) => names.map((name) => ({ name, title: `${model}: ${name}`, lines: lines.filter((line) => line.of.model === model) })));
}

const LOG_TICKS = [1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100, 200, 500, 1000];
FIGURES.curves = {
  says: "Scores against the share of layers cut, one line a way of choosing and healing",
  // `first`: only the first row, so that it is there at once.
  build(first) {
    const lines = shownLines(), shown = panels(lines).map((panel) => ({ ...panel, drawn: drawnLines(panel) })).filter((panel) => panel.drawn.length);
    if (!shown.length) return { note: lines.length ? "No curve has these numbers on this axis." : "No curve passes the filters." };
    const { place, height, columns } = grid(shown.length, 3, 300);
    const traces = [], layout = { height, annotations: [] }, rows = [];
    const part = first ? Math.min(columns, shown.length) : shown.length;
    shown.slice(0, part).forEach((panel, i) => {
      const at = place(i);
      const log = state.log && measureOf(panel.name).kind === "loss";
      layout["xaxis" + at.n] = axis({ domain: at.xDomain, anchor: at.y, title: { text: plain(axisName(state.x)) }, ...tickformat(state.x), rangemode: state.x.includes("/") ? "normal" : "tozero" });
      layout["yaxis" + at.n] = axis({ domain: at.yDomain, anchor: at.x, ...(log ? { type: "log", tickvals: LOG_TICKS } : {}), title: { text: plain(yTitle(panel.name)) } });
      layout.annotations.push(heading(panel.title, at));
      levels(panel, at, traces, layout.annotations);
      addBands(panel, at, traces);
      for (const each of panel.drawn) addLine(each, panel.name, at, traces, rows);
      addMidpoints(panel, at, traces);
    });
    const note = lines.length === 1 ? "1 curve is shown." : `${lines.length} curves are shown.`;
    const head = ["task", "model", "curve", axisName(state.x), "layers cut", "value", "standard error", "seeds"];
    return { traces, layout, rows, head, note, partial: part < shown.length, click: (point) => point.customdata != null && set({ run: data.runs[point.customdata].digest }, true) };
  },
};

function yTitle(name) {
  const kind = measureOf(name).kind;
  if (state.y === "share") return kind === "loss" ? "loss / log V" : "share of dense above chance";
  return kind === "loss" ? "loss (nats a token)" : kind === "accuracy" ? "accuracy" : name.split("/").pop();
}

function drawnLines(panel) {
  const found = [];
  for (const line of panel.lines) {
    const score = scored(line, panel.name, state.y), x = across(line, state.x), start = atDense(line, state.x);
    if (!score) continue;
    const points = x.map((at, i) => ({ x: at, y: score.value[i], e: score.stderr[i], seeds: score.seeds[i], runs: line.runs[i], n: line.dropped[i] })).filter((p) => p.x != null && p.y != null);
    if (!points.length) continue;
    // A cut of nothing is the dense model, unless it was healed.
    if (!line.of.recipe && score.top != null && start != null) points.unshift({ x: start, y: score.top, e: score.topError, seeds: 1, runs: [], n: 0 });
    found.push({ line, score, points });
  }
  return found;
}

// One trace for all bands of a colour, with gaps between them: plotly's time goes by traces.
function addBands(panel, at, traces) {
  const found = new Map();
  for (const { line, points } of state.bands ? panel.drawn : []) {
    const banded = points.filter((p) => p.e != null), { color } = look(line), back = banded.slice().reverse();
    if (banded.length < 2) continue;
    if (!found.has(color)) found.set(color, { type: "scatter", xaxis: at.x, yaxis: at.y, x: [], y: [], fill: "toself", fillcolor: color, opacity: 0.16, line: { width: 0 }, mode: "lines", hoverinfo: "skip" });
    found.get(color).x.push(...banded.map((p) => p.x), ...back.map((p) => p.x), null);
    found.get(color).y.push(...banded.map((p) => p.y + 1.96 * p.e), ...back.map((p) => p.y - 1.96 * p.e), null);
  }
  traces.push(...found.values());
}

function addLine({ line, points }, name, at, traces, rows) {
  const style = look(line);
  const text = points.map((p) => `<b>${plain(title(line))}</b><br>${plain(name)}: ${plain(within(p.y, p.e))}<br>${p.n} of ${line.of.depth} layers cut (${percent(p.n / line.of.depth)})<br>${p.n || line.of.recipe ? (p.seeds === 1 ? "1 seed" : p.seeds + " seeds") : "dense model"}`);
  traces.push({ type: "scatter", xaxis: at.x, yaxis: at.y, x: points.map((p) => p.x), y: points.map((p) => p.y), mode: "lines+markers", line: { color: style.color, dash: style.dash, width: 2 }, marker: { color: style.color, symbol: style.symbol, size: 7, line: { width: 1.4, color: style.color } }, text, hovertemplate: "%{text}<extra></extra>", customdata: points.map((p) => p.runs[0] ?? null) });
  for (const p of points) rows.push([name, line.of.model, line.label, p.x, p.n, p.y, p.e, p.seeds]);
}

// One trace for all midpoints of a panel.
function addMidpoints(panel, at, traces) {
  if (!state.marks || (state.x !== "fraction" && state.x !== "dropped")) return;
  const marks = [];
  for (const { line, score } of panel.drawn) {
    const fall = fallOf(line, panel.name);
    if (!fall || !fall.midpoint || score.floor == null || score.top == null) continue;
    const scale = state.x === "dropped" ? line.of.depth : 1;
    marks.push({ at: fall.midpoint.map((value) => value * scale), y: middle(line, panel.name, score), color: look(line).color, text: `<b>${plain(title(line))}</b><br>midpoint ${interval(fall.midpoint)}` });
  }
  if (!marks.length) return;
  traces.push({
    type: "scatter", mode: "markers", xaxis: at.x, yaxis: at.y, x: marks.map((m) => m.at[0]), y: marks.map((m) => m.y), text: marks.map((m) => m.text), hovertemplate: "%{text}<extra></extra>",
    marker: { symbol: "diamond-tall", size: 12, color: marks.map((m) => m.color), line: { color: ink().paper, width: 1 } }, error_x: bars(marks.map((m) => m.at)),
  });
}

// Where half of the lead is lost, on the axis as it is: of a loss half way from dense to log V.
function middle(line, name, score) {
  if (measureOf(name).kind !== "loss" || state.y === "share") return (score.floor + score.top) / 2;
  const level = dense(line), over = level.y[name + "_over_log_v"];
  return (score.top + score.top / over[0]) / 2;
}

// One trace for all levels of a panel, with gaps between them.
function levels(panel, at, traces, annotations) {
  const seen = new Set(), many = new Set(panel.drawn.map((each) => each.line.of.model)).size > 1;
  const span = panel.drawn.flatMap((each) => each.points.map((p) => p.x)), high = Math.max(...span);
  const from = state.x.includes("/") ? Math.min(...span) : Math.min(0, ...span);
  const log = state.log && measureOf(panel.name).kind === "loss", color = ink().quiet;
  const x = [], y = [], text = [];
  const flat = (level, words) => {
    const [left, xanchor] = words === "chance" ? [from, "left"] : [high, "right"];
    annotations.push({ x: left, y: log ? Math.log10(level) : level, xref: at.x, yref: at.y, text: plain(words), showarrow: false, xanchor, yanchor: "bottom", font: { size: 10.5, color } });
    x.push(from, high, null), y.push(level, level, null), text.push(...Array(3).fill(`${plain(words)}: ${short(level)}`));
  };
  for (const { line, score } of panel.drawn) {
    const key = line.of.model + line.dense;
    if (score.top != null && !seen.has(key)) flat(score.top, many ? `dense ${line.of.model}` : "dense");
    if (score.floor != null && measureOf(panel.name).kind === "accuracy" && !seen.has("chance")) flat(score.floor, "chance"), seen.add("chance");
    seen.add(key);
  }
  if (x.length) traces.push({ type: "scatter", x, y, text, xaxis: at.x, yaxis: at.y, mode: "lines", line: { color, width: 1.2, dash: "1px,3px" }, hovertemplate: "%{text}<extra></extra>" });
}

// Where each model has panels of its own, one entry is of all models' curves of that name.
function drawLegend() {
  const off = new Set(listed(state.off)), lines = filtered(), groups = new Map(), name = byModel() ? (line) => line.label : title;
  for (const line of lines) groups.set(name(line), [...(groups.get(name(line)) || []), line]);
  const isOff = (group) => group.every((line) => off.has(line.key));
  const flip = (group) => {
    const was = isOff(group);
    for (const { key } of group) was ? off.delete(key) : off.add(key);
    set({ off: [...off].join("~") });
    document.querySelector(`#legend [data-key="${group[0].key}"]`).focus();
  };
  const buttons = [...groups].slice(0, 120).map(([words, group]) => {
    const swatch = sample(look(group[0]), !byModel());
    return el("button", { type: "button", "data-key": group[0].key, "aria-pressed": String(!isOff(group)), onclick: () => flip(group) }, swatch, words);
  });
  const all = lines.length > 1 ? [el("button", { type: "button", id: "legend-all", onclick: () => set({ off: "" }) }, "all"), el("button", { type: "button", id: "legend-none", onclick: () => set({ off: lines.map((line) => line.key).join("~") }) }, "none")] : [];
  $("legend").replaceChildren(...all, ...buttons, ...(groups.size > 120 ? [el("span", { class: "quiet" }, `and ${groups.size - 120} more; filter to see them here`)] : []));
}

// A stretch of a line as the figure draws it.
const PATTERN = { solid: "", dot: "2 2.5", dashdot: "7 2.5 2 2.5", longdash: "9 3", longdashdot: "9 2.5 2 2.5" };
function sample({ color, dash, symbol }, marked) {
  const node = el("span", { "aria-hidden": "true" }), svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS(svg.namespaceURI, "line");
  for (const [key, value] of Object.entries({ width: marked ? 22 : 32, height: 10 })) svg.setAttribute(key, value);
  for (const [key, value] of Object.entries({ x2: "100%", y1: 5, y2: 5, stroke: color, "stroke-width": 2, "stroke-dasharray": PATTERN[dash] })) line.setAttribute(key, value);
  svg.append(line);
  node.style.color = color;
  node.append(svg, marked ? ` ${GLYPHS[symbol.replace("-open", "")]}` : "");
  return node;
}
