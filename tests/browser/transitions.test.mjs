import assert from "node:assert/strict";
import { test } from "node:test";
import { droppedLayersText, stripKey, stripName, withUnit } from "../../src/depthcut/report/static/strips.js";
import { sortByMidpoint, transitionNote, transitionTasks } from "../../src/depthcut/report/static/transitions.js";

const reasons = { "": "", flat: "no transition seen" };

test("the highest midpoint comes first, and what has none last, in its order", () => {
  const curve = (name, midpoint) => ({ name, transition: { midpoint: midpoint && [midpoint, 0, 1] } });
  const curves = [curve("a", null), curve("b", 0.2), curve("c", null), curve("d", 0.6)];
  assert.deepEqual(
    sortByMidpoint(curves).map(({ name }) => name),
    ["d", "b", "a", "c"],
  );
  assert.equal(curves[0].name, "a");
  assert.deepEqual(sortByMidpoint([]), []);
});

test("a note has the reason, and the scatter where it is more than twice the errors", () => {
  assert.equal(transitionNote({ why: "", rough: 1 }, reasons), "");
  assert.equal(transitionNote({ why: "flat", rough: 2 }, reasons), "no transition seen");
  assert.equal(transitionNote({ why: "", rough: 2.34 }, reasons), "scatters 2.3 times its errors");
  assert.equal(transitionNote({ why: "flat", rough: 3 }, reasons), "no transition seen; scatters 3.0 times its errors");
});

test("the first task is one with a transition, if there is any", () => {
  const found = (name, why) => ({ name, why });
  const transitions = [found("a", "flat"), found("b", "flat"), found("b", ""), found("a", "flat")];
  assert.deepEqual(transitionTasks(transitions), { names: ["a", "b"], first: "b" });
  assert.deepEqual(transitionTasks(transitions.slice(0, 2)), { names: ["a", "b"], first: "a" });
  assert.deepEqual(transitionTasks([]), { names: [], first: undefined });
});

test("layers that some seeds drop have their share", () => {
  assert.equal(droppedLayersText([1, 0, 0.5, 1]), "0 2 (50.0 %) 3");
  assert.equal(droppedLayersText([0, 0]), "");
});

test("names of strips, and the keys that match them with curves", () => {
  assert.equal(withUnit("pico", "layer"), "pico");
  assert.equal(stripName({ chooser: "angular block", unit: "mlp" }), "angular block (mlp)");
  assert.equal(stripKey("pico", ["angular", "block"], "layer"), stripKey("pico", ["angular block"], "layer"));
  assert.equal(stripKey("pico", [null, "deepest"], "layer"), "pico~deepest~layer");
});
