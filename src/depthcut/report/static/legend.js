// The legend of the curves: a button for each switches it on or off.
import { byId, element } from "./dom.js";
import { filteredLines, panelsPerModel } from "./selection.js";
import { setState, state } from "./state.js";
import { symbolGlyph } from "./styles.js";
import { joinList, splitList } from "./text.js";
import { lineStyle, lineTitle } from "./theme.js";

const MOST_ENTRIES = 120;
const DASH_ARRAYS = { solid: "", dot: "2 2.5", dashdot: "7 2.5 2 2.5", longdash: "9 3", longdashdot: "9 2.5 2 2.5" };

/** Fill the legend. With separate panels for each model, an entry switches the curves of all models. */
export function drawLegend() {
  const lines = filteredLines();
  const entries = new Map();
  for (const line of lines) {
    const name = panelsPerModel() ? line.label : lineTitle(line);
    entries.set(name, [...(entries.get(name) || []), line]);
  }
  const off = new Set(splitList(state.off));
  const buttons = [...entries].slice(0, MOST_ENTRIES).map(([name, group]) => entryButton(name, group, off));
  const rest = `and ${entries.size - MOST_ENTRIES} more; filter to see them here`;
  byId("legend").replaceChildren(
    ...(lines.length > 1 ? allAndNone(lines) : []),
    ...buttons,
    ...(entries.size > MOST_ENTRIES ? [element("span", { class: "quiet" }, rest)] : []),
  );
}

function entryButton(name, lines, off) {
  const isOff = lines.every(({ key }) => off.has(key));
  const [{ key }] = lines;
  const click = () => {
    const changed = new Set(off);
    for (const line of lines) isOff ? changed.delete(line.key) : changed.add(line.key);
    setState({ off: joinList(changed) });
    document.querySelector(`#legend [data-key="${key}"]`).focus();
  };
  const attributes = { type: "button", "data-key": key, "aria-pressed": String(!isOff), onclick: click };
  return element("button", attributes, lineSample(lineStyle(lines[0]), !panelsPerModel()), name);
}

function allAndNone(lines) {
  const button = (id, off, text) => element("button", { type: "button", id, onclick: () => setState({ off }) }, text);
  return [button("legend-all", "", "all"), button("legend-none", joinList(lines.map(({ key }) => key)), "none")];
}

/** Make a short line with a marker, drawn as in the figure. */
function lineSample({ color, dash, symbol }, marked) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS(svg.namespaceURI, "line");
  const strokes = { stroke: color, "stroke-width": 2, "stroke-dasharray": DASH_ARRAYS[dash] };
  setAttributes(svg, { width: marked ? 22 : 32, height: 10 });
  setAttributes(line, { x2: "100%", y1: 5, y2: 5, ...strokes });
  svg.append(line);
  const node = element("span", { "aria-hidden": "true" }, svg, marked ? ` ${symbolGlyph(symbol)}` : "");
  node.style.color = color;
  return node;
}

function setAttributes(node, attributes) {
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
}
