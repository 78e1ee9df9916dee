// Tables: scrolling, of names and values, and sortable by their column heads.
import { csvDocument } from "./csv.js";
import { byId, element, saveFile } from "./dom.js";
import { formatNumber } from "./numbers.js";
import { nextSort, parseSort, sortRows } from "./sorting.js";
import { setState, state } from "./state.js";

const FIRST_ROWS = 200;
const rowLimits = new Map();

export const saveCsv = (name, head, rows) => saveFile(name + ".csv", csvDocument(head, rows), "text/csv");

export const hiddenCaption = (text) => element("caption", { class: "unseen" }, text);

/** Make a table in a box that scrolls, also by keyboard. Its caption is for screen readers. */
export function scrollingTable(caption, ...parts) {
  const box = { class: "scroll", tabindex: "0", role: "region", "aria-label": caption };
  return element("div", box, element("table", {}, hiddenCaption(caption), ...parts));
}

/** Make a table of names and values. */
export function pairTable(caption, pairs) {
  const rows = pairs.map(([name, value]) =>
    element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value == null ? "" : String(value))),
  );
  return element("table", {}, hiddenCaption(caption), element("tbody", {}, ...rows));
}

/**
 * Fill the element `id` with a table that is sorted by clicks on its column heads.
 *
 * Rows are arrays of values; the first names the row. A column is {head, number, wide, show}. The state keeps the order
 * under `sortKey`.
 */
export function fillSortableTable(table) {
  const { id, caption, columns, rows, sortKey } = table;
  const limit = rowLimits.get(id) || FIRST_ROWS;
  const sorted = sortRows(rows, state[sortKey]);
  const head = columns.map((column, i) => sortableHead(table, column, i));
  const body = sorted.slice(0, limit).map((row) => tableRow(columns, row));
  const parts = [element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body)];
  const rest = sorted.length > limit ? [moreRows(table, limit)] : [];
  byId(id).replaceChildren(scrollingTable(caption, ...parts), ...rest);
  byId(id + "-count").textContent = rows.length === 1 ? "1 row" : `${rows.length} rows`;
}

function sortableHead({ id, sortKey }, column, i) {
  const sort = parseSort(state[sortKey]);
  const direction = sort.column !== i ? "none" : sort.descending ? "descending" : "ascending";
  const click = () => {
    setState({ [sortKey]: nextSort(state[sortKey], i) });
    document.querySelectorAll(`#${id} thead button`)[i].focus();
  };
  const mark = { ascending: " ▴", descending: " ▾" }[direction];
  const arrow = mark && element("span", { "aria-hidden": "true" }, mark);
  const button = element("button", { type: "button", onclick: click }, column.head, arrow);
  return element("th", { scope: "col", "aria-sort": direction, class: column.number && "number" }, button);
}

function tableRow(columns, row) {
  const cells = columns.map(({ number, wide, show = formatNumber }, i) =>
    element(i ? "td" : "th", { scope: !i && "row", class: number ? "number" : wide && "wide" }, show(row[i])),
  );
  return element("tr", {}, ...cells);
}

function moreRows(table, limit) {
  const click = () => {
    rowLimits.set(table.id, limit * 5);
    fillSortableTable(table);
  };
  const button = element("button", { type: "button", onclick: click }, "Show more");
  return element("p", {}, `${limit} of ${table.rows.length} rows. `, button);
}
