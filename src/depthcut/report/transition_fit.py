"""Transition of a curve: a logistic between dense and chance, fitted on a grid, with bootstrap-calibrated intervals.

A cut of a fraction f of the layers keeps the share ``s(f) = 1 / (1 + exp((f - m) / w))`` of the dense model's lead over
chance, and the curve is ``chance + A s(f)``. Then

- the **midpoint** is m: half of the dense model's lead over chance is lost;
- the **onset** is ``m - w ln 9``: a tenth is lost; the **end** is ``m + w ln 9``: nine tenths are;
- the **width** is end minus onset, ``2 w ln 9``.

A is fitted too, with the dense measurement as its own datum. Intervals are profile-likelihood intervals: all values of
fits within a threshold of the best. Percentiles of refitted draws would be far too short where the fall lies between
two neighbouring fractions, because any position in between fits equally well. The threshold is the 95th percentile of
the same statistic in draws of a parametric bootstrap. If the points scatter more than their own errors, because the
curve is rougher than any logistic, both become wider.
"""

from functools import cache

import numpy as np

from depthcut.report.transition_data import Array, CurveData, Interval, Transition

MIN_CUTS = 4  # cuts
COARSE_GRID = (slice(None, None, 2), slice(None, None, 5))  # this part of the grid is enough for the draws
DRAWS = 200
SIGNIFICANCE = 0.015  # level of the test against a flat curve, which errs less often: further conditions apply
LOGIT_90 = float(np.log(9))
MIDPOINTS = np.linspace(0.0, 1.0, 201)
SCALES = np.geomspace(0.002, 0.2275, 52)  # up to a width of 1
MIDPOINT_STEP = 0.0025  # half of the grid's step of midpoints
SCALE_RATIO = float((SCALES[1] / SCALES[0]) ** 0.5)


@cache
def share_grid(fractions: tuple[float, ...]) -> Array:
    """Return the shares s at each cut, and 1 for the dense model: M x W x (P + 1), over all midpoints and scales."""
    slope = (np.array(fractions) - MIDPOINTS[:, None, None]) / SCALES[None, :, None]
    shares = 1 / (1 + np.exp(np.clip(slope, -500, 500)))
    return np.concatenate([shares, np.ones((len(MIDPOINTS), len(SCALES), 1))], axis=2)


def chi_squared(leads_BP: Array, errors_P: Array, shares_GP: Array) -> Array:
    """Return chi-squared of each of B curves for each of G shapes, at the best amplitude A >= 0: B x G."""
    weight_P = errors_P**-2
    along_BG = np.maximum((leads_BP * weight_P) @ shares_GP.T, 0)
    total_B = (leads_BP**2 * weight_P).sum(1)
    return total_B[:, None] - along_BG**2 / ((shares_GP**2) @ weight_P)


def fit_transition(curve: CurveData, seed: int = 0) -> Transition:
    """Fit one curve.

    Args:
        curve: needs at least MIN_CUTS cuts; otherwise the result is ``few``.
        seed: seed of the bootstrap.
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
    """Return the range of the accepted fits, each with its grid cell, and their median weighted by likelihood.

    If any position between two fractions fits equally well, no single best value exists.
    """
    order = np.argsort(values)
    mass = np.cumsum(likely[order])
    middle = values[order][np.searchsorted(mass, mass[-1] / 2)]
    return Interval(max(0.0, float(middle)), max(0.0, float(low.min())), max(0.0, float(high.max())))


def has_transition(leads: Array, errors: Array, shares_MWP: Array, chance: np.random.Generator) -> bool:
    """Return whether a logistic beats a constant by more than it does in all but a few draws of a constant.

    The statistic is an F ratio whose denominator is at least the points' own errors. The draws scatter around the
    constant
    as much as the points do.
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
    """Return the largest accepted excess over the best misfit: by bootstrap, at least 3.84 as for a normal.

    In each draw the best fit is compared with the best fits that have the true midpoint, and the true scale.
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
    """Flatten the grid of shapes: G x P."""
    return shares_MWP.reshape(-1, shares_MWP.shape[2])
