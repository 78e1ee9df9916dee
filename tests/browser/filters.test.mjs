import assert from "node:assert/strict";
import { test } from "node:test";
import {
  chooseByName,
  countFacetValues,
  facetValueText,
  passesFilters,
} from "../../src/depthcut/report/static/filters.js";
import { decodeLink, defaultState } from "../../src/depthcut/report/static/link.js";

const hiddenBy = (hash) => decodeLink(hash, defaultState(false)).hidden;
const values = { model: "pico", metric: "angular", prune: "block", replace: "none", recipe: "", unit: "layer" };

test("a curve passes unless one of its values is hidden", () => {
  assert.ok(passesFilters(values, hiddenBy("")));
  assert.ok(passesFilters(values, hiddenBy("#no-model=phi_2&no-prune=pico")));
  assert.ok(!passesFilters(values, hiddenBy("#no-prune=block")));
});

test("an absent value is hidden like an empty one", () => {
  assert.ok(!passesFilters(values, hiddenBy("#no-recipe=")));
  assert.ok(!passesFilters(values, hiddenBy("#no-evaluation=")));
  assert.ok(!passesFilters({ ...values, metric: null }, hiddenBy("#no-metric=")));
});

test("values are counted in the order in which they occur", () => {
  const lines = ["lora", "", "lora"].map((recipe) => ({ of: { recipe } }));
  assert.deepEqual(
    [...countFacetValues(lines, "recipe")],
    [
      ["lora", 2],
      ["", 1],
    ],
  );
  assert.equal(countFacetValues([], "recipe").size, 0);
});

test("empty values have words", () => {
  assert.equal(facetValueText("recipe", ""), "not healed");
  assert.equal(facetValueText("recipe", "lora"), "lora");
  assert.equal(facetValueText("unit", null), "layer");
  assert.equal(facetValueText("model", ""), "none");
});

test("a select has the entry of its name, else one whose model is shown, else the first", () => {
  const entries = ["a", "b", "c"].map((name) => ({ name, model: name }));
  assert.equal(chooseByName(entries, "c", new Set()).name, "c");
  assert.equal(chooseByName(entries, "c", new Set(["c"])).name, "c");
  assert.equal(chooseByName(entries, "gone", new Set(["a"])).name, "b");
  assert.equal(chooseByName(entries, "", new Set(["a", "b", "c"])).name, "a");
  assert.equal(chooseByName([], "a", new Set()), undefined);
});
