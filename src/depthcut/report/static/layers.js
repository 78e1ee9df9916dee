// Which layers go, what the metric says of all blocks, and how far the ways of choosing agree.
const shades = () => [[0, ink().empty], [1, ink().full]];
// What is chosen in a select, by its name; else the first whose model passes the filters.
const pick = (list, key) => list.find((each) => each.name === state[key]) || list.find((each) => !hidden.model.has(each.model)) || list[0];
const withUnit = (each, words) => ({ ...each, name: words + (each.unit === "layer" ? "" : ` (${each.unit})`) });
const STRIPS = unique(data.strips.map((strip) => strip.model)).map((model) => ({ name: model, model }));
const MAPS = data.maps.map((map) => withUnit(map, `${map.model}: ${map.metric}`));
const OVERLAPS = data.agreements.map((each) => withUnit(each, each.model));
const RANKS = data.ranks.map((each) => withUnit(each, each.model));

FIGURES.strips = {
  says: "Which layers each way of choosing drops, by the size of the cut",
  build() {
    const model = (pick(STRIPS, "strip") || {}).name;
    const kept = new Set(filtered().map((line) => [line.of.model, [line.of.metric, line.of.prune].filter(Boolean).join(" "), line.of.unit].join("~")));
    const all = data.strips.filter((strip) => strip.model === model && (!data.lines.length || kept.has([strip.model, strip.chooser, strip.unit].join("~"))));
    if (!all.length) return { note: "No cut passes the filters." };
    const shown = all.slice(0, 24), tall = Math.max(...shown.map((strip) => Object.keys(strip.rows).length));
    const { place, height } = grid(shown.length, 2, 70 + (tall > 20 ? 13 : 15) * tall, 0.09);
    const traces = [], layout = { height, annotations: [], margin: { l: 78, r: 16, t: 28, b: 44 } }, rows = [];
    shown.forEach((strip, i) => {
      const at = place(i), sizes = Object.keys(strip.rows).map(Number).sort((a, b) => a - b);
      const name = strip.chooser + (strip.unit === "layer" ? "" : ` (${strip.unit})`);
      traces.push({ type: "heatmap", xaxis: at.x, yaxis: at.y, z: sizes.map((n) => strip.rows[n]), x: strip.rows[sizes[0]].map((_, layer) => layer), y: sizes.map((n) => percent(n / strip.depth)), zmin: 0, zmax: 1, colorscale: shades(), showscale: false, xgap: 1, ygap: 1, hovertemplate: "layer %{x}, cut %{y}: %{z:.0%}<extra></extra>" });
      layout["xaxis" + at.n] = axis({ domain: at.xDomain, anchor: at.y, showgrid: false, title: at.bottom ? { text: "layer" } : undefined });
      layout["yaxis" + at.n] = axis({ domain: at.yDomain, anchor: at.x, showgrid: false, type: "category", title: at.left ? { text: "share cut" } : undefined });
      layout.annotations.push(heading(clipped(name), at));
      for (const n of sizes) rows.push([model, name, n, n / strip.depth, strip.rows[n].map((share, layer) => [share, layer]).filter(([share]) => share).map(([share, layer]) => (share === 1 ? layer : `${layer} (${percent(share)})`)).join(" ")]);
    });
    return { traces, layout, rows, head: ["model", "choice", "layers cut", "share", "which"], note: all.length > 24 ? `The first 24 of ${all.length} ways of choosing; filter to see others.` : "" };
  },
};

