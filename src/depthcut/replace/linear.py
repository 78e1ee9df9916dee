"""A linear map per gap, fitted by least squares (ReplaceMe, arXiv:2505.02819; Secretly Linear, arXiv:2405.12250)."""

import logging
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from depthcut.cut.plan import Plan
from depthcut.replace import GapFilling
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from depthcut.model.surgery.filling import Filling
    from depthcut.replace import Site
    from depthcut.replace.fitting.least_squares import SufficientStatistics

log = logging.getLogger("depthcut")


@strict
class Linear(GapFilling):
    """``y = x + z B``; B is fitted to the gap's update of the residual stream over the calibration tokens.

    Attributes:
        map: form of B: a diagonal, any matrix, one that makes I + B orthogonal, or one of rank ``rank``.
        rank: r; null unless ``map`` is ``low_rank``.
        ridge: fraction of each feature's squared length that is added to it; pulls B towards 0.
        fuse: z is the output of the MLP before the gap, and I + B is folded into its last weights: no parameter is
            added, and the model stays a plain one. Otherwise z is the stream x.
        batch: sequences per forward pass.
    """

    map: Literal["diagonal", "full", "orthogonal", "low_rank"]
    rank: Annotated[int | None, Field(ge=1, le=65_536)]
    ridge: Annotated[float, Field(ge=0)]
    fuse: bool
    batch: Annotated[int, Field(gt=0)]
    part: ClassVar[Literal["calibration"]] = "calibration"
    incidental: ClassVar[frozenset[str]] = frozenset({"batch"})

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.map == "low_rank"):
            wanted = "needs replace.rank" if self.rank is None else "has no rank: use replace.rank=null"
            raise UserError(f"replace.map={self.map} {wanted}")

    @override
    def prepare(self, site: "Site") -> None:
        from depthcut.model.decoder import layers

        width = layers.text_config(site.dense.config).hidden_size
        if self.rank is not None and self.rank > width:
            raise UserError(f"replace.rank must be at most {width}, the width of the model, got {self.rank}")
        tokens = int(site.texts.calibration().lengths.sum())
        if self.map != "diagonal" and tokens < width:
            raise UserError(
                f"replace.map={self.map} needs at least {width} tokens, the width of the model, got {tokens}: "
                "raise data.calibration.sequences, or use replace.map=diagonal"
            )

    def made(self, model: "nn.Module", plan: Plan, site: "Site") -> "Filling":
        """Fit all gaps in one pass.

        Raises:
            UserError: if no state is finite, or with ``fuse`` there is no MLP that can absorb a map.
        """
        from depthcut.model.surgery.filling import Filling, flatten_tensors
        from depthcut.replace.fitting import boundary_states, fusing, least_squares

        if self.fuse:
            fusing.check_fusable(model, plan, site)
        sums: dict[int, SufficientStatistics] = {}
        for start, z_ND, r_ND in boundary_states.gap_samples(model, plan, site, self.batch, self.fuse):
            sums.setdefault(start, least_squares.SufficientStatistics.of_width(z_ND)).add(z_ND, r_ND)
        fitted = {start: self.fitted(start, each) for start, each in sums.items()}
        if self.fuse:
            return fusing.fuse_maps(fitted, site)
        single = {start: {name: part.float() for name, part in parts.items()} for start, parts in fitted.items()}
        return Filling("bridges", flatten_tensors(single))

    def fitted(self, start: int, sums: "SufficientStatistics") -> "dict[str, Tensor]":
        """Return the map of one gap, float64, and log how well it fits."""
        from depthcut.replace.fitting import least_squares

        parts = least_squares.fit_map(sums, self.map, self.ridge, self.rank)
        share = 1 - sums.unexplained(least_squares.map_matrix(parts))
        log.info("the map over the gap at layer %d explains %.1f %% of the layers' update", start, 100 * share)
        return parts
