// The controls above the figures. Each has the id of its key in the state.
import { agreementEntries } from "./agreement.js";
import { axisName, CUT_AXES } from "./axes.js";
import { data } from "./data.js";
import { byId, element, keepFocus } from "./dom.js";
import { chosenTransitionTask, transitionTaskNames } from "./forest.js";
import { stripEntries } from "./layer-strips.js";
import { mapEntries } from "./score-maps.js";
import { chosenEntry, chosenMeasures } from "./selection.js";
import { setState, state } from "./state.js";
import { joinList } from "./text.js";
import { chosenCost, chosenGain, costNames } from "./tradeoff.js";

const CHECKBOXES = ["bands", "marks", "log", "logx"];
const SELECTS = ["x", "y", "panels", "fall", "strip", "map", "scale", "agree", "by", "gain", "cost", "pace", "theme"];
const SEARCHES = ["find-falls", "find-runs"];

const entryNames = (entries) => entries.map(({ name }) => name);

/** Fill a select; where there is nothing to choose from, hide it with its label. */
function fillSelect(id, values, text = (value) => value) {
  byId(id).replaceChildren(...values.map((value) => element("option", { value }, text(value))));
  byId(id).closest("label").hidden = values.length < 2;
}

export function setUpControls() {
  fillSelect("x", [...Object.keys(CUT_AXES), ...data.quantities], axisName);
  fillSelect("fall", transitionTaskNames);
  fillSelect("strip", entryNames(stripEntries));
  fillSelect("map", entryNames(mapEntries));
  fillSelect("gain", entryNames(data.measures));
  fillSelect("cost", costNames, axisName);
  byId("by").querySelector("[value=ranks]").disabled = !data.ranks.length;
  for (const id of CHECKBOXES) {
    byId(id).addEventListener("change", () => setState({ [id]: byId(id).checked ? "1" : "" }));
  }
  for (const id of SELECTS) byId(id).addEventListener("change", () => setState({ [id]: byId(id).value }));
  for (const id of SEARCHES) byId(id).addEventListener("input", () => setState({ [id]: byId(id).value }));
}

/** Set the controls to the state, or to what is drawn where the state chooses nothing. */
export function drawControls() {
  fillSelect("agree", entryNames(agreementEntries()));
  const current = {
    ...state,
    fall: chosenTransitionTask() || "",
    gain: chosenGain() || "",
    cost: chosenCost(),
    strip: chosenEntry(stripEntries, "strip")?.name ?? "",
    map: chosenEntry(mapEntries, "map")?.name ?? "",
    agree: chosenEntry(agreementEntries(), "agree")?.name ?? "",
  };
  for (const id of CHECKBOXES) byId(id).checked = Boolean(state[id]);
  for (const id of [...SELECTS, ...SEARCHES]) {
    const node = byId(id);
    if (node.value !== current[id] && document.activeElement !== node) node.value = current[id];
  }
  keepFocus(byId("measures"), fillMeasures);
}

/** Fill the checkboxes of the tasks. */
function fillMeasures() {
  const names = entryNames(data.measures);
  const chosen = new Set(chosenMeasures());
  const boxes = names.map((name) => {
    const change = () => setState({ measures: joinList(names.filter((each) => chosen.has(each) !== (each === name))) });
    const box = element("input", { type: "checkbox", value: name, checked: chosen.has(name), onchange: change });
    return element("label", {}, box, name);
  });
  byId("measures").replaceChildren(element("legend", {}, "Tasks"), ...boxes);
}
