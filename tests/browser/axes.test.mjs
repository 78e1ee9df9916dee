import assert from "node:assert/strict";
import { test } from "node:test";
import {
  axisName,
  axisPositions,
  axisTickFormat,
  densePosition,
  LOG_TICKS,
} from "../../src/depthcut/report/static/axes.js";

const line = { dropped: [8, 16], of: { depth: 32 }, y: {} };

test("cuts are counted three ways", () => {
  assert.deepEqual(axisPositions(line, "fraction"), [0.25, 0.5]);
  assert.deepEqual(axisPositions(line, "dropped"), [8, 16]);
  assert.deepEqual(axisPositions(line, "kept"), [24, 16]);
});

test("a size that was not measured is that of the same cut unhealed", () => {
  const healed = { ...line, dropped: [8, 16, 24, 28], y: { "size/parameters": [[null, 60, null, null]] } };
  const unhealed = { dropped: [24, 16, 8], y: { "size/parameters": [[30, 50, 70]] } };
  assert.deepEqual(axisPositions(healed, "size/parameters", unhealed), [70, 60, 30, null]);
  assert.deepEqual(axisPositions(healed, "size/parameters", undefined), [null, 60, null, null]);
  assert.deepEqual(axisPositions(line, "size/parameters", { ...unhealed, y: {} }), [null, null]);
  assert.deepEqual(axisPositions({ ...healed, y: { "size/x": [[0, 0, 0, 0]] } }, "size/x", unhealed), [0, 0, 0, 0]);
});

test("the dense model lies at no cut, or where it was measured", () => {
  assert.equal(densePosition(line, "fraction", null), 0);
  assert.equal(densePosition(line, "dropped", null), 0);
  assert.equal(densePosition(line, "kept", null), 32);
  assert.equal(densePosition(line, "size/parameters", { y: { "size/parameters": [100, null, 1] } }), 100);
  assert.equal(densePosition(line, "size/parameters", { y: {} }), null);
  assert.equal(densePosition(line, "size/parameters", null), null);
});

test("names of axes", () => {
  assert.equal(axisName("kept"), "layers kept");
  assert.equal(axisName("size/weight_bytes"), "bytes of weights");
  assert.equal(axisName("speed/peak_memory_bytes"), "peak memory bytes");
});

test("ticks are percentages, bytes or large numbers", () => {
  assert.deepEqual(axisTickFormat("fraction"), { tickformat: ".0%" });
  assert.deepEqual(axisTickFormat("size/weight_bytes"), { tickformat: ".3~s", ticksuffix: "B" });
  assert.deepEqual(axisTickFormat("size/parameters"), { tickformat: ".3~s" });
  assert.deepEqual(axisTickFormat("dropped"), {});
});

test("ticks of a logarithmic axis rise, by at most a factor of 2.5", () => {
  assert.ok(LOG_TICKS.slice(1).every((tick, i) => tick > LOG_TICKS[i] && tick <= 2.5 * LOG_TICKS[i]));
});
