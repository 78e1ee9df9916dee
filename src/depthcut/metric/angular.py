"""Angular distance between the input and the output of every block (Gromov et al., arXiv:2403.17887, equation 7)."""

import math
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from depthcut.metric import Metric
from depthcut.scores import Scores
from depthcut.strict import strict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from depthcut.text import Tokens


@strict
class Angular(Metric):
    """``d(l, n) = arccos(cos(x_l, x_{l+n})) / pi`` of the last token that is no padding, averaged over the samples.

    One pass of the decoder stack, without the head, gives all L(L+1)/2 blocks: only L+1 vectors of a sample are kept.

    Attributes:
        batch: sequences a forward pass.
    """

    batch: Annotated[int, Field(gt=0)]
    incidental: ClassVar[frozenset[str]] = frozenset({"batch"})

    def __call__(self, model: "nn.Module", calibration: "Tokens") -> Scores:
        """Score all blocks.

        Raises:
            ValueError: if no sample gave finite states.
        """
        import torch

        from depthcut import depth
        from depthcut.progress import track

        layers = len(depth.layers(model))
        total = torch.zeros(layers + 1, layers + 1, dtype=torch.float64)
        squares = torch.zeros_like(total)
        samples = left_out = 0
        with torch.inference_mode():
            for ids_BT, mask_BT in track(
                calibration.batches(self.batch), "angular distance", len(calibration) // self.batch
            ):
                edges_EBD = last_token_states(model, ids_BT, mask_BT, layers)
                distance_BEE, good_B = distances(edges_EBD)
                good_BEE = distance_BEE[good_B]
                total += good_BEE.sum(0)
                squares += good_BEE.square().sum(0)
                samples += len(good_BEE)
                left_out += len(good_B) - len(good_BEE)
        if not samples:
            raise ValueError(f"metric=angular: none of the {left_out} calibration samples gave finite hidden states")
        return summary(total, squares, samples, left_out)


def last_token_states(model: "nn.Module", ids_BT: "Tensor", mask_BT: "Tensor", layers: int) -> "Tensor":
    """The residual stream at each sequence's last token, at all edges: E = layers + 1, shape E x B x D."""
    import torch

    from depthcut import depth

    device = next(model.parameters()).device
    ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
    rows_B = torch.arange(len(ids_BT), device=device)
    positions_T = torch.arange(ids_BT.shape[1], device=device)
    last_B = (mask_BT * positions_T).argmax(1)
    states: list[Tensor | None] = [None] * (layers + 1)

    def see(edge: int, h_BTD: "Tensor") -> None:
        states[edge] = h_BTD[rows_B, last_B]

    with depth.watch(model, see):
        depth.decoder(model)(input_ids=ids_BT, attention_mask=None if mask_BT.all() else mask_BT, use_cache=False)
    seen = [state for state in states if state is not None]
    assert len(seen) == layers + 1
    return torch.stack([state.to(seen[0].device) for state in seen])


def distances(edges_EBD: "Tensor") -> "tuple[Tensor, Tensor]":
    """Angular distance between all pairs of edges, in [0, 1].

    Cosines are taken in float64 and clamped: at small angles the rounding of bfloat16 is as large as the distance.

    Returns:
        distance_BEE (float64, CPU) and good_B: whether all of a sample's states are finite and none is zero.
    """
    import torch

    states_BED = edges_EBD.transpose(0, 1).to(device="cpu", dtype=torch.float64)
    norm_BE = states_BED.norm(dim=-1)
    good_B = (norm_BE.isfinite() & (norm_BE > 0)).all(1)
    unit_BED = states_BED / norm_BE.unsqueeze(-1)
    cosine_BEE = (unit_BED @ unit_BED.transpose(1, 2)).clamp(-1, 1)
    return cosine_BEE.arccos() / math.pi, good_B


def summary(total_EE: "Tensor", squares_EE: "Tensor", samples: int, left_out: int) -> Scores:
    """Means and standard errors out of sums and sums of squares, above the diagonal."""
    mean_EE = (total_EE / samples).triu(1)
    spread_EE = (squares_EE / samples - (total_EE / samples).square()).clamp(min=0).triu(1)
    stderr_EE = (spread_EE / max(samples - 1, 1)).sqrt()
    return Scores(
        depth=len(mean_EE) - 1, between=mean_EE.tolist(), stderr=stderr_EE.tolist(), samples=samples, left_out=left_out
    )
