"""Transitions of all curves, in accuracy and in loss, and the shift of each by healing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from depthcut.report import chance, transition_fit
from depthcut.report.curves import Line
from depthcut.report.transition_data import CurveData, Interval, Transition

DenseNumbers = dict[tuple[str, str], dict[str, tuple[float, float]]]


@dataclass(frozen=True)
class CurveTransition:
    """The transition of one number along a curve.

    Attributes:
        line: the curve.
        name: name of the number.
        found: the transition, or the reason why none was seen.
        moved: shift of the midpoint of a healed curve against the unhealed one; None if either has no transition.
    """

    line: Line
    name: str
    found: Transition
    moved: Interval | None = None


def curve_transitions(lines: Sequence[Line], dense: DenseNumbers) -> list[CurveTransition]:
    """Return the transitions of all curves, for accuracies and losses; subjects of a group such as MMLU are omitted."""
    found: list[CurveTransition] = []
    for line in lines:
        level = dense.get((line.keys["model"], line.keys["evaluation"]), {})
        for name in transition_names(line):
            curve = accuracy_curve(line, level, name) if chance.is_accuracy(name) else loss_curve(line, level, name)
            found.append(
                CurveTransition(
                    line, name, Transition("unknown") if curve is None else transition_fit.fit_transition(curve)
                )
            )
    before = {(pairing_key(fall.line), fall.name): fall.found for fall in found if not fall.line.healed}
    return [
        CurveTransition(
            fall.line,
            fall.name,
            fall.found,
            transition_shift(before.get((pairing_key(fall.line), fall.name)), fall.found),
        )
        if fall.line.healed
        else fall
        for fall in found
    ]


def transition_names(line: Line) -> list[str]:
    """Return the numbers of a curve that can have a transition."""
    groups = {name.partition("/")[0] for name in line.names}
    wanted = [name for name in line.names if chance.is_accuracy(name) or chance.is_loss(name)]
    return [name for name in wanted if not any(name.startswith(f"{group}_") for group in groups & {"mmlu", "bbh"})]


def pairing_key(line: Line) -> tuple[str, ...]:
    """Return the keys that a healed curve shares with the unhealed one."""
    return tuple(value for key, value in line.keys.items() if key not in ("stage", "recipe"))


def accuracy_curve(line: Line, level: dict[str, tuple[float, float]], name: str) -> CurveData | None:
    """Return an accuracy as a curve to fit; None without a dense value or a known chance level."""
    guessed = chance.chance_level(name)
    if guessed is None or name not in level:
        return None
    return measured_curve(line, line.names[name].value, line.names[name].stderr, level[name], guessed)


def loss_curve(line: Line, level: dict[str, tuple[float, float]], name: str) -> CurveData | None:
    """Return a loss as the remaining lead over a uniform guess, ``1 - loss / log V``, which falls to 0.

    Beyond log V, where a model is worse than a uniform guess, it is 0.
    """
    over = f"{name}_over_log_v"
    if over not in line.names or over not in level or name not in level:
        return None
    scale = chance.log_vocabulary(level[name][0], level[over][0])
    left = [max(0.0, 1 - value) if math.isfinite(value) else math.nan for value in line.names[over].value]
    errors = [stderr / scale for stderr in line.names[name].stderr]
    return measured_curve(line, left, errors, (1 - level[over][0], level[name][1] / scale), 0.0)


def measured_curve(
    line: Line, values: list[float], errors: list[float], level: tuple[float, float], guessed: float
) -> CurveData:
    """Return the points that were measured and have a cut."""
    fraction, value, stderr = (np.asarray(each, dtype=float) for each in (line.fraction, values, errors))
    there = np.isfinite(value) & (fraction > 0)
    sound = np.nan_to_num(stderr[there], nan=0.0)
    return CurveData(fraction[there], value[there], sound, level[0], float(np.nan_to_num(level[1])), guessed)


def transition_shift(before: Transition | None, after: Transition) -> Interval | None:
    """Return the shift between two midpoints, with the interval of a difference (MOVER, Zou & Donner 2008)."""
    if before is None or before.midpoint is None or after.midpoint is None:
        return None
    one, two = before.midpoint, after.midpoint
    down = math.hypot(two.at - two.low, one.high - one.at)
    up = math.hypot(two.high - two.at, one.at - one.low)
    return Interval(two.at - one.at, two.at - one.at - down, two.at - one.at + up)
