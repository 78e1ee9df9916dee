"""The transition estimator on curves with a known transition: coverage of its intervals, and its error rates.

    python bench/transition.py              500 draws of each kind, in a minute

The curves resemble real studies: 11 or 6 cuts of 5 to 80 %, tasks of 100 to 2,000 questions, accuracies by
binomial draws. Falls may be narrower than the spacing of the fractions. Some curves without a transition are flat, and
some jump between chance and dense, far beyond the errors of their points.
"""

import argparse
import time
from collections import Counter

import numpy as np

from depthcut.report import transition_data, transition_fit
from depthcut.report.transition_data import CurveData

CHANCE, EDGE = 0.25, float(np.log(9))
FRACTIONS = (np.linspace(0.05, 0.8, 11), np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.7]))
QUESTIONS = (100, 500, 2000)
KINDS = ("falls", "flat", "noisy", "at chance", "slopes")


def draw(kind: str, chance: np.random.Generator) -> tuple[CurveData, float, float]:
    """Draw a measured curve, with its midpoint and scale, which only ``falls`` has."""
    fraction = FRACTIONS[chance.integers(len(FRACTIONS))]
    questions = QUESTIONS[chance.integers(len(QUESTIONS))]
    dense = chance.uniform(0.5, 0.8)
    middle, scale = chance.uniform(0.15, 0.6), chance.uniform(0.003, 0.06)
    true = {
        "falls": CHANCE + (dense - CHANCE) / (1 + np.exp(np.clip((fraction - middle) / scale, -500, 500))),
        "flat": np.full(len(fraction), dense),
        "noisy": chance.uniform(CHANCE, dense, len(fraction)),
        "at chance": np.full(len(fraction), CHANCE),
        "slopes": dense - 0.3 * (dense - CHANCE) * fraction,
    }[kind]
    if kind == "at chance":
        dense = CHANCE
    right = chance.binomial(questions, np.append(true, dense)) / questions
    stderr = np.sqrt(right * (1 - right) / (questions - 1))
    return CurveData(fraction, right[:-1], stderr[:-1], float(right[-1]), float(stderr[-1]), CHANCE), middle, scale


def trial(kind: str, draws: int, seed: int = 0) -> Counter[str]:
    """Count the transitions seen in ``draws`` curves of a kind, and the intervals that contain the truth."""
    chance, found = np.random.default_rng(seed), Counter[str]()
    for number in range(draws):
        curve, middle, scale = draw(kind, chance)
        seen = transition_fit.fit_transition(curve, seed=number)
        found[seen.why or "seen"] += 1
        truths = {"midpoint": middle, "onset": middle - EDGE * scale, "width": 2 * EDGE * scale}
        for name, truth in truths.items():
            interval = getattr(seen, name)
            if interval is not None:
                found[name] += interval.low <= max(truth, 0) <= interval.high
                found[f"{name} off"] += abs(interval.at - truth)
                found[f"{name} long"] += interval.high - interval.low
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=500)
    draws = parser.parse_args().draws
    for kind in KINDS:
        start = time.monotonic()
        found = trial(kind, draws)
        took = (time.monotonic() - start) / draws
        line = f"{kind}: seen in {found['seen']} of {draws}, {1000 * took:.0f} ms per curve; "
        for name in ("midpoint", "onset", "width") if kind == "falls" else ():
            held, off, long = (found[each] / found["seen"] for each in (name, f"{name} off", f"{name} long"))
            line += f"{name}: covered in {held:.1%}, mean error {off:.3f}, mean length {long:.3f}; "
        print(line, {why: found[why] for why in transition_data.REASONS if found[why]})


if __name__ == "__main__":
    main()
