"""LoRA modules: added to a model, copied, loaded."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from depthcut.cut.plan import Plan
from depthcut.heal.training.low_rank_recipe import LowRankRecipe
from depthcut.heal.training.warm_start import WarmStart
from depthcut.model.decoder import layers as decoder_layers
from depthcut.model.decoder import linear
from depthcut.model.decoder.adapters import require_same_weights
from depthcut.model.surgery import gaps
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    pass

log = logging.getLogger("depthcut")

ADAPTER_FILE = "adapter_model.safetensors"


def add_adapters(model: nn.Module, recipe: LowRankRecipe, plan: Plan) -> PeftModel:
    """Freeze ``model``, pruned by ``plan``, and attach fresh adapters (B = 0) to the layers of the recipe."""
    return put_adapters(model, recipe, recipe.reached(plan, len(decoder_layers.layer_list(model))))


def put_adapters(model: nn.Module, recipe: LowRankRecipe, places: Sequence[int]) -> PeftModel:
    """Freeze ``model`` and attach fresh adapters to the decoder layers ``places``.

    Raises:
        UserError: if they have no such linear layers, or peft cannot adapt them.
    """
    assert isinstance(model, PreTrainedModel)
    stack, stem = decoder_layers.layer_list(model), decoder_layers.layer_prefix(model)
    targets = adapted_linears([stack[index] for index in places], recipe.modules)
    more = gaps.lora_config_kwargs(model)
    others = [name for name in linear.linear_layers(model) if not name.startswith(f"{stem}.") and ends(name, targets)]
    if others:  # those of an image encoder
        more["exclude_modules"] = [*more.get("exclude_modules", ()), *others]
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # pyright: ignore[reportArgumentType]  peft accepts a float
        lora_dropout=recipe.dropout,
        target_modules=sorted(targets),
        layers_to_transform=list(places),
        layers_pattern=stem.rpartition(".")[2],
        fan_in_fan_out=any(isinstance(each, Conv1D) for each in targets.values()),
        task_type="CAUSAL_LM",
        **more,
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:  # peft refuses architectures where an adapter would have no effect
        why = " ".join(str(error).split()).split(". ")[0]
        mend = "use other heal.modules, heal=partial or heal=full"
        raise UserError(f"heal.modules={recipe.modules} does not work with this model ({why}); {mend}") from None
    assert isinstance(adapted, PeftModel)
    return adapted


def copy_adapters(adapted: PeftModel, origin: WarmStart, plan: Plan) -> None:
    """Copy the adapters of ``origin`` into the layers of ``adapted``, pruned by ``plan``, that both have.

    Raises:
        UserError: if they share no layer, or the adapters differ in shape.
    """
    stem, own = decoder_layers.layer_prefix(adapted), get_peft_model_state_dict(adapted, save_embedding_layers=False)
    number = {old: new for new, old in enumerate(plan.keep)}
    copied: dict[str, Tensor] = {}
    for name, tensor in load_file(origin.folder / ADAPTER_FILE).items():
        index, rest = decoder_layers.split_tensor_name(name, stem) or (-1, name)
        here = f"{stem}.{number.get(origin.plan.keep[index])}.{rest}"
        if here in own:
            copied[here] = tensor
    if not copied:
        raise UserError(f"heal.init_from: no layer has adapters both in {origin.folder} and in this cut")
    for name, tensor in copied.items():
        if tensor.shape != own[name].shape:
            raise UserError(f"heal.init_from: {name} is {list(own[name].shape)} here but {list(tensor.shape)} there")
    assert not set_peft_model_state_dict(adapted, copied).unexpected_keys
    layers = len({(decoder_layers.split_tensor_name(name, stem) or (0,))[0] for name in copied})
    log.info("healing starts from %s: adapters of %d layers copied, the others new", origin.folder, layers)


def load_adapters(adapted: PeftModel, folder: Path) -> None:
    """Read the adapters of ``folder`` into ``adapted``.

    Raises:
        UserError: if they are not those of exactly the layers that have adapters.
    """
    found, own = load_file(folder / ADAPTER_FILE), get_peft_model_state_dict(adapted, save_embedding_layers=False)
    require_same_weights(folder, found.keys(), own.keys())
    assert not set_peft_model_state_dict(adapted, found).unexpected_keys
    adapted.eval()


def adapted_linears(layers: Sequence[nn.Module], modules: linear.Modules) -> dict[str, nn.Module]:
    """Return the linear layers within decoder layers by their names there, such as ``mlp.up_proj``.

    Raises:
        UserError: if there are none of the kind that ``modules`` names.
    """
    found = {name: each for layer in layers for name, each in linear.linear_layers(layer).items()}
    names = linear.select_linear_names(sorted(found), modules)
    if not names:
        there = ", ".join(sorted(found)) or "none"
        raise UserError(f"heal.modules={modules}: no such linear layer in this model; available: {there}")
    return {name: found[name] for name in names}


def ends(name: str, targets: Iterable[str]) -> bool:
    """Return whether peft matches the module ``name`` to one of ``targets``, anywhere in the model."""
    return any(name == each or name.endswith(f".{each}") for each in targets)
