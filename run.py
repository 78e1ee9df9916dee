"""One experiment: compose the config, skip it if it is done, run the page, keep the record.

python run.py                                    a small real model, on a CPU, in minutes
python run.py model=llama2_70b prune.frac=0.5    the paper's run
python run.py -m prune.frac=0,0.25,0.5           several points of one study
python run.py --help                             the groups, and how to list their choices and options
"""

import gc
import sys
from functools import partial

from omegaconf import DictConfig

from depthcut.cli import main as cli_main
from depthcut.config import experiment
from depthcut.runtime import failures, ranks
from depthcut.study import lab, links, recording, runlog


def main(cfg: DictConfig) -> None:
    """Run one point of a study; what goes wrong is told at the end."""
    with failures.collect_errors():
        point(cfg)


def point(cfg: DictConfig) -> None:
    """Run the point, or say that it is done."""
    x = experiment.build_experiment(cfg)
    here = lab.open_run(x)
    if ranks.global_rank():
        return assist(here)
    with recording.point_lock(here):
        kept = recording.finished_record(here)
        if kept is None:
            from depthcut import algorithm
            from depthcut.study import control

            for evaluation in x.eval.values():
                evaluation.check()
            with recording.attempt_point(here), runlog.log_to_point(here):
                algorithm.run_experiment(x, here)
                control.measure_control(here)
                kept = recording.write_record(here)
            x.log.finish(here, kept)
        else:
            recording.forget_failure(here.folder)
            runlog.print_line("done already: this config's record is on file, nothing was computed")
            x.log.again(here, kept)
        links.link_point(here.folder, x)
    return runlog.print_record(kept, here.folder, here.remarks)


def assist(here: lab.Lab) -> None:
    """Take part in a point that several processes share; the first of them keeps its record."""
    if recording.finished_record(here) is None:
        from depthcut import algorithm

        with runlog.quiet_libraries():
            algorithm.run_experiment(here.experiment, here)


if __name__ == "__main__":
    gc.set_threshold(700, 10, 1000)  # imports leave no garbage; to look for it among all that there is took 2 s of 9
    sys.exit(failures.run_guarded(partial(cli_main.run_command, main, sys.argv[1:])))
