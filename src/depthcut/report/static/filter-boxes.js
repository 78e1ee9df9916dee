// The checkboxes of the filters, and the number of curves and runs that pass.
import { data } from "./data.js";
import { byId, element, keepFocus } from "./dom.js";
import { countFacetValues, facetValueText } from "./filters.js";
import { FACETS } from "./link.js";
import { runPassesFilters, shownLines } from "./selection.js";
import { compareValues } from "./sorting.js";
import { hidden, hideFacetValues } from "./state.js";

export function drawFilters() {
  keepFocus(byId("facets"), () => {
    const boxes = Object.entries(FACETS).map(([facet, title]) => facetBox(facet, title));
    byId("facets").replaceChildren(...boxes.filter(Boolean));
  });
  const runs = data.runs.filter((_, i) => runPassesFilters(i)).length;
  byId("shown").textContent =
    `${shownLines().length} of ${data.lines.length} curves, ${runs} of ${data.runs.length} runs`;
}

/** Make the checkboxes of a facet, or null where all curves have the same value. */
function facetBox(facet, title) {
  const counts = countFacetValues(data.lines, facet);
  if (counts.size < 2) return null;
  const button = (text, values) => {
    const attributes = { type: "button", value: text, "data-facet": facet, "aria-label": `${title}: ${text}` };
    return element("button", { ...attributes, onclick: () => hideFacetValues(facet, values) }, text);
  };
  const legend = element("legend", {}, title, button("all", []), button("none", counts.keys()));
  const values = [...counts].sort(([one], [other]) => compareValues(one, other));
  return element("fieldset", {}, legend, ...values.map(([value, count]) => valueBox(facet, value, count)));
}

function valueBox(facet, value, count) {
  const checked = !hidden[facet].has(value);
  const change = () => {
    const others = [...hidden[facet]].filter((each) => each !== value);
    hideFacetValues(facet, checked ? [...others, value] : others);
  };
  const attributes = { type: "checkbox", value, "data-facet": facet, checked, onchange: change };
  const name = `${facetValueText(facet, value)} `;
  return element("label", {}, element("input", attributes), name, element("span", { class: "quiet" }, String(count)));
}
