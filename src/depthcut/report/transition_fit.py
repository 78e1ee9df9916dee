"""Where a curve falls: a logistic between dense and chance, fitted on a grid, with intervals calibrated by bootstrap.

Of the share s of what the dense model has above chance, a cut of a fraction f of the layers leaves
``s(f) = 1 / (1 + exp((f - m) / w))``, and the curve is ``chance + A s(f)``. Then

- the **midpoint** is m: half of the dense model's lead over chance is lost;
- the **onset** is ``m - w ln 9``: a tenth is lost; the **end** is ``m + w ln 9``: nine tenths are;
- the **width** is end minus onset, ``2 w ln 9``.

A is fitted along, with the dense measurement as its own datum. An interval is a profile likelihood's: all values that
a fit within a threshold of the best can have. Percentiles of refitted draws would be far too short where the fall lies
between two neighbouring fractions: any place in between fits equally well. The threshold is the 95th percentile of the
same statistic in draws of a parametric bootstrap. Errors larger than the points' own, by which a curve is rougher than
any logistic, widen both.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Reason = Literal["", "few", "unknown", "dense", "flat", "unfinished"]

REASONS: dict[Reason, str] = {
    "": "",
    "few": "fewer than 4 sizes of cut are measured",
    "unknown": "what chance gives is not known for this task",
    "dense": "the dense model is no better than a guess",
    "flat": "no transition seen: no fall beyond what noise makes",
    "unfinished": "no transition seen: not for sure below half by the largest cut",
}
MIN_CUTS = 4  # cuts
COARSE_GRID = (slice(None, None, 2), slice(None, None, 5))  # of the grid this much serves for the draws
DRAWS = 200
SIGNIFICANCE = 0.015  # of the test against a flat curve, which errs less often than this: other conditions come on top
LOGIT_90 = float(np.log(9))
MIDPOINTS = np.linspace(0.0, 1.0, 201)
SCALES = np.geomspace(0.002, 0.2275, 52)  # up to a width of 1
MIDPOINT_STEP = 0.0025  # half of the grid's, of midpoints
SCALE_RATIO = float((SCALES[1] / SCALES[0]) ** 0.5)


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    at: float
    low: float
    high: float


@dataclass(frozen=True)
class Transition:
    """What a curve says of its transition.

    Attributes:
        why: empty where one was seen; else why not, a key of REASONS. There is then no other number.
        midpoint: half of the lead over chance is lost.
        onset: a tenth is lost.
        width: from there to where nine tenths are lost. Its lower end is no better than the fractions are dense.
        rough: by what factor the points scatter more around the fit than their own errors say; 1 if they do not.
    """

    why: Reason
    midpoint: Interval | None = None
    onset: Interval | None = None
    width: Interval | None = None
    rough: float = 1.0

    @property
    def seen(self) -> bool:
        """Whether there is a transition."""
        return not self.why


@dataclass(frozen=True)
class CurveData:
    """What is fitted: P cuts and the dense model.

    Attributes:
        fraction: of the layers that go, each above 0, P.
        value: accuracy, or another quantity that falls to ``chance``, P.
        stderr: standard errors, P.
        dense: the dense model's value.
        dense_stderr: its standard error.
        chance: what no model falls below but by luck.
    """

    fraction: Array
    value: Array
    stderr: Array
    dense: float
    dense_stderr: float
    chance: float

    @property
    def errors(self) -> Array:
        """Standard errors of all P + 1 data, the dense model's last. None is below half of what is usual here.

        An accuracy of 0 or 1 comes with an error of 0, which is its estimate's, not its own.
        """
        given = np.append(self.stderr, self.dense_stderr)
        usual = np.median(given[given > 0]) if (given > 0).any() else 0.01
        return np.maximum(given, usual / 2)

    @property
    def leads(self) -> Array:
        """Values above chance, the dense model's last."""
        return np.append(self.value, self.dense) - self.chance


@cache
def share_grid(fractions: tuple[float, ...]) -> Array:
    """The shares s at each cut, and 1 for the dense model: M x W x (P + 1), over all midpoints and scales."""
    slope = (np.array(fractions) - MIDPOINTS[:, None, None]) / SCALES[None, :, None]
    shares = 1 / (1 + np.exp(np.clip(slope, -500, 500)))
    return np.concatenate([shares, np.ones((len(MIDPOINTS), len(SCALES), 1))], axis=2)


def chi_squared(leads_BP: Array, errors_P: Array, shares_GP: Array) -> Array:
    """Chi-squared of each of B curves for each of G shapes, with the amplitude A at its best, not below 0: B x G."""
    weight_P = errors_P**-2
    along_BG = np.maximum((leads_BP * weight_P) @ shares_GP.T, 0)
    total_B = (leads_BP**2 * weight_P).sum(1)
    return total_B[:, None] - along_BG**2 / ((shares_GP**2) @ weight_P)


