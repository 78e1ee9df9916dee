"""One point of a study: skip it if it is done, run the experiment, keep the record."""

from collections.abc import Mapping
from typing import Any

from depthcut.config import build
from depthcut.record import state
from depthcut.runtime import progress, ranks
from depthcut.study import links, recording, runlog
from depthcut.study.run import Run, open_run


def run_point(cfg: Mapping[Any, Any]) -> None:
    """Run one point of a study, given its composed config, and print its record."""
    x = build.build_experiment(cfg)
    run = open_run(x)
    if ranks.global_rank():
        return assist(run)
    with recording.point_lock(run):
        kept = recording.finished_record(run)
        if kept is None:
            kept = compute(run)
        else:
            state.forget_failure(run.folder)
            progress.print_line("already done: this config has a record on disk, nothing was computed")
            x.log.again(run, kept)
        links.link_point(run.folder, x)
    return runlog.print_record(kept, run.folder, run.remarks)


def compute(run: Run) -> dict[str, Any]:
    """Run the experiment and write its record; return the record."""
    from depthcut import algorithm
    from depthcut.study import control

    x = run.experiment
    for evaluation in x.eval.values():
        evaluation.check()
    with recording.attempt_point(run), runlog.log_to_point(run):
        algorithm.run_experiment(x, run)
        control.measure_control(run, algorithm.run_experiment)
        kept = recording.write_record(run)
    x.log.finish(run, kept)
    return kept


def assist(run: Run) -> None:
    """Take part in a point that several processes share; the first of them keeps its record."""
    if recording.finished_record(run) is None:
        from depthcut import algorithm

        with runlog.quiet_libraries():
            algorithm.run_experiment(run.experiment, run)
