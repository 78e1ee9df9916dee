"""Groups that are pruned together in width (LoRAPrune, arXiv:2305.18403, section 3.3): heads and FFN channels.

Query heads that read the same keys and values form one group with them, a KV group. All groups of a layer's attention
are therefore alike, and lie one after the other in each of its matrices: in the rows of those that read the residual
stream, in the columns of the one that writes to it. The public code assumes 32 heads of 128 in every matrix.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from depthcut.model.surgery.width.widths import GroupKind
from depthcut.runtime.errors import UserError

# The linear layers that read the residual stream, and the names of the one that writes to it.
GROUPED_LINEARS: dict[tuple[str, ...], tuple[GroupKind, tuple[str, ...]]] = {
    ("q_proj", "k_proj", "v_proj"): ("heads", ("o_proj", "out_proj", "dense")),
    ("gate_proj", "up_proj"): ("channels", ("down_proj",)),
    ("fc1",): ("channels", ("fc2",)),
}


@dataclass(frozen=True)
class WidthGroups:
    """The groups of one kind in a layer.

    Attributes:
        count: G.
        module_name: name in the layer of the module that the groups divide; empty for the layer itself.
        input_linears: names in that module of the linear layers whose outputs belong to the groups.
        output_linear: name of the linear layer whose inputs belong to the groups.
    """

    count: int
    module_name: str
    input_linears: tuple[str, ...]
    output_linear: str

    def module(self, layer: nn.Module) -> nn.Module:
        """Return the module that the groups divide."""
        return layer.get_submodule(self.module_name)

    def output_module(self, layer: nn.Module) -> nn.Module:
        """Return the linear layer that reads the outputs of the groups."""
        return self.module(layer).get_submodule(self.output_linear)

    def linears(self, layer: nn.Module) -> Iterator[tuple[nn.Module, int]]:
        """Yield each linear layer with the axis of its weight that the groups divide: 0 its outputs, 1 its inputs."""
        for name in self.input_linears:
            yield self.module(layer).get_submodule(name), 0
        yield self.output_module(layer), 1


def layer_groups(layer: nn.Module) -> dict[GroupKind, WidthGroups]:
    """Return the groups of a decoder layer, with or without adapters on its linear layers.

    Raises:
        UserError: if it has no groups that this package supports, or several sets of a kind (experts).
    """
    found: dict[GroupKind, WidthGroups] = {}
    for module_name, part in layer.named_modules():
        children = {name for name, _ in part.named_children()}
        for inner, (kind, outers) in GROUPED_LINEARS.items():
            outer = next((name for name in outers if name in children), None)
            if outer is None or not children.issuperset(inner):
                continue
            if kind in found:
                raise UserError(f"{type(layer).__name__} has several sets of {kind}; none of them can be narrowed")
            found[kind] = WidthGroups(count_groups(kind, part, inner), module_name, inner, outer)
            check_independent_groups(layer, found[kind])
    if not found:
        known = " or ".join(" + ".join((*inner, outers[0])) for inner, (_, outers) in GROUPED_LINEARS.items())
        raise UserError(f"{type(layer).__name__} stores its weights in other matrices than {known}")
    return found


def check_independent_groups(layer: nn.Module, groups: WidthGroups) -> None:
    """Refuse other weights across the groups, such as a norm over all heads (OLMo 2).

    Raises:
        UserError: if there are such weights.
    """
    if not groups.module_name:  # the layer itself, which also contains everything else
        return
    owner = groups.module(layer)
    width = vars(owner).get("head_dim")
    for name, weight in owner.named_parameters():
        if name.partition(".")[0] not in (*groups.input_linears, groups.output_linear) and weight.numel() != width:
            raise UserError(f"{type(owner).__name__}.{name} spans its heads or channels; none can be removed")


def count_groups(kind: GroupKind, part: nn.Module, inner: tuple[str, ...]) -> int:
    """Return the number of groups: the heads of the keys, or the channels."""
    if kind == "channels":
        return output_features(part.get_submodule(inner[0]))
    keys, width = output_features(part.get_submodule("k_proj")), int(vars(part)["head_dim"])
    assert keys % width == 0, (keys, width)
    return keys // width


def output_features(linear: Any) -> int:
    """Return the number of outputs of a linear layer, quantised or not, with adapters or without."""
    return int(linear.out_features)
