"""One experiment: compose the config, skip it if it is done, run the page, keep the record.

python run.py                                    a small real model, on a CPU, in minutes
python run.py model=llama2_70b prune.frac=0.5    the paper's run
python run.py -m prune.frac=0,0.25,0.5           several points of one study
python run.py --help                             every choice and every knob
"""

import gc
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from depthcut import complaints, config, lab, ranks, record, runlog


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Run one point of a study; what goes wrong is told at the end."""
    with complaints.noted():
        point(cfg)


def point(cfg: DictConfig) -> None:
    """Run the point, or say that it is done."""
    x = config.read(cfg)
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.RUN:
        config.require_tasks_of_command_line(x, HydraConfig.get().overrides.task)
    here = lab.enter(x)
    if ranks.rank():
        return assist(here)
    with record.alone(here):
        kept = record.finished(here)
        if kept is None:
            from depthcut import algorithm

            with record.attempt(here), runlog.to(here):
                algorithm.run(x, here)
                kept = record.write(here)
            x.log.finish(here, kept)
        else:
            runlog.say("done already: this config's record is on file, nothing was computed")
            x.log.again(here, kept)
    return runlog.show(kept, here.folder, here.remarks)


def assist(here: lab.Lab) -> None:
    """Take part in a point that several processes share; the first of them keeps its record."""
    if record.finished(here) is None:
        from depthcut import algorithm

        with runlog.quiet():
            algorithm.run(here.experiment, here)


if __name__ == "__main__":
    gc.set_threshold(700, 10, 1000)  # imports leave no garbage; to look for it among all that there is took 2 s of 9
    sys.exit(complaints.guard(main))
