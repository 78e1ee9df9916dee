import assert from "node:assert/strict";
import { test } from "node:test";
import { csvCell, csvDocument } from "../../src/depthcut/report/static/csv.js";

test("text that a spreadsheet would run gets an apostrophe", () => {
  for (const formula of ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "  =1", "\u00a0=1", "\ttab"]) {
    assert.equal(csvCell(formula), "'" + formula);
  }
  assert.equal(csvCell('=cmd|" /C calc"!A0'), `"'=cmd|"" /C calc""!A0"`);
  assert.equal(csvCell("\r=1"), `"'\r=1"`);
});

test("numbers stay numbers, negative ones too, and missing ones are empty", () => {
  assert.equal(csvCell(-0.5), "-0.5");
  assert.equal(csvCell(1e-7), "1e-7");
  assert.equal(csvCell(0), "0");
  for (const missing of [null, undefined, NaN, Infinity]) assert.equal(csvCell(missing), "");
});

test("commas, quotes and line ends are quoted", () => {
  assert.equal(csvCell("angular block, lora"), '"angular block, lora"');
  assert.equal(csvCell('the "best"'), '"the ""best"""');
  assert.equal(csvCell("two\nlines"), '"two\nlines"');
  assert.equal(csvCell("a=b - c"), "a=b - c");
  assert.equal(csvCell(""), "");
  assert.equal(csvCell("模型 é"), "模型 é");
});

test("a document starts with a byte order mark, and each line ends with CR LF", () => {
  assert.equal(
    csvDocument(
      ["=x", "y"],
      [
        [1, null],
        ["a,b", 2],
      ],
    ),
    '\ufeff\'=x,y\r\n1,\r\n"a,b",2\r\n',
  );
  assert.equal(csvDocument(["x"], []), "\ufeffx\r\n");
});
