// Horizontal axes: their names, and the positions of curves on them.

export const CUT_AXES = { fraction: "share of layers cut", dropped: "layers cut", kept: "layers kept" };

const QUANTITIES = {
  "size/parameters": "parameters",
  "size/weight_bytes": "bytes of weights",
  "size/cache_bytes": "bytes of KV cache per token",
  "size/flops_per_token": "FLOPs per token",
  "speed/tokens_per_second": "tokens/s",
};

/** Values that plotly labels on a logarithmic axis of losses; its own choice is too sparse over less than a decade. */
export const LOG_TICKS = [1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100, 200, 500, 1000];

export const axisName = (axis) =>
  CUT_AXES[axis] || QUANTITIES[axis] || axis.replace(/^(size|speed)\//, "").replaceAll("_", " ");

/** Return plotly's tick format: percent, GB for bytes, G for other large numbers. */
export function axisTickFormat(axis) {
  if (axis === "fraction") return { tickformat: ".0%" };
  if (/bytes/.test(axis)) return { tickformat: ".3~s", ticksuffix: "B" };
  return axis.includes("/") ? { tickformat: ".3~s" } : {};
}

/** Return where the points of a curve lie; where a size was not measured, that of the same cut in `unhealed`. */
export function axisPositions(line, axis, unhealed) {
  if (axis === "fraction") return line.dropped.map((count) => count / line.of.depth);
  if (axis === "dropped") return line.dropped;
  if (axis === "kept") return line.dropped.map((count) => line.of.depth - count);
  const own = line.y[axis]?.[0];
  const others = unhealed?.y[axis]?.[0];
  return line.dropped.map((count, i) => own?.[i] ?? others?.[unhealed.dropped.indexOf(count)] ?? null);
}

/** Return where the dense model lies, or null if that is unknown. */
export function densePosition(line, axis, dense) {
  if (axis === "fraction" || axis === "dropped") return 0;
  if (axis === "kept") return line.of.depth;
  return dense?.y[axis] ? dense.y[axis][0] : null;
}
