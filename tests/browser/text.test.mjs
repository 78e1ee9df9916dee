import assert from "node:assert/strict";
import { test } from "node:test";
import {
  clipText,
  escapeForPlotly,
  joinList,
  matchesWords,
  searchWords,
  splitList,
  unique,
} from "../../src/depthcut/report/static/text.js";

test("lists of the link", () => {
  assert.deepEqual(splitList(""), []);
  assert.deepEqual(splitList("piqa/acc~boolq/acc"), ["piqa/acc", "boolq/acc"]);
  assert.equal(joinList(new Set(["a", "b"])), "a~b");
  assert.deepEqual(splitList(joinList([])), []);
});

test("unique keeps the first of each", () => {
  assert.deepEqual(unique(["b", "a", "b", null, null]), ["b", "a", null]);
  assert.deepEqual(unique([]), []);
});

test("plotly reads neither tags nor entities nor formulas in a text", () => {
  assert.equal(escapeForPlotly("<b>x</b> & $y$"), "&lt;b&gt;x&lt;/b&gt; &amp; &#36;y&#36;");
  assert.equal(escapeForPlotly("&lt;"), "&amp;lt;");
  assert.equal(escapeForPlotly(3), "3");
});

test("long texts end with an ellipsis and have the length asked for", () => {
  assert.equal(clipText("abcdef", 6), "abcdef");
  assert.equal(clipText("abcdefg", 6), "abcde…");
  assert.equal(clipText("", 6), "");
});

test("a search finds rows in which each word occurs, in whatever case", () => {
  const row = ["Phi_2", "angular block", "not healed", null, 0.25, [0.1, 0, 0.2]];
  assert.ok(matchesWords(searchWords("  BLOCK phi "), row));
  assert.ok(matchesWords(searchWords(""), row));
  assert.ok(matchesWords(searchWords("ÄRGER"), ["ärger"]));
  assert.ok(!matchesWords(searchWords("block lora"), row));
  assert.ok(!matchesWords(searchWords("0.25"), row), "numbers are not searched");
  assert.ok(!matchesWords(searchWords("phi_2angular"), row), "a word does not reach over two cells");
  assert.ok(!matchesWords(["x"], []));
});
