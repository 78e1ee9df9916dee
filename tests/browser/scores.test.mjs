import assert from "node:assert/strict";
import { test } from "node:test";
import {
  bandOutline,
  curvePoints,
  defaultMeasures,
  midpointScore,
  needsLogScale,
  scaleScore,
  scoreTitle,
} from "../../src/depthcut/report/static/scores.js";

const accuracy = { name: "boolq/acc", kind: "accuracy", chance: 0.5 };
const loss = { name: "validation/loss", kind: "loss", chance: null };
const line = {
  dropped: [8, 16, 24],
  of: { recipe: "" },
  runs: [[0], [1], [2]],
  y: {
    "boolq/acc": [
      [0.75, 0.5, null],
      [0.02, null, null],
      [1, 2, 0],
    ],
    "validation/loss": [
      [4, 5, null],
      [0.4, null, null],
      [1, 1, 0],
    ],
    "validation/loss_over_log_v": [
      [0.5, 0.625, null],
      [null, null, null],
      [1, 1, 0],
    ],
  },
};
const dense = {
  y: { "boolq/acc": [0.9, 0.04], "validation/loss": [2, 0.1], "validation/loss_over_log_v": [0.25, null] },
};

test("as measured", () => {
  assert.deepEqual(scaleScore(line, accuracy, "raw", dense), {
    value: [0.75, 0.5, null],
    stderr: [0.02, null, null],
    seeds: [1, 2, 0],
    top: 0.9,
    topError: 0.04,
    floor: 0.5,
  });
  assert.equal(scaleScore(line, accuracy, "raw", null).top, undefined);
  assert.equal(scaleScore(line, { ...accuracy, name: "piqa/acc" }, "raw", dense), null);
});

test("an accuracy as a share of the dense model's lead over chance", () => {
  const score = scaleScore(line, accuracy, "share", dense);
  assert.deepEqual(score.value, [0.625, 0, null]);
  assert.ok(Math.abs(score.stderr[0] - 0.05) < 1e-12);
  assert.deepEqual(score.stderr.slice(1), [null, null]);
  assert.deepEqual([score.top, score.floor], [1, 0]);
  assert.ok(Math.abs(score.topError - 0.1) < 1e-12);
});

test("without a lead over chance there is no share", () => {
  assert.equal(scaleScore(line, { ...accuracy, chance: null }, "share", dense), null);
  assert.equal(scaleScore(line, { ...accuracy, chance: 0.9 }, "share", dense), null);
  assert.equal(scaleScore(line, accuracy, "share", null), null);
});

test("a loss over that of a uniform guess", () => {
  const score = scaleScore(line, loss, "share", dense);
  assert.deepEqual(score.value, [0.5, 0.625, null]);
  assert.deepEqual(score.stderr, [0.05, null, null]);
  assert.deepEqual([score.top, score.topError, score.floor], [0.25, null, 1]);
  const alone = { ...line, y: { "validation/loss": line.y["validation/loss"] } };
  assert.equal(scaleScore(alone, loss, "share", dense), null);
});

test("midpoints lie half way from the dense model to chance, for a loss to log V", () => {
  assert.equal(midpointScore({ top: 0.9, floor: 0.5 }, accuracy, "raw", dense), 0.7);
  assert.equal(midpointScore({ top: 2, floor: null }, loss, "raw", dense), 5); // log V is 2 / 0.25
  assert.equal(midpointScore({ top: 0.25, floor: 1 }, loss, "share", dense), 0.625);
});

test("titles of the vertical axis", () => {
  assert.equal(scoreTitle(accuracy, "raw"), "accuracy");
  assert.equal(scoreTitle(accuracy, "share"), "share of dense above chance");
  assert.equal(scoreTitle(loss, "raw"), "loss (nats per token)");
  assert.equal(scoreTitle(loss, "share"), "loss / log V");
  assert.equal(scoreTitle({ name: "validation/perplexity", kind: "other" }, "raw"), "perplexity");
});

test("the scores that most runs have are drawn first: three accuracies or one, and one loss", () => {
  const measure = (name, kind, times) => ({ name, kind, times });
  const measures = [
    measure("a/acc", "accuracy", 1),
    measure("a/acc_norm", "accuracy", 9),
    measure("b/acc", "accuracy", 3),
    measure("c/acc", "accuracy", 2),
    measure("d/acc", "accuracy", 2),
    measure("documentation/loss", "loss", 1),
    measure("validation/loss", "loss", 5),
  ];
  assert.deepEqual(defaultMeasures(measures, false), ["b/acc", "c/acc", "d/acc", "validation/loss"]);
  assert.deepEqual(defaultMeasures(measures, true), ["b/acc", "validation/loss"]);
  assert.deepEqual(defaultMeasures([], false), []);
});

test("losses need a logarithmic scale where they span more than a factor of six", () => {
  const lines = (...losses) => [{ y: { "validation/loss": [losses] } }];
  assert.ok(!needsLogScale(lines(2, 12, null, 0), [loss]));
  assert.ok(needsLogScale(lines(2, 12.1), [loss]));
  assert.ok(!needsLogScale(lines(2, 100), [{ ...loss, kind: "other" }]));
  assert.ok(!needsLogScale([], [loss]));
});

test("a curve starts at the dense model if that is known and the curve is unhealed", () => {
  const score = scaleScore(line, accuracy, "raw", dense);
  const start = { x: 0, y: 0.9, error: 0.04, seeds: 1, runs: [], dropped: 0 };
  const points = [
    { x: 0.25, y: 0.75, error: 0.02, seeds: 1, runs: [0], dropped: 8 },
    { x: 0.5, y: 0.5, error: null, seeds: 2, runs: [1], dropped: 16 },
  ];
  assert.deepEqual(curvePoints(line, score, [0.25, 0.5, 0.75], 0), [start, ...points]);
  assert.deepEqual(curvePoints(line, score, [0.25, 0.5, 0.75], null), points);
  assert.deepEqual(curvePoints({ ...line, of: { recipe: "lora" } }, score, [0.25, 0.5, 0.75], 0), points);
  assert.deepEqual(curvePoints(line, { ...score, top: undefined }, [0.25, null, 0.75], 0), points.slice(0, 1));
  assert.deepEqual(curvePoints(line, score, [null, null, null], 0), [], "the dense model alone is no curve");
});

test("a band goes forth along its upper edge and back along its lower", () => {
  const points = [
    { x: 1, y: 10, error: 1 },
    { x: 2, y: 20, error: null },
    { x: 3, y: 30, error: 0 },
  ];
  assert.deepEqual(bandOutline(points), { x: [1, 3, 3, 1], y: [11.96, 30, 30, 8.04] });
  assert.equal(bandOutline(points.slice(0, 2)), null);
  assert.equal(bandOutline([]), null);
});
