"""When a model is in shares, of which each process holds one, and how the processes then work on it together."""

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING

from depthcut.cut.plan import Plan
from depthcut.runtime import devices
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from depthcut.study.lab import Lab

    Model = Callable[[], nn.Module]


def needs_sharding(lab: "Lab", plan: Plan | None) -> bool:
    """Whether of what ``plan`` keeps each process holds a share alone: as it has no room on one card, or is to.

    All processes answer alike: what counts is how large a card is, not what is free of it.
    """
    asked = lab.experiment.stream
    if not getattr(lab.experiment.heal, "sharded", False) or asked == "never":
        return False
    return asked == "always" or not devices.fits_in_total_memory(plan_weight_bytes(lab, plan), lab.device)


def plan_weight_bytes(lab: "Lab", plan: Plan | None) -> int:
    """Bytes of what ``plan`` keeps."""
    plan = plan or Plan(lab.checkpoint.depth, ())
    return lab.weigh(plan.unit).without(plan.drop)["weight_bytes"]


def load_shard(lab: "Lab", plan: Plan | None) -> "nn.Module":
    """This process's share of what ``plan`` keeps.

    Raises:
        UserError: if not even shares have room; if the dense model is asked for where one process is alone.
    """
    import torch

    from depthcut.model.checkpoint import loading, sharded

    if plan is None and not lab.helped:
        word = type(lab.experiment.metric).__module__.rsplit(".", 1)[-1]
        raise UserError(f"metric={word} needs the whole dense model on one card, which has no room for it")
    gc.collect()  # the layers of an earlier model in shares know their list, which knows them
    devices.check_shards_fit(plan_weight_bytes(lab, plan), lab.device)
    form = loading.LoadConfig("none", getattr(torch, lab.experiment.model.dtype), lab.device)
    return sharded.load_sharded(lab.checkpoint, plan, form)


def run_with_shards(lab: "Lab", plan: Plan | None, model: "Model", work: "Callable[[Model], object]") -> None:
    """Do ``work``, which runs the model that ``plan`` left where what it makes is not on file.

    Of a model in shares the first process does it, with the help of the others; these then find it on file.

    Raises:
        UserError: if something is to be measured that a model in shares does not show.
    """
    if not needs_sharding(lab, plan):
        work(model)
        return
    for name, evaluation in lab.experiment.eval.items():
        if evaluation.needs_whole:
            raise UserError(
                f"eval.{name} needs a model that is whole on one card, and each process holds a share of this one: "
                "leave that out, or take stream=never"
            )
    from depthcut.model.checkpoint import sharded

    lab.helped = True
    sharded.run_on_first_rank(lab.device, model, work)
    lab.helped = False
