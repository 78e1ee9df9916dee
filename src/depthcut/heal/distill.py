"""Adapters trained on the dense model's next-token probabilities (Hinton et al., arXiv:1503.02531)."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from depthcut.cut.plan import Plan
from depthcut.heal import Heal
from depthcut.heal.training.adapter_check import CheckedAdapters
from depthcut.heal.training.low_rank_recipe import AdapterRecipe
from depthcut.heal.training.recipe import Positive
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.heal import Workspace


@strict
class Distill(CheckedAdapters, AdapterRecipe, Heal):
    """Low-rank adapters on frozen weights, trained on ``mix * temperature^2 * KL + (1 - mix) * NLL``.

    With p and q the teacher's and the student's softmax(logits / temperature), S the teacher's ``top_k`` most likely
    tokens, and p(other), q(other) the probability outside S, at each position::

        KL = sum over i in S of p(i) log(p(i) / q(i))  +  p(other) log(p(other) / q(other))

    All of the mass counts; the tokens outside S form one more class. The sum is at most the KL over all tokens, and
    equals it if ``top_k`` is the vocabulary. The teacher is the dense model as loaded by ``model.quantise`` and
    ``model.dtype``.

    Attributes:
        mix: weight of the KL; the rest goes to the NLL of the text's next token.
        top_k: K.
        temperature: above 1, unlikely tokens count for more; 1 leaves the probabilities unchanged.
        teacher: ``cached``: the teacher reads the text once and writes 4 K + 2 bytes per token to disk (6 K + 2 for a
            vocabulary above 65,536). ``live``: it stays in memory next to the student and reads each batch.
    """

    mix: Annotated[float, Field(gt=0, le=1)]
    top_k: Positive
    temperature: Annotated[float, Field(gt=0)]
    teacher: Literal["cached", "live"]
    trains: ClassVar[bool] = True
    bases: ClassVar[tuple[str, ...]] = ("none", "nf4", "int8")
    incidental: ClassVar[frozenset[str]] = frozenset({"teacher"})

    @property
    def keeps_dense(self) -> bool:
        """Whether the teacher stays in memory."""
        return self.teacher == "live"

    @property
    def logits(self) -> int:
        """Logits held at once: 5, plus one for the NLL term."""
        return 6 if self.mix < 1 else 5

    @override
    def prepare(self, workspace: "Workspace") -> None:
        from depthcut.model.decoder import layers

        super().prepare(workspace)
        vocabulary = layers.text_config(workspace.dense.config).vocab_size
        if self.top_k > vocabulary:
            raise UserError(f"heal.top_k must be at most {vocabulary}, the model's vocabulary, got {self.top_k}")

    def __call__(self, model: "nn.Module", plan: Plan, workspace: "Workspace") -> "nn.Module":
        """Train the adapters, or attach the trained ones."""
        from depthcut.heal.training import distill

        return distill.train_distilled(model, plan, workspace, self, self)