FIGURES.maps = {
  says: "Scores of all blocks of layers, by their first layer and their size",
  build() {
    const map = pick(MAPS, "map");
    if (!map) return { note: "No record leads to scores that lie in the cache beside its study (outputs/cache/scores)." };
    const z = state.scale === "rows" ? map.normalised : map.scores, sizes = map.scores.map((_, i) => i + 1), starts = map.layers.map((_, i) => i);
    const traces = [{ type: "heatmap", z, x: starts, y: sizes, colorscale: "Viridis", hoverongaps: false, customdata: map.scores, colorbar: { title: { font: { size: 12.5 }, text: state.scale === "rows" ? "within<br>its size" : "score" }, thickness: 14, outlinewidth: 0 }, hovertemplate: "layers %{x} on, %{y} in all<br>score %{customdata:.4g}<extra></extra>" }];
    const chosen = Object.entries(map.chosen).map(([n, start]) => [Number(n), start]);
    traces.push({ type: "scatter", mode: "markers", x: chosen.map(([, start]) => start), y: chosen.map(([n]) => n), marker: { symbol: "circle-open", size: 11, color: "#ffffff", line: { width: 2.5, color: "#ffffff" } }, hovertemplate: "cut: layers %{x} on, %{y} in all<extra></extra>" });
    traces.push({ type: "scatter", mode: "markers", x: chosen.map(([, start]) => start), y: chosen.map(([n]) => n), marker: { symbol: "circle-open", size: 7, color: "#000000", line: { width: 1.5, color: "#000000" } }, hoverinfo: "skip" });
    const layout = { height: 480, margin: { l: 56, r: 16, t: 16, b: 48 }, xaxis: axis({ title: { text: "first layer of the block" }, showgrid: false, range: [-0.5, map.depth - 0.5] }), yaxis: axis({ title: { text: "layers in the block" }, showgrid: false, range: [0.5, map.depth + 0.5] }) };
    const rows = map.scores.flatMap((row, i) => row.map((score, start) => [map.model, map.metric, i + 1, start, score, map.normalised[i][start], map.chosen[i + 1] === start ? "cut" : ""])).filter((row) => row[4] != null);
    return { traces, layout, rows, head: ["model", "metric", "layers in the block", "first layer", "score", "within its size", "chosen"] };
  },
};

FIGURES.agreement = {
  says: "How many dropped layers the ways of choosing have in common, or how alike metrics rank the layers",
  build() {
    const overlap = state.by === "overlap", found = pick(overlap ? OVERLAPS : RANKS, "agree");
    $("agreement-note").textContent = !found ? "" : overlap
      ? "Mean share of the dropped layers that two ways have in common, over the sizes that both cut; in brackets what two random choices would have."
      : "Spearman's correlation of the scores of single layers; lower scores go first.";
    if (!found) return { note: overlap ? "There is one way of choosing only, or none: nothing to compare." : "No two metrics' scores of one model are at hand." };
    const names = (overlap ? found.choosers : found.metrics).map((name) => clipped(name)), z = overlap ? found.overlap : found.correlation;
    const text = z.map((row, i) => row.map((value, j) => (value == null ? "–" : value.toFixed(2) + (overlap && i !== j ? `<br>(${found.luck[i][j].toFixed(2)})` : ""))));
    const full = names.length <= 14;
    const traces = [{ type: "heatmap", z, x: names.map(plain), y: names.map(plain), zmin: overlap ? 0 : -1, zmax: 1, colorscale: overlap ? shades() : "RdBu", xgap: 1, ygap: 1, colorbar: { thickness: 14, outlinewidth: 0 }, text, texttemplate: full ? "%{text}" : "", hovertemplate: "%{y}<br>%{x}<br>%{text}<extra></extra>" }];
    const layout = { height: 170 + 44 * names.length, margin: { l: 20, r: 16, t: 16, b: 20 }, xaxis: axis({ showgrid: false, automargin: true, type: "category", tickangle: names.length > 5 || $("main").clientWidth < 600 ? -40 : 0 }), yaxis: axis({ showgrid: false, automargin: true, type: "category", autorange: "reversed" }) };
    const rows = z.flatMap((row, i) => row.map((value, j) => [found.model, names[i], names[j], value, overlap ? found.luck[i][j] : null, overlap ? found.sizes[i][j] : null]));
    return { traces, layout, rows, head: ["model", "one", "other", overlap ? "overlap" : "rank correlation", "by luck", "sizes"] };
  },
};
