import assert from "node:assert/strict";
import { test } from "node:test";
import { compareValues, nextSort, parseSort, sortRows } from "../../src/depthcut/report/static/sorting.js";

const firsts = (rows) => rows.map(([first]) => first);

test("missing values come last in both directions", () => {
  const rows = [[null], [2], [""], [10], [undefined], [-1]];
  assert.deepEqual(firsts(sortRows(rows, "0.up")), [-1, 2, 10, null, "", undefined]);
  assert.deepEqual(firsts(sortRows(rows, "0.down")), [10, 2, -1, null, "", undefined]);
});

test("texts sort by the numbers in them, and intervals by their estimates", () => {
  assert.deepEqual(firsts(sortRows([["layer 10"], ["layer 9"], ["layer 1"]], "0.up")), [
    "layer 1",
    "layer 9",
    "layer 10",
  ]);
  assert.ok(compareValues([0.3, 0, 1], [0.2, 0.1, 0.9]) > 0);
  assert.equal(compareValues([0.2, 0, 1], 0.2), 0);
});

test("the order of the state", () => {
  assert.deepEqual(parseSort(""), { column: -1, descending: false });
  assert.deepEqual(parseSort("0.up"), { column: 0, descending: false });
  assert.deepEqual(parseSort("12.down"), { column: 12, descending: true });
});

test("a click sorts upwards, a second one downwards, a third upwards again", () => {
  assert.equal(nextSort("", 0), "0.up");
  assert.equal(nextSort("0.up", 0), "0.down");
  assert.equal(nextSort("0.down", 0), "0.up");
  assert.equal(nextSort("0.up", 3), "3.up");
});

test("rows are not sorted in place, and without an order stay as they are", () => {
  const rows = [[2], [1]];
  assert.deepEqual(sortRows(rows, "0.up"), [[1], [2]]);
  assert.deepEqual(rows, [[2], [1]]);
  assert.equal(sortRows(rows, ""), rows);
  assert.deepEqual(sortRows([], "0.up"), []);
});
