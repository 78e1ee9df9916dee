import assert from "node:assert/strict";
import { test } from "node:test";
import { yamlText } from "../../src/depthcut/report/static/yaml.js";

test("mappings are nested, scalars and lists are JSON", () => {
  const config = {
    seed: 0,
    prune: { frac: 0.25, drop: null, deep: { x: true } },
    tasks: ["a", { b: 1 }],
    name: "é: #1",
  };
  assert.equal(
    yamlText(config),
    [
      "seed: 0",
      "prune:",
      "  frac: 0.25",
      "  drop: null",
      "  deep:",
      "    x: true",
      'tasks: ["a",{"b":1}]',
      'name: "é: #1"',
      "",
    ].join("\n"),
  );
});

test("keys with other characters are quoted", () => {
  assert.equal(yamlText({ "a b": 1, 1: 2, "x-y": 3, "": 4 }), '"1": 2\n"a b": 1\nx-y: 3\n"": 4\n');
});

test("empty mappings, lists and texts are kept", () => {
  assert.equal(yamlText({}), "");
  assert.equal(yamlText({ a: {}, b: [], c: "" }), 'a: {}\nb: []\nc: ""\n');
});
