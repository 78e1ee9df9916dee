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
    with failures.noted():
        point(cfg)


def point(cfg: DictConfig) -> None:
    """Run the point, or say that it is done."""
    x = experiment.read(cfg)
    here = lab.enter(x)
    if ranks.rank():
        return assist(here)
    with recording.alone(here):
        kept = recording.finished(here)
        if kept is None:
            from depthcut import algorithm
            from depthcut.study import control

            for evaluation in x.eval.values():
                evaluation.check()
            with recording.attempt(here), runlog.to(here):
                algorithm.run(x, here)
                control.measure(here)
                kept = recording.write(here)
            x.log.finish(here, kept)
        else:
            recording.forget_failure(here.folder)
            runlog.say("done already: this config's record is on file, nothing was computed")
            x.log.again(here, kept)
        links.add(here.folder, x)
    return runlog.show(kept, here.folder, here.remarks)


def assist(here: lab.Lab) -> None:
    """Take part in a point that several processes share; the first of them keeps its record."""
    if recording.finished(here) is None:
        from depthcut import algorithm

        with runlog.quiet():
            algorithm.run(here.experiment, here)


if __name__ == "__main__":
    gc.set_threshold(700, 10, 1000)  # imports leave no garbage; to look for it among all that there is took 2 s of 9
    sys.exit(failures.guard(partial(cli_main.run, main, sys.argv[1:])))
