import assert from "node:assert/strict";
import { test } from "node:test";
import { LineStyles, methodAndUnit, methodName, symbolGlyph } from "../../src/depthcut/report/static/styles.js";

const line = (values) => ({
  label: "a label",
  of: { model: "pico", metric: "angular", prune: "block", replace: "none", recipe: "", unit: "layer", ...values },
});

test("methods are named by what was chosen", () => {
  assert.equal(methodName({ metric: "angular", prune: "block", replace: "none" }), "angular block");
  assert.equal(methodName({ metric: "", prune: "deepest", replace: "mean" }), "deepest mean");
  assert.equal(methodAndUnit(line({ unit: "attention" }).of), "angular block attention");
  assert.equal(methodAndUnit(line({ metric: null }).of), "block");
});

test("methods have colours, recipes dashes, models symbols", () => {
  const lines = [
    line({}),
    line({ prune: "lowest" }),
    line({ model: "phi_2", recipe: "lora" }),
    line({ recipe: "qlora" }),
  ];
  const styles = new LineStyles(lines);
  assert.deepEqual(styles.style(lines[0], false), { color: "#0072B2", dash: "dot", symbol: "circle-open" });
  assert.deepEqual(styles.style(lines[1], false), { color: "#D55E00", dash: "dot", symbol: "circle-open" });
  assert.deepEqual(styles.style(lines[2], false), { color: "#0072B2", dash: "solid", symbol: "square" });
  assert.deepEqual(styles.style(lines[3], true), { color: "#5DB7F0", dash: "dashdot", symbol: "circle" });
  assert.equal(styles.title(lines[2]), "phi_2: a label");
});

test("with one method colours tell models apart, with one model recipes", () => {
  const models = [line({}), line({ model: "phi_2" })];
  const recipes = [line({}), line({ recipe: "lora" })];
  for (const lines of [models, recipes]) {
    const styles = new LineStyles(lines);
    assert.notEqual(styles.style(lines[0], false).color, styles.style(lines[1], false).color);
  }
  assert.equal(new LineStyles(recipes).title(recipes[0]), "a label");
});

test("with more methods than colours, symbols tell them apart", () => {
  const lines = Array.from({ length: 11 }, (_, i) => line({ prune: `p${i}` }));
  const styles = new LineStyles(lines);
  const looks = lines.map((each) => Object.values(styles.style(each, false)).join());
  assert.equal(new Set(looks).size, 11);
  assert.equal(styles.style(lines[10], false).symbol, "square-open");
});

test("an unknown curve has a style", () => {
  assert.deepEqual(new LineStyles([]).style(line({}), false), { color: "#0072B2", dash: "dot", symbol: "circle-open" });
});

test("open and filled symbols have one character", () => {
  assert.equal(symbolGlyph("square-open"), "■");
  assert.equal(symbolGlyph("triangle-up"), "▲");
});