def fit_transition(curve: CurveData, seed: int = 0) -> Transition:
    """Fit one curve.

    Args:
        curve: at least LEAST cuts, or the answer is ``few``.
        seed: of the bootstrap.
    """
    errors, leads = curve.errors, curve.leads
    if len(curve.fraction) < MIN_CUTS or len(set(curve.fraction)) < MIN_CUTS:
        return Transition("few")
    if leads[-1] <= 2 * errors[-1]:
        return Transition("dense")
    chance = np.random.default_rng(seed)
    shares_MWP = share_grid(tuple(curve.fraction))
    misfit_G = chi_squared(leads[None], errors, flatten_grid(shares_MWP))[0]
    best = int(misfit_G.argmin())
    if not has_transition(leads, errors, shares_MWP, chance):
        return Transition("flat")
    rough = max(1.0, misfit_G[best] / max(1, len(leads) - 3))
    threshold = rough * likelihood_threshold(leads, errors * np.sqrt(rough), shares_MWP, best, chance)
    near = np.flatnonzero(misfit_G <= misfit_G[best] + threshold)
    middle, scale = MIDPOINTS[near // len(SCALES)], SCALES[near % len(SCALES)]
    if middle.max() >= curve.fraction.max():
        return Transition("unfinished", rough=float(np.sqrt(rough)))
    likely = np.exp(-(misfit_G[near] - misfit_G[best]) / 2 / rough)
    onset, width = middle - LOGIT_90 * scale, 2 * LOGIT_90 * scale
    return Transition(
        "",
        midpoint=interval_estimate(middle, middle - MIDPOINT_STEP, middle + MIDPOINT_STEP, likely),
        onset=interval_estimate(onset, onset - MIDPOINT_STEP, onset + MIDPOINT_STEP, likely),
        width=interval_estimate(width, width / SCALE_RATIO, np.minimum(width * SCALE_RATIO, 1), likely),
        rough=float(np.sqrt(rough)),
    )


def interval_estimate(values: Array, low: Array, high: Array, likely: Array) -> Interval:
    """The range of what all fits that are believed may have, each its cell of the grid; their median by likelihood.

    Where any place between two fractions fits equally well there is no single best value.
    """
    order = np.argsort(values)
    mass = np.cumsum(likely[order])
    middle = values[order][np.searchsorted(mass, mass[-1] / 2)]
    return Interval(max(0.0, float(middle)), max(0.0, float(low.min())), max(0.0, float(high.max())))


def has_transition(leads: Array, errors: Array, shares_MWP: Array, chance: np.random.Generator) -> bool:
    """Whether a logistic fits so much better than a constant as it does in few of the draws of a constant.

    The statistic is an F ratio whose denominator is at least the points' own errors. In the draws the points scatter
    around a constant as much as they do here.
    """
    weight, coarse_GP = errors**-2, flatten_grid(shares_MWP[COARSE_GRID])

    def ratio(leads_BP: Array) -> Array:
        mean_B = leads_BP @ weight / weight.sum()
        flat_B = ((leads_BP - mean_B[:, None]) ** 2) @ weight
        best_B = chi_squared(leads_BP, errors, coarse_GP).min(1)
        return (flat_B - best_B) / np.maximum(best_B / max(1, len(leads) - 3), 1)

    mean = leads @ weight / weight.sum()
    spread = errors * np.sqrt(max(1.0, float((leads - mean) ** 2 @ weight) / (len(leads) - 1)))
    draws_BP = mean + spread * chance.standard_normal((DRAWS, len(leads)))
    return float((ratio(draws_BP) >= ratio(leads[None])).mean()) < SIGNIFICANCE


def likelihood_threshold(
    leads: Array, errors: Array, shares_MWP: Array, best: int, chance: np.random.Generator
) -> float:
    """How much worse than the best a fit may be and still be believed: by bootstrap, at least 3.84 as for a normal.

    In each draw the best fit is compared with the best of those that have the true midpoint, and the true scale.
    """
    share_P, weight = flatten_grid(shares_MWP)[best], errors**-2
    amplitude = max(0.0, float(leads * weight @ share_P / (share_P**2 @ weight)))
    draws_BP = amplitude * share_P + errors * chance.standard_normal((DRAWS, len(share_P)))
    free_B = chi_squared(draws_BP, errors, flatten_grid(shares_MWP[COARSE_GRID])).min(1)
    row, column = divmod(best, len(SCALES))
    lines = (shares_MWP[row], shares_MWP[:, column])
    worse = [np.quantile(chi_squared(draws_BP, errors, line).min(1) - free_B, 0.95) for line in lines]
    return max(3.84, *map(float, worse))


def flatten_grid(shares_MWP: Array) -> Array:
    """All shapes in a row: G x P."""
    return shares_MWP.reshape(-1, shares_MWP.shape[2])
