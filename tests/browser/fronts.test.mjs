import assert from "node:assert/strict";
import { test } from "node:test";
import { moreIsBetter, paretoFront } from "../../src/depthcut/report/static/fronts.js";

const points = (...pairs) => pairs.map(([x, y]) => ({ x, y }));

test("small and accurate models are beaten by none", () => {
  const [a, b, c, d, e] = points([1, 0.5], [2, 0.7], [3, 0.6], [4, 0.9], [1, 0.4]);
  assert.deepEqual(paretoFront([d, c, e, b, a], -1, 1), [a, b, d]);
});

test("fast models of low loss are beaten by none", () => {
  const [a, b, c] = points([10, 3], [20, 2], [30, 4]);
  assert.deepEqual(paretoFront([a, b, c], 1, -1), [c, b]);
});

test("of equal points one remains, and of no points none", () => {
  assert.equal(paretoFront(points([1, 1], [1, 1]), -1, 1).length, 1);
  assert.deepEqual(paretoFront([], -1, 1), []);
});

test("the front is the brute-force one", () => {
  const all = Array.from({ length: 200 }, (_, i) => ({ x: (i * 37) % 101, y: (i * 61) % 103 }));
  const beats = (one, other) => one.x <= other.x && one.y >= other.y && (one.x < other.x || one.y > other.y);
  const unbeaten = all.filter((point) => !all.some((other) => beats(other, point)));
  assert.deepEqual(new Set(paretoFront(all, -1, 1)), new Set(unbeaten));
});

test("more is better of throughput only", () => {
  assert.ok(moreIsBetter("speed/tokens_per_second"));
  for (const cost of ["speed/latency_ms", "speed/peak_memory", "speed/prefill_seconds", "size/parameters", "kept"]) {
    assert.ok(!moreIsBetter(cost), cost);
  }
});
