"""Power-law exponent of a layer's weight spectra; reads no text (AlphaPruning, arXiv:2410.10912: PL_Alpha_Hill)."""

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

# Lower bound of the mean logarithm over the tail; float32 cannot tell a smaller one from a flat spectrum.
MIN_MEAN_LOG = 1e-6


@strict
class Spectral(Metric):
    """Negative exponent ``alpha`` of the eigenvalues of ``W^T W``, averaged over a layer's matrices.

    A heavy tail, a small alpha, marks a well-trained matrix. A layer with a large alpha is under-trained and is dropped
    first, hence the sign. Each matrix is read from disk once; no model is loaded.
    """

    reads_text: ClassVar[bool] = False

    def __call__(self, subject: "Subject", removed: tuple[int, ...] = (), unit: Unit = "layer") -> Scores:
        """Score single units.

        Raises:
            UserError: if a unit has no matrix of rank 2 or more.
        """
        assert not removed
        depth = subject.dense.depth
        scores = [-self.alpha(subject, index, unit) for index in track(range(depth), "spectral", depth)]
        return Scores.of_layers(scores, [0.0] * depth)

    def alpha(self, subject: "Subject", index: int, unit: Unit) -> float:
        """Return the mean exponent of one unit's matrices; norms, biases and matrices of rank 0 or 1 have none.

        Each expert of a fused stack counts as a matrix, as it does in files that store experts separately.
        """
        tensors = subject.dense.tensors(index, unit).values()
        shapes = ((tensor, tensor.get_shape()) for tensor in tensors)
        stacks = (tensor[...] for tensor, shape in shapes if len(shape) > 1 and min(shape[-2:]) > 1)
        matrices = (each.to(subject.dense.device) for stack in stacks for each in stack.reshape(-1, *stack.shape[-2:]))
        found = [alpha for matrix in matrices if (alpha := hill_exponent(gram_eigenvalues(matrix))) is not None]
        if not found:
            what = f"layer {index}" if unit == "layer" else f"the {unit} of layer {index}"
            raise UserError(
                f"metric=spectral needs a matrix of rank at least 2, and {what} has none; use another metric"
            )
        return fmean(found)


def gram_eigenvalues(matrix: "Tensor") -> "Tensor":
    """Return the nonzero eigenvalues of ``W^T W``, ascending, from the smaller of ``W^T W`` and ``W W^T``.

    In float64, where squaring loses no relevant digits; it takes no longer than singular values in float32.
    """
    import torch

    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    all_N = torch.linalg.eigvalsh(wide @ wide.T)
    return all_N[all_N > all_N[-1] * max(wide.shape) * torch.finfo(all_N.dtype).eps]


def hill_exponent(ascending_N: "Tensor") -> float | None:
    """Return Hill's estimate ``1 + k / sum_{i=1..k} ln(lambda_{n-i+1} / lambda_{n-k})`` over the upper half.

    k is n // 2. The public code (``xmin_mid``) also counts the smallest eigenvalue of its tail, whose own logarithm is
    0, in k.

    Returns:
        The estimate, or None for fewer than two eigenvalues.
    """
    logs_N = ascending_N.log()
    k = len(logs_N) // 2
    if k == 0:
        return None
    above = (logs_N[-k:] - logs_N[-k - 1]).mean().item()
    return 1 + 1 / max(above, MIN_MEAN_LOG)
