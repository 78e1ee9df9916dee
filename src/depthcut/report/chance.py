"""Chance levels of tasks, and kinds of measured numbers."""

import math
import re

CHANCE_LEVELS = {
    **dict.fromkeys(("boolq", "piqa", "winogrande", "copa", "rte", "wic", "sst2", "qnli", "mrpc", "qqp", "wsc"), 1 / 2),
    **dict.fromkeys(("anli", "cb", "mnli", "siqa", "social_iqa", "pubmedqa"), 1 / 3),
    **dict.fromkeys(("capitals", "topics", "openbookqa", "mmlu", "arc", "hellaswag", "swag", "race", "sciq"), 1 / 4),
    **dict.fromkeys(("logiqa", "medqa", "medmcqa", "prost", "truthfulqa_mc1", "cmmlu", "ceval"), 1 / 4),
    **dict.fromkeys(("commonsenseqa", "commonsense_qa", "mathqa", "aqua_rat"), 1 / 5),
    "mmlu_pro": 1 / 10,
    **dict.fromkeys(("lambada", "gsm8k", "triviaqa", "nq_open", "coqa", "drop", "squadv2"), 0.0),
}
ACCURACIES = frozenset({"acc", "acc_norm", "acc_mutual_info", "exact_match", "em"})


def chance_level(name: str) -> float | None:
    """Return the expected value of a number for a model that guesses; None if it is not known.

    Args:
        name: such as ``arc_easy/acc`` or ``mmlu_local/acc``.
    """
    task, _, metric = name.partition("/")
    if metric.partition(",")[0] not in ACCURACIES:
        return None
    words = re.split(r"[@[]", task)[0].split("_")
    known = ("_".join(words[:count]) for count in range(len(words), 0, -1))
    return next((CHANCE_LEVELS[each] for each in known if each in CHANCE_LEVELS), None)


def is_accuracy(name: str) -> bool:
    """Return whether a number is an accuracy."""
    return name.rpartition("/")[2].partition(",")[0] in ACCURACIES


def is_loss(name: str) -> bool:
    """Return whether a number is a loss in nats."""
    return name.endswith("/loss")


def log_vocabulary(loss: float, over: float) -> float:
    """Return log V, the loss of a uniform guess, from a loss and the same loss over log V."""
    return loss / over if over else math.nan
