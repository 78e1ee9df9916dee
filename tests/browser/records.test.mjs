import assert from "node:assert/strict";
import { test } from "node:test";
import {
  layersInRanges,
  numberNames,
  otherNumbers,
  runConfig,
  runNumbers,
  scoreNames,
} from "../../src/depthcut/report/static/records.js";

const parts = [
  ["dense/a/acc", "seconds/heal"],
  { seed: 0 },
  { prune: { frac: 0.5 } },
  ["seconds/heal", "pruned/b/acc"],
];
const run = { numbers: 0, values: [0.5, null], config: [1, 2] };

test("a run is put together out of the values that it shares", () => {
  assert.deepEqual(runNumbers(run, parts), { "dense/a/acc": 0.5, "seconds/heal": null });
  assert.deepEqual(runConfig(run, parts), { seed: 0, prune: { frac: 0.5 } });
  assert.deepEqual(runConfig({ config: [] }, parts), {});
});

test("names of numbers, each once", () => {
  const runs = [run, { numbers: 3 }, { numbers: 0 }];
  assert.deepEqual(numberNames(runs, parts), ["dense/a/acc", "seconds/heal", "pruned/b/acc"]);
  assert.deepEqual(numberNames([], parts), []);
});

test("scores are numbers of a stage, without their errors and counts", () => {
  const numbers = {
    "dense/a/acc": 1,
    "dense/a/acc_stderr": 1,
    "dense/a/items": 1,
    "pruned/a/acc": 1,
    "healed/validation/loss": 1,
    "healed/validation/loss_finite": 1,
    "healed/validation/tokens": 1,
    "seconds/heal": 1,
    "size/dense/x": 1,
  };
  assert.deepEqual(scoreNames(numbers), ["a/acc", "validation/loss"]);
  assert.deepEqual(otherNumbers(numbers), [
    ["seconds/heal", 1],
    ["size/dense/x", 1],
  ]);
  assert.deepEqual(scoreNames({}), []);
});

test("ranges of layers are half-open", () => {
  assert.deepEqual(
    [
      ...layersInRanges([
        [2, 4],
        [6, 7],
      ]),
    ],
    [2, 3, 6],
  );
  assert.deepEqual([...layersInRanges([])], []);
});
