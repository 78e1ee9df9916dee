import assert from "node:assert/strict";
import { test } from "node:test";
import { errorBars, panelGrid, panelHeading } from "../../src/depthcut/report/static/panels.js";

test("one panel fills the figure", () => {
  const { place, height, columns } = panelGrid(1, 3, 300, 1000);
  assert.deepEqual([columns, height], [1, 360]);
  assert.deepEqual(place(0), { n: "", x: "x", y: "y", xDomain: [0, 1], yDomain: [0, 1], left: true, bottom: true });
});

test("the width limits the columns, and a phone has one", () => {
  assert.deepEqual(
    [360, 700, 1000, 2000].map((width) => panelGrid(7, 3, 300, width).columns),
    [1, 2, 3, 3],
  );
  assert.equal(panelGrid(2, 3, 300, 2000).columns, 2);
  assert.equal(panelGrid(7, 3, 300, 0).columns, 1);
});

test("panels do not overlap and stay within the figure", () => {
  const { place } = panelGrid(5, 2, 300, 1000);
  const places = [0, 1, 2, 3, 4].map(place);
  for (const { xDomain, yDomain } of places) {
    for (const [from, to] of [xDomain, yDomain]) assert.ok(from >= 0 && from < to && to <= 1 + 1e-9);
  }
  assert.ok(places[0].xDomain[1] < places[1].xDomain[0]);
  assert.ok(places[2].yDomain[1] < places[0].yDomain[0]);
  assert.deepEqual(
    places.map(({ x }) => x),
    ["x", "x2", "x3", "x4", "x5"],
  );
  assert.deepEqual(
    places.map(({ left }) => left),
    [true, false, true, false, true],
  );
  assert.deepEqual(
    places.map(({ bottom }) => bottom),
    [false, false, false, true, true],
  );
});

test("a heading is text above its panel", () => {
  const heading = panelHeading("<i>", panelGrid(1, 1, 300, 1000).place(0));
  assert.equal(heading.text, "<b>&lt;i&gt;</b>");
  assert.deepEqual([heading.x, heading.y], [0, 1]);
});

test("error bars reach from low to high", () => {
  const bars = errorBars([[0.5, 0.25, 1]], "#000");
  assert.deepEqual([bars.array, bars.arrayminus, bars.color], [[0.5], [0.25], "#000"]);
  assert.deepEqual(errorBars([], "#000").array, []);
});
