"""The page: cut layers out of a language model, heal it, measure it at each stage (Gromov et al., arXiv:2403.17887)."""

from functools import cache

from depthcut.config.experiment import Experiment
from depthcut.runtime import ranks
from depthcut.study import export
from depthcut.study.lab import Lab
from depthcut.study.scoring import Scoring


def run_experiment(x: Experiment, lab: Lab) -> None:
    """One point of a study. What is on file is neither loaded nor computed again; ``lab`` fills with the numbers."""
    lab.prepare()

    # How many layers go, and which: the metric prices them, the pruner spends the budget.
    plan = lab.decide(x.prune(Scoring(lab), lab.shape))

    lab.measure("dense", lab.dense)
    lab.release()

    # Only what the plan keeps is read, quantised as it arrives, with the replacement where the cut was.
    pruned = cache(lambda: x.replace(lab.load(plan), plan, lab))
    lab.measure("pruned", pruned)

    healed = cache(lambda: x.heal(pruned(), plan, lab))
    if ranks.world_size() > 1 and x.heal.trains:
        healed()  # together, before one of the processes measures and the others wait for its numbers
    lab.measure("healed", healed)

    export.export_model(x.export, plan, lab, healed)
