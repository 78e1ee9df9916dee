// Runs as they are stored: `parts` holds values that runs share, and a run refers to them by index.
import { unique } from "./text.js";

const STAGE_NUMBER = /^(dense|pruned|healed)\//;
const NOT_A_SCORE = /(_stderr|_finite|\/items|\/tokens)$/;

export const runNumbers = (run, parts) =>
  Object.fromEntries(parts[run.numbers].map((name, i) => [name, run.values[i]]));

export const runConfig = (run, parts) => Object.assign({}, ...run.config.map((place) => parts[place]));

/** Return the names of all numbers of the runs, in the order of their first occurrence. */
export const numberNames = (runs, parts) =>
  unique(unique(runs.map((run) => run.numbers)).flatMap((place) => parts[place]));

/** Return the names of the scores of a run without their stage: "piqa/acc" of "pruned/piqa/acc". */
export const scoreNames = (numbers) =>
  unique(
    Object.keys(numbers)
      .filter((name) => STAGE_NUMBER.test(name) && !NOT_A_SCORE.test(name))
      .map((name) => name.replace(STAGE_NUMBER, "")),
  );

/** Return [name, value] of the numbers that belong to no stage. */
export const otherNumbers = (numbers) => Object.entries(numbers).filter(([name]) => !STAGE_NUMBER.test(name));

/** Return the layers in half-open ranges, such as [[2, 4]]. */
export const layersInRanges = (ranges) =>
  new Set(ranges.flatMap(([from, to]) => Array.from({ length: to - from }, (_, i) => from + i)));
