"""How much is cut at each step: flat, a cubic, flat (LoRAPrune's code; Zhu and Gupta, arXiv:1710.01878).

Steps are counted from 1 to T. The public code chooses masks only while the share is still below the final one, and so
never reaches it; here they are chosen once more when it does.
"""


def share(step: int, steps: int, final: float) -> float:
    """``final (1 - (1 - (t - 0.1 T) / 0.8 T)^3)`` in [0.1 T, 0.9 T]; 0 in front of it, ``final`` behind it."""
    if 10 * step <= steps:
        return 0.0
    if step >= settled(steps):
        return final
    return final * (1 - (1 - (step - 0.1 * steps) / (0.8 * steps)) ** 3)


def settled(steps: int) -> int:
    """The first step of the last, flat part; from here on the masks stay."""
    return -(-9 * steps // 10)


def due(step: int, steps: int, every: int) -> bool:
    """Whether the masks are chosen anew behind this step."""
    return step == settled(steps) or (step < settled(steps) and 10 * step > steps and step % every == 0)
