// The curves that the filters let through, and what each looks like: colour-blind-safe, and told apart without colour.
const LIGHT = ["#0072B2", "#D55E00", "#007A5A", "#AA4499", "#2F9BD6", "#B8860B", "#332288", "#882255", "#5F6B2D", "#6F6F6F"];
const DARK = ["#5DB7F0", "#FF9A4D", "#3DD1A5", "#E29BD0", "#9AD9FF", "#F2C14E", "#A9A4F5", "#F08AA8", "#C5D36B", "#BDBDBD"];
const DASHES = ["solid", "dashdot", "longdash", "longdashdot"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon"];
const GLYPHS = { circle: "●", square: "■", diamond: "◆", "triangle-up": "▲", cross: "✚", x: "✖", star: "★", pentagon: "⬟" };

const unique = (values) => [...new Set(values)];
const chooser = (line) => [line.of.metric, line.of.prune, line.of.replace === "none" ? "" : line.of.replace, line.of.unit === "layer" ? "" : line.of.unit].filter(Boolean).join(" ");
const choosers = unique(data.lines.map(chooser));
const models = unique(data.lines.map((line) => line.of.model));
const recipes = unique(data.lines.map((line) => line.of.recipe)).filter(Boolean);
// Colour says what there is most to tell apart; the other two are said by dashes and marks.
const coloured = choosers.length > 1 ? chooser : models.length > 1 ? (line) => line.of.model : (line) => line.of.recipe;
const hues = unique(data.lines.map(coloured));

const theme = () => (state.theme !== "auto" ? state.theme : matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
function look(line) {
  const hue = Math.max(0, hues.indexOf(coloured(line)));
  const palette = theme() === "dark" ? DARK : LIGHT;
  const symbol = models.length > 1 ? models.indexOf(line.of.model) : Math.floor(hue / palette.length);
  return {
    color: palette[hue % palette.length],
    dash: line.of.recipe ? DASHES[recipes.indexOf(line.of.recipe) % DASHES.length] : "dot",
    symbol: SYMBOLS[Math.max(0, symbol) % SYMBOLS.length] + (line.of.recipe ? "" : "-open"),
  };
}
const title = (line) => (models.length > 1 ? line.of.model + ": " : "") + line.label;
const passes = (of) => Object.keys(FACETS).every((facet) => !hidden[facet].has(of[facet] ?? ""));
const filtered = () => data.lines.filter((line) => passes(line.of));
function shownLines() {
  const off = new Set(listed(state.off));
  return filtered().filter((line) => !off.has(line.key));
}

const dense = (line) => (line.dense == null ? null : data.dense[line.dense]);
const unhealed = new Map(data.lines.filter((line) => !line.of.recipe).map((line) => [line.partner, line]));
const labels = data.runs.map((run) => ({ ...data.parts[run.label], unit: run.unit }));

const AXES = { fraction: "share of layers cut", dropped: "layers cut", kept: "layers kept" };
const QUANTITY = { "size/parameters": "parameters", "size/weight_bytes": "bytes of weights", "size/cache_bytes": "bytes of KV cache a token", "size/flops_per_token": "FLOPs a token", "speed/tokens_per_second": "tokens/s" };
const axisName = (name) => AXES[name] || QUANTITY[name] || name.replace(/^(size|speed)\//, "").replaceAll("_", " ");
// Where on an axis the points of a curve are; a healed model weighs what the same cut weighs unhealed.
function across(line, axis) {
  if (axis === "fraction") return line.dropped.map((n) => n / line.of.depth);
  if (axis === "dropped") return line.dropped;
  if (axis === "kept") return line.dropped.map((n) => line.of.depth - n);
  const own = line.y[axis] && line.y[axis][0];
  const other = unhealed.get(line.partner);
  const theirs = other && other.y[axis] && other.y[axis][0];
  return line.dropped.map((n, i) => (own && own[i] != null ? own[i] : theirs ? theirs[other.dropped.indexOf(n)] ?? null : null));
}
function atDense(line, axis) {
  if (axis === "fraction" || axis === "dropped") return 0;
  if (axis === "kept") return line.of.depth;
  const level = dense(line);
  return level && level.y[axis] ? level.y[axis][0] : null;
}
const measureOf = (name) => data.measures.find((measure) => measure.name === name);

// A number along a curve as the figure wants it: as measured, or on the scale on which tasks and models compare.
function scored(line, name, way) {
  const level = dense(line), measure = measureOf(name);
  const raw = line.y[name];
  if (!raw) return null;
  const top = level && level.y[name];
  if (way === "raw") return { value: raw[0], stderr: raw[1], seeds: raw[2], top: top && top[0], topError: top && top[1], floor: measure.chance };
  if (measure.kind === "loss") {
    const over = line.y[name + "_over_log_v"], at = level && level.y[name + "_over_log_v"];
    if (!over) return null;
    const ratio = raw[0].map((value, i) => (value ? over[0][i] / value : null));
    return { value: over[0], stderr: raw[1].map((e, i) => (e == null ? null : e * ratio[i])), seeds: raw[2], top: at && at[0], topError: null, floor: 1 };
  }
  if (measure.chance == null || !top || top[0] <= measure.chance) return null;
  const lead = top[0] - measure.chance;
  const share = (value) => (value == null ? null : (value - measure.chance) / lead);
  return { value: raw[0].map(share), stderr: raw[1].map((e) => (e == null ? null : e / lead)), seeds: raw[2], top: 1, topError: top[1] && top[1] / lead, floor: 0 };
}
