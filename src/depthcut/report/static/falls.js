// The transitions: a forest plot to compare, and a table to sort and filter.
const fallOf = (() => {
  const found = new Map(data.falls.map((fall) => [fall.line + "~" + fall.name, fall]));
  const places = new Map(data.lines.map((line, i) => [line, i]));
  return (line, name) => found.get(places.get(line) + "~" + name);
})();
const fallNames = unique(data.falls.map((fall) => fall.name));
const chosenFall = () => (fallNames.includes(state.fall) ? state.fall : fallNames.find((name) => data.falls.some((fall) => fall.name === name && !fall.why)) || fallNames[0]);
const MOST = 60;

FIGURES.forest = {
  says: "Transitions with their 95 % intervals, one row a curve",
  build() {
    const name = chosenFall();
    const all = shownLines().map((line) => ({ line, fall: fallOf(line, name) })).filter((each) => each.fall);
    if (!all.length) return { note: name ? "No curve that is shown has this number." : "No accuracy and no loss was measured along a curve." };
    all.sort((a, b) => (b.fall.midpoint ? 1 : 0) - (a.fall.midpoint ? 1 : 0) || (a.fall.midpoint && b.fall.midpoint ? b.fall.midpoint[0] - a.fall.midpoint[0] : 0));
    const shown = all.slice(0, MOST), seen = all.filter((each) => each.fall.midpoint).length;
    const { quiet } = ink(), traces = [], annotations = [], marks = [];
    const place = (i) => shown.length - 1 - i;
    shown.forEach(({ line, fall }, i) => {
      const style = look(line), y = [place(i)];
      if (!fall.midpoint) {
        annotations.push({ x: 0, y: y[0], text: plain($("main").clientWidth < 600 ? data.reasons[fall.why].split(":")[0] : data.reasons[fall.why]), showarrow: false, xanchor: "left", font: { color: quiet, size: 11.5 } });
        return;
      }
      marks.push({ fall, y: y[0], color: style.color, symbol: style.symbol, name: plain(title(line)) });
    });
    const column = (key, words) => marks.map((m) => `<b>${m.name}</b><br>${key} ${interval(m.fall[key])}${words(m)}`);
    const trace = (key, down, marker, words) => ({ type: "scatter", mode: "markers", x: marks.map((m) => m.fall[key][0]), y: marks.map((m) => m.y - down), error_x: bars(marks.map((m) => m.fall[key])), marker, text: column(key, words), hovertemplate: "%{text}<extra></extra>" });
    const colors = marks.map((m) => m.color);
    if (marks.length) {
      traces.push(trace("onset", 0.24, { symbol: "triangle-right-open", size: 9, color: colors }, () => ""));
      traces.push(trace("midpoint", 0, { symbol: marks.map((m) => m.symbol), size: 10, color: colors, line: { width: 1.6, color: colors } }, (m) => `<br>width ${interval(m.fall.width)}`));
    }
    if (!traces.length) traces.push({ type: "scatter", mode: "markers", x: [0], y: [0], marker: { opacity: 0 }, hoverinfo: "skip" });
    const names = shown.map(({ line }) => clipped(title(line)));
    const layout = {
      height: 90 + 30 * shown.length, annotations, margin: { l: 20, r: 30, t: 56, b: 16 },
      xaxis: axis({ side: "top", title: { text: "share of layers cut" }, tickformat: ".0%", range: [-0.01, 1] }),
      yaxis: axis({ tickvals: shown.map((_, i) => place(i)), ticktext: names.map(plain), range: [-0.7, shown.length - 0.3], automargin: true }),
    };
    const more = all.length > MOST ? ` The first ${MOST} are drawn; the table has all.` : "";
    const rows = all.map(({ line, fall }) => [line.of.model, line.label, name, ...spread(fall.midpoint), ...spread(fall.onset), ...spread(fall.width), ...spread(fall.moved), data.reasons[fall.why]]);
    const head = ["model", "curve", "task", ...["midpoint", "onset", "width", "moved by healing"].flatMap((word) => [word, word + " low", word + " high"]), "note"];
    return { traces, layout, rows, head, note: `A transition is seen in ${seen} of ${all.length} curves.${more}` };
  },
};

// Error bars out of [estimate, low, high].
const bars = (threes) => ({ type: "data", symmetric: false, array: threes.map(([at, , high]) => high - at), arrayminus: threes.map(([at, low]) => at - low), color: ink().quiet, thickness: 1.3, width: 4 });
const spread = (three) => three || [null, null, null];
const interval = (three) => (three ? `${percent(three[0])} (${percent(three[1])} to ${percent(three[2])})` : "");
const brief = (three) => (three ? `${(100 * three[0]).toFixed(1)} (${(100 * three[1]).toFixed(1)} to ${(100 * three[2]).toFixed(1)})` : "");
const clipped = (text) => {
  const most = $("main").clientWidth < 600 ? 26 : 58;
  return text.length > most ? text.slice(0, most - 1) + "…" : text;
};

function fallRows() {
  const wanted = state["find-falls"].toLowerCase().split(/\s+/).filter(Boolean);
  const shown = new Set(shownLines());
  return data.falls.filter((fall) => shown.has(data.lines[fall.line])).map((fall) => {
    const line = data.lines[fall.line];
    return [line.of.model, chooser(line), line.of.recipe || "not healed", fall.name, fall.midpoint, fall.onset, fall.width, fall.moved, data.reasons[fall.why] + (fall.rough > 2 ? (fall.why ? "; " : "") + `scatters ${fall.rough.toFixed(1)} times its errors` : "")];
  }).filter((row) => wanted.every((word) => row.some((value) => typeof value === "string" && value.toLowerCase().includes(word))))
    .sort((a, b) => !a[4] - !b[4]);
}

const shownMost = {};
function drawFallTable() {
  const columns = ["Model", "Choice", "Healing", "Task"].map((head) => ({ head }))
    .concat(["Midpoint, %", "Onset, %", "Width, %", "Moved by healing, %"].map((head) => ({ head, number: true, show: brief })), [{ head: "Note", wide: true }]);
  sortable("falls-table", "Transitions: a row a curve and task", columns, fallRows(), shownMost, "sort-falls");
}
