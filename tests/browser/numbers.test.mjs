import assert from "node:assert/strict";
import { test } from "node:test";
import {
  formatInterval,
  formatIntervalInPercent,
  formatNumber,
  formatPercent,
  formatWithError,
} from "../../src/depthcut/report/static/numbers.js";

test("numbers have three or four significant digits, whatever their size", () => {
  const texts = [
    [0, "0"],
    [7, "7"],
    [-32768, "-32768"],
    [0.5, "0.500"],
    [-0.1234567, "-0.123"],
    [0.001, "0.001"],
    [0.00012345, "1.2e-4"],
    [12.34567, "12.346"],
    [123.4567, "123.5"],
    [1234.567, "1235"],
    [1e6, "1.00 M"],
    [134_515_008, "135 M"],
    [-2.5e9, "-2.50 G"],
    [70.6e9, "70.6 G"],
  ];
  for (const [value, text] of texts) assert.equal(formatNumber(value), text);
});

test("a number that is missing or not finite is empty, and text stays text", () => {
  for (const missing of [null, undefined, NaN, Infinity, -Infinity]) assert.equal(formatNumber(missing), "");
  assert.equal(formatNumber("größer"), "größer");
  assert.equal(formatNumber(""), "");
});

test("shares are percentages with one decimal", () => {
  assert.equal(formatPercent(0), "0.0 %");
  assert.equal(formatPercent(0.12345), "12.3 %");
  assert.equal(formatPercent(1), "100.0 %");
  assert.equal(formatPercent(null), "");
});

test("an error is shown where there is one", () => {
  assert.equal(formatWithError(0.5, 0.01), "0.500 ± 0.010");
  assert.equal(formatWithError(0.5, null), "0.500");
  assert.equal(formatWithError(0.5, 0), "0.500");
  assert.equal(formatWithError(null, null), "");
});

test("intervals", () => {
  assert.equal(formatInterval([0.5, 0.45, 0.55]), "50.0 % (45.0 % to 55.0 %)");
  assert.equal(formatInterval(null), "");
  assert.equal(formatIntervalInPercent([0.5, -0.05, 0.55]), "50.0 (-5.0 to 55.0)");
  assert.equal(formatIntervalInPercent(null), "");
});
