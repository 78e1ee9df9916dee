"""Schedule of the removed share: flat, a cubic, flat (LoRAPrune's code; Zhu and Gupta, arXiv:1710.01878).

Steps are counted from 1 to T. The public code chooses masks only while the share is below the final one, and so never
reaches it; here they are chosen once more when it does.
"""


def share_at_step(step: int, steps: int, final: float) -> float:
    """Return ``final (1 - (1 - (t - 0.1 T) / 0.8 T)^3)`` in [0.1 T, 0.9 T]; 0 before it, ``final`` after it."""
    if 10 * step <= steps:
        return 0.0
    if step >= ramp_end(steps):
        return final
    return final * (1 - (1 - (step - 0.1 * steps) / (0.8 * steps)) ** 3)


def ramp_end(steps: int) -> int:
    """Return the first step of the last, flat part, from which the masks stay fixed."""
    return -(-9 * steps // 10)


def updates_masks(step: int, steps: int, every: int) -> bool:
    """Return whether the masks are chosen anew after this step."""
    return step == ramp_end(steps) or (step < ramp_end(steps) and 10 * step > steps and step % every == 0)
