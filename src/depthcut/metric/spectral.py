"""The power-law exponent of a layer's spectra, without any text (AlphaPruning, arXiv:2410.10912: PL_Alpha_Hill)."""

from statistics import fmean
from typing import TYPE_CHECKING, ClassVar

from depthcut.cut.plan import Unit
from depthcut.cut.scores import Scores
from depthcut.metric import Metric
from depthcut.runtime.errors import UserError
from depthcut.runtime.progress import track
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import Tensor

    from depthcut.metric import Subject

# What a float32 matrix cannot tell from a flat spectrum: the mean logarithm over the tail is taken as no less.
MIN_MEAN_LOG = 1e-6


@strict
class Spectral(Metric):
    """Minus the exponent ``alpha`` of ``W^T W``'s eigenvalues, averaged over a layer's matrices.

    A heavy tail, a small alpha, is the mark of a well trained matrix; a layer of large alpha is under-trained and goes
    first, so that the score is minus alpha. Each matrix is read once, off the disk; no model is loaded.
    """

    reads_text: ClassVar[bool] = False

    def __call__(self, subject: "Subject", removed: tuple[int, ...] = (), unit: Unit = "layer") -> Scores:
        """Score the single units.

        Raises:
            UserError: if a unit has no matrix of rank two or more.
        """
        assert not removed
        depth = subject.dense.depth
        scores = [-self.alpha(subject, index, unit) for index in track(range(depth), "spectral", depth)]
        return Scores.of_layers(scores, [0.0] * depth)

    def alpha(self, subject: "Subject", index: int, unit: Unit) -> float:
        """The mean exponent of one unit's matrices; norms, biases and matrices of rank 0 or 1 have none.

        Each expert of a fused stack of them counts as a matrix, as it does where files keep experts apart.
        """
        tensors = subject.dense.tensors(index, unit).values()
        shapes = ((tensor, tensor.get_shape()) for tensor in tensors)
        stacks = (tensor[...] for tensor, shape in shapes if len(shape) > 1 and min(shape[-2:]) > 1)
        matrices = (each.to(subject.dense.device) for stack in stacks for each in stack.reshape(-1, *stack.shape[-2:]))
        found = [alpha for matrix in matrices if (alpha := hill_exponent(gram_eigenvalues(matrix))) is not None]
        if not found:
            what = f"layer {index}" if unit == "layer" else f"the {unit} of layer {index}"
            raise UserError(
                f"metric=spectral needs a matrix of rank 2 or more, and {what} has none; take another metric"
            )
        return fmean(found)


def gram_eigenvalues(matrix: "Tensor") -> "Tensor":
    """The eigenvalues of ``W^T W`` that are not zero, ascending: the smaller of its two products has them all.

    In float64, where squaring costs no digits that matter; it takes no longer than singular values in float32.
    """
    import torch

    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    all_N = torch.linalg.eigvalsh(wide @ wide.T)
    return all_N[all_N > all_N[-1] * max(wide.shape) * torch.finfo(all_N.dtype).eps]


def hill_exponent(ascending_N: "Tensor") -> float | None:
    """Hill's estimate over the upper half: ``1 + k / sum_{i=1..k} ln(lambda_{n-i+1} / lambda_{n-k})``, k = n // 2.

    The public code (``xmin_mid``) also counts the smallest of its tail, whose own logarithm is 0, as one of k.

    Returns:
        None where there are not two eigenvalues.
    """
    logs_N = ascending_N.log()
    k = len(logs_N) // 2
    if k == 0:
        return None
    above = (logs_N[-k:] - logs_N[-k - 1]).mean().item()
    return 1 + 1 / max(above, MIN_MEAN_LOG)
