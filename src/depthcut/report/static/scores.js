// Scores along a curve, and the scales that they are drawn on: as measured, or comparable among tasks and models.

/**
 * Return {value, stderr, seeds, top, topError, floor} of a curve; `top` is the dense model, `floor` is chance.
 *
 * The scale "raw" is as measured; "share" is the share of the dense model's lead over chance for an accuracy, and the
 * ratio to a uniform guess's loss, log V, for a loss. Return null where the curve has no such number.
 */
export function scaleScore(line, measure, scale, dense) {
  const raw = line.y[measure.name];
  const top = dense?.y[measure.name];
  if (!raw) return null;
  if (scale === "raw") {
    const [value, stderr, seeds] = raw;
    return { value, stderr, seeds, top: top?.[0], topError: top?.[1], floor: measure.chance };
  }
  return measure.kind === "loss" ? lossOverLogV(line, measure, dense) : shareOfLead(raw, top, measure.chance);
}

function lossOverLogV(line, { name }, dense) {
  const [losses, errors, seeds] = line.y[name];
  const ratios = line.y[name + "_over_log_v"]?.[0];
  if (!ratios) return null;
  const stderr = errors.map((error, i) => (error == null || !losses[i] ? null : error * (ratios[i] / losses[i])));
  return { value: ratios, stderr, seeds, top: dense?.y[name + "_over_log_v"]?.[0], topError: null, floor: 1 };
}

function shareOfLead([values, errors, seeds], top, chance) {
  if (chance == null || !top || top[0] <= chance) return null;
  const lead = top[0] - chance;
  const value = values.map((score) => (score == null ? null : (score - chance) / lead));
  const stderr = errors.map((error) => (error == null ? null : error / lead));
  return { value, stderr, seeds, top: 1, topError: top[1] && top[1] / lead, floor: 0 };
}

/** Return the score at a midpoint, where half of the dense model's lead is lost; for a loss half way to log V. */
export function midpointScore(score, measure, scale, dense) {
  if (measure.kind !== "loss" || scale === "share") return (score.floor + score.top) / 2;
  const [ratio] = dense.y[measure.name + "_over_log_v"];
  return (score.top + score.top / ratio) / 2;
}

export function scoreTitle(measure, scale) {
  const isLoss = measure.kind === "loss";
  if (scale === "share") return isLoss ? "loss / log V" : "share of dense above chance";
  if (isLoss) return "loss (nats per token)";
  return measure.kind === "accuracy" ? "accuracy" : measure.name.split("/").pop();
}

/** Return the scores to draw where none are chosen: those that most runs have, one accuracy if `single`, else three. */
export function defaultMeasures(measures, single) {
  const frequent = [...measures].sort((one, other) => other.times - one.times);
  const accuracies = frequent.filter(({ kind, name }) => kind === "accuracy" && name.endsWith("/acc"));
  const losses = frequent.filter(({ kind }) => kind === "loss");
  return [...accuracies.slice(0, single ? 1 : 3), ...losses.slice(0, 1)].map(({ name }) => name);
}

/** Return whether losses span so much that the smaller ones would be flat on a linear scale. */
export function needsLogScale(lines, measures) {
  const names = measures.filter(({ kind }) => kind === "loss").map(({ name }) => name);
  const losses = lines.flatMap((line) => names.flatMap((name) => line.y[name]?.[0] ?? [])).filter((loss) => loss > 0);
  return Math.max(...losses) > 6 * Math.min(...losses);
}

/** Return the points of a curve that can be drawn, with the dense model first if its position `start` is known. */
export function curvePoints(line, score, positions, start) {
  const points = positions.map((x, i) => ({
    x,
    y: score.value[i],
    error: score.stderr[i],
    seeds: score.seeds[i],
    runs: line.runs[i],
    dropped: line.dropped[i],
  }));
  const known = points.filter(({ x, y }) => x != null && y != null);
  // A cut of no layers is the dense model, unless it was healed.
  if (!known.length || line.of.recipe || score.top == null || start == null) return known;
  return [{ x: start, y: score.top, error: score.topError, seeds: 1, runs: [], dropped: 0 }, ...known];
}

/** Return the outline of the 95 % band: the upper edge forwards, the lower backwards. Null with fewer than two errors. */
export function bandOutline(points) {
  const forth = points.filter(({ error }) => error != null);
  const back = forth.slice().reverse();
  if (forth.length < 2) return null;
  const upper = forth.map(({ y, error }) => y + 1.96 * error);
  const lower = back.map(({ y, error }) => y - 1.96 * error);
  return { x: [...forth, ...back].map(({ x }) => x), y: [...upper, ...lower] };
}
