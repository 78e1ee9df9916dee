"""The control of healing: the dense model with the same recipe, text and seed, as its own point in the study.

Healing on text of the measured kind lowers the loss of the dense model too. Only the difference from this control shows
the cost of the cut.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from depthcut.prune.plan import Given
from depthcut.record import measured
from depthcut.replace.none import NoReplacement
from depthcut.runtime import progress
from depthcut.study import recording
from depthcut.study.run import open_run

if TYPE_CHECKING:
    from depthcut.config.experiment import Experiment
    from depthcut.study.run import Run


def measure_control(run: "Run", run_experiment: "Callable[[Experiment, Run], None]") -> None:
    """Add ``control/...`` to the numbers of ``run`` if its recipe asks for it; an earlier control is reused.

    Args:
        run: a run whose own model is healed.
        run_experiment: runs the control.
    """
    if not run.experiment.heal.heals_control:
        return
    twin = open_run(control_experiment(run.experiment))
    if twin.digest == run.digest:
        found: dict[str, Any] = run.numbers
        run.measured["control"] = run.measured["healed"]
    else:
        run.dense.release()
        found = control_record(twin, run_experiment)
        run.measured["control"] = measured.measured_from_record(found, "healed")
    run.numbers |= {key.replace("healed/", "control/", 1): found[key] for key in found if key.startswith("healed/")}


def control_experiment(x: "Experiment") -> "Experiment":
    """Return the experiment that heals the dense model as ``x`` heals the cut one, without export."""
    recipe: Any = x.heal
    prune = Given(drop=[], path=None)
    changed: dict[str, Any] = {
        "prune": {"_target_": "depthcut.prune.plan.Given", "drop": [], "path": None},
        "replace": {"_target_": "depthcut.replace.none.NoReplacement"},
        "heal": {**x.composed["heal"], "control": False},
        "stages": ["healed"],
        "export": "none",
    }
    return dataclasses.replace(
        x,
        prune=prune,
        replace=NoReplacement(),
        heal=dataclasses.replace(recipe, control=False),
        stages=["healed"],
        export="none",
        composed={**x.composed, **changed},
    )


def control_record(twin: "Run", run_experiment: "Callable[[Experiment, Run], None]") -> dict[str, Any]:
    """Return the record of the control; the control runs unless it is already done."""
    with recording.point_lock(twin):
        kept = recording.finished_record(twin)
        if kept is None:
            progress.print_line(f"control: the dense model with the same healing, point {twin.digest[:8]}")
            with recording.attempt_point(twin):
                run_experiment(twin.experiment, twin)
                kept = recording.write_record(twin)
    return kept
