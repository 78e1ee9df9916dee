"""Share of a block that no linear map explains (Your Transformer is Secretly Linear, arXiv:2405.12250, section 3)."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from depthcut.cut.plan import Unit
from depthcut.cut.scores import Scores
from depthcut.metric import Metric
from depthcut.metric.passes.linear_fit import MapKind, collect_states, unexplained_shares
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from depthcut.metric import Subject


@strict
class Linearity(Metric):
    """``min ||f(X) - Y||^2 / ||Y||^2`` over maps f; X and Y are x_l and x_{l+n} over the tokens, each centred.

    Takes one pass and holds the tokens' states at all edges in float32, 4 (L + 1) D bytes per token. The standard error
    and the bootstrap are those of the residuals over the samples, with the fitted map held fixed.

    Attributes:
        map: ``least_squares``: any matrix, as in the paper; a fit to N tokens flatters it, which the factor
            ``(N - 1) / (N - rank - 1)`` corrects. ``procrustes``: a rotation and a scale; takes an SVD of D x D per
            block.
        tokens: maximum number of tokens to compare, evenly spaced over all samples.
        batch: sequences per forward pass.
    """

    map: MapKind
    tokens: Annotated[int, Field(ge=2)]
    batch: Annotated[int, Field(gt=0)]
    rescores: ClassVar[bool] = True
    units: ClassVar[tuple[Unit, ...]] = ("layer",)
    incidental: ClassVar[frozenset[str]] = frozenset({"batch"})

    def __call__(self, subject: "Subject", removed: tuple[int, ...] = (), unit: Unit = "layer") -> Scores:
        """Score all blocks in one pass.

        Raises:
            UserError: if the calibration text has too few tokens for the map.
        """
        from depthcut.metric.passes import hidden_states
        from depthcut.model.decoder import layers

        assert unit == "layer"
        there = int(subject.texts.calibration().lengths.sum())
        wanted = min(self.tokens, there)
        self.check(wanted, layers.text_config(subject.dense.config).hidden_size, there)
        over = hidden_states.HiddenStates(
            subject=subject, removed=removed, batch=self.batch, token="all", name="linearity"
        )
        states_END, sample_N, left_out = collect_states(over, wanted)
        self.check(len(sample_N), states_END.shape[2], there)
        shares, stderrs, draws = unexplained_shares(states_END, sample_N, self.map, subject.dense.device)
        return Scores.of_blocks(shares, stderrs, int(sample_N[-1]) + 1, left_out, draws)

    def check(self, tokens: int, width: int, there: int) -> None:
        """Refuse too few tokens.

        Procrustes maps any two points exactly to any others, and least squares any ``width + 1``.
        """
        needed = width + 2 if self.map == "least_squares" else 3
        if tokens < needed:
            raise UserError(
                f"metric=linearity: metric.map={self.map} needs at least {needed} usable tokens, got {tokens}: raise "
                f"data.calibration.sequences (they have {there} tokens) or metric.tokens (now {self.tokens})"
            )
