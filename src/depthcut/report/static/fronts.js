// Points that no other point beats in both of two quantities.

/** Return whether more of a cost is better: tokens per second, but not seconds, latencies or peaks. */
export const moreIsBetter = (cost) =>
  cost.startsWith("speed/") && !/second|latency|peak|ms$/.test(cost.replace("per_second", ""));

/** Return the unbeaten points, ordered by x; `xSign` and `ySign` are 1 where more is better, -1 where less is. */
export function paretoFront(points, xSign, ySign) {
  const sorted = [...points].sort((one, other) => (other.x - one.x) * xSign || (other.y - one.y) * ySign);
  const front = [];
  for (const point of sorted) if (!front.length || (point.y - front.at(-1).y) * ySign > 0) front.push(point);
  return front;
}
