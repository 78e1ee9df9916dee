"""The evaluations of a stage: each that is not on file is done, and kept by what it measures and what it reads."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from depthcut import digests, store

if TYPE_CHECKING:
    from torch import nn

    from depthcut.eval import Eval
    from depthcut.lab import Lab, Stage


def stage(lab: "Lab", name: "Stage", model: "Callable[[], nn.Module]") -> None:
    """Note in ``lab`` what the evaluations of a stage give; ``model`` is called only where something is missing."""
    for evaluation in lab.experiment.eval.values():
        for part in evaluation.parts():
            digest = digests.evaluation(part, lab)
            key = store.digest({"subject": lab.subject(name), "evaluation": digest})

            def make(part: "Eval" = part) -> dict[str, float]:
                subject = model()
                with lab.timed(f"{name}_eval"):
                    found = part(subject, lab)
                assert found is not None, "a model that is not cut can be measured"
                return found[0]

            values = lab.kept("evaluations", key, make)
            lab.numbers |= {f"{name}/{metric}": value for metric, value in values.items()}
            lab.evaluated.setdefault(name, []).append(digest)
