"""Chained healing: a point's adapters that another run starts from, checked before anything heavy is loaded.

Gromov et al. (arXiv:2403.17887, appendix A.1) heal each cut from scratch; here a larger cut continues from a smaller
one.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.cut.plan import Plan
from depthcut.record import links
from depthcut.runtime import documents, store, verified
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from depthcut.heal import Workspace

DIGEST = re.compile("[0-9a-f]{16}")
MATCHING_KNOBS = ("rank", "alpha", "modules")
ADAPTER_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class WarmStart:
    """Adapters that a run starts from.

    Attributes:
        folder: their folder.
        plan: the plan that they were trained under.
    """

    folder: Path
    plan: Plan

    @classmethod
    def found(cls, name: str, workspace: "Workspace") -> "WarmStart":
        """Return the adapters of the point ``name``: its folder, its readable link, or a prefix of its digest.

        Raises:
            UserError: if no point or several points match, it has no adapters, or they do not fit this run.
        """
        prefix = f"heal.init_from={name}"
        points = links.find_points(name, workspace.study)
        if not points:
            wanted = "give a point's folder, or at least 4 digits of its digest"
            raise UserError(f"{prefix}: no such point; {wanted} in {workspace.study.parent}")
        if len(points) > 1:
            there = ", ".join(sorted(each.name for each in points))
            raise UserError(f"{prefix}: {len(points)} points match: {there}; give more digits")
        point = points[0]
        folder = point / "adapter"
        named = point.resolve().name
        if (key := verified.entry_key(folder)) and DIGEST.fullmatch(named) and key != named:
            raise UserError(f"{prefix}: the adapters in {folder} belong to point {key}; name that one")
        if not verified.is_verified(folder, key or ""):
            raise UserError(f"{prefix}: no complete adapters in {folder}; first heal that point with adapters")
        check_warm_start(prefix, documents.read_yaml(point / "config.yaml"), workspace)
        plan = Plan.read(folder / "plan.json")
        if plan.model != workspace.dense.checkpoint.digest:
            raise UserError(
                f"{prefix}: its adapters are for model {plan.model[:8]}, "
                f"this is {workspace.dense.checkpoint.digest[:8]}"
            )
        return cls(folder, plan)

    @property
    def content(self) -> dict[str, Any]:
        """The adapters by content: their weights, and the layers that they were trained on."""
        return {
            "weights": store.file_sha256(self.folder / ADAPTER_FILE),
            "unit": self.plan.unit,
            "drop": self.plan.drop,
        }


def check_warm_start(prefix: str, there: dict[str, Any], workspace: "Workspace") -> None:
    """Refuse adapters of another shape, and points whose layer numbers are ambiguous.

    Args:
        prefix: beginning of the error message.
        there: the config of the point that has the adapters.
        workspace: the run that is to start from them.

    Raises:
        UserError: if they do not fit.
    """
    here = workspace.config
    try:
        theirs = [there["heal"].get(key) for key in MATCHING_KNOBS]
        kinds = [config["replace"]["_target_"].split(".")[-2] for config in (there, here)]
    except (KeyError, TypeError, AttributeError, IndexError):
        raise UserError(f"{prefix}: its config.yaml is not a composed config; name another point") from None
    for key, one in zip(MATCHING_KNOBS, theirs, strict=True):
        if one != (other := here["heal"][key]):
            raise UserError(
                f"{prefix}: its adapters have heal.{key}={one}, this point has heal.{key}={other}; they must agree"
            )
    for kind in kinds:
        if kind != "none":
            raise UserError(f"{prefix}: both points must have replace=none, got replace={kind}")
