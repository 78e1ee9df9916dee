import assert from "node:assert/strict";
import { test } from "node:test";
import { decodeLink, defaultState, encodeLink, FACETS } from "../../src/depthcut/report/static/link.js";

const defaults = defaultState(false);

test("a page without a link has the defaults and an empty link", () => {
  for (const hash of ["", "#"]) {
    const { state, hidden } = decodeLink(hash, defaults);
    assert.deepEqual(state, defaults);
    assert.deepEqual(Object.keys(hidden), Object.keys(FACETS));
    assert.ok(Object.values(hidden).every((values) => values.size === 0));
    assert.equal(encodeLink(state, hidden, defaults), "");
  }
});

test("the keys of links that people keep", () => {
  const keys =
    "x y panels bands marks log measures off fall strip map scale agree by gain cost pace logx theme run " +
    "find-falls find-runs sort-falls sort-runs";
  assert.deepEqual(Object.keys(defaults), keys.split(" "));
  assert.deepEqual(Object.keys(FACETS), ["model", "metric", "prune", "replace", "recipe", "unit", "evaluation"]);
});

test("a link brings a state back, whatever characters it has", () => {
  const state = {
    ...defaults,
    x: "size/weight_bytes",
    bands: "",
    "find-runs": "模型 & = # + é",
    "sort-runs": "5.down",
  };
  const { hidden } = decodeLink("", defaults);
  hidden.model.add("org/model&no-recipe=x").add("\u202e</script>");
  hidden.recipe.add("");
  const link = encodeLink(state, hidden, defaults);
  assert.match(link, /^x=size%2Fweight_bytes&bands=&/);
  assert.deepEqual(decodeLink("#" + link, defaults), { state, hidden });
});

test("unknown keys of a link are ignored, also those that objects have", () => {
  const { state, hidden } = decodeLink("#bogus=1&no-bogus=2&__proto__=3&constructor=4&x=kept", defaults);
  assert.deepEqual(state, { ...defaults, x: "kept" });
  assert.ok(Object.values(hidden).every((values) => values.size === 0));
  assert.equal(encodeLink({ ...state, bogus: "1" }, hidden, defaults), "x=kept");
});

test("of a repeated key the first counts; of facets all do", () => {
  const { state, hidden } = decodeLink("#x=kept&x=dropped&no-model=a&no-model=b", defaults);
  assert.equal(state.x, "kept");
  assert.deepEqual([...hidden.model], ["a", "b"]);
});

test("a log scale by default is not in the link, and switched off it is", () => {
  const logDefaults = defaultState(true);
  const { state, hidden } = decodeLink("", logDefaults);
  assert.equal(state.log, "1");
  assert.equal(encodeLink({ ...state, log: "" }, hidden, logDefaults), "log=");
});
