"""The experiment: cut layers out of a language model, heal it, measure each stage (Gromov et al., arXiv:2403.17887)."""

from functools import cache

from depthcut.config.experiment import Experiment
from depthcut.runtime import ranks
from depthcut.study.export import export_model
from depthcut.study.measuring import evaluate
from depthcut.study.preflight import prepare_run
from depthcut.study.run import Run
from depthcut.study.scoring import Scoring


def run_experiment(x: Experiment, run: Run) -> None:
    """Run one point of a study; ``run`` collects the numbers. Results on disk are neither loaded nor computed again."""
    prepare_run(run)

    # How many layers go, and which: the metric scores them, the pruner spends the budget.
    plan = run.decide(x.prune(Scoring(run), run.sizes))

    evaluate(run, "dense", run.dense.whole)
    run.dense.release()

    # Only what the plan keeps is read, quantised as it arrives, with the replacement where the cut was.
    pruned = cache(lambda: x.replace(run.dense.load(plan), plan, run))
    evaluate(run, "pruned", pruned)

    healed = cache(lambda: x.heal(pruned(), plan, run))
    if ranks.world_size() > 1 and x.heal.trains:
        healed()  # together, before one of the processes measures and the others wait for its numbers
    evaluate(run, "healed", healed)

    export_model(x.export, plan, run, healed)
