"""Trains the model's own weights, all or the last of them: stored once, read back from disk into the model.

A bfloat16 keeps 8 bits, and a step of AdamW changes a weight by about the learning rate: at 1e-5, the change of a
weight of 0.02 is rounded away. So trained weights, moments and gradients are float32 during training, and only products
are in bfloat16, under autocast; a float32 model has float32 products. This holds on a GPU and on a CPU.

At the end, weights return to the model's dtype by stochastic rounding: on average nothing is lost. Rounding to nearest
would lose a sum of steps below half a bfloat16, because the weights of a pretrained model are bfloat16s to begin with.
SmolLM2 without layers 11-18, 4 steps at 1e-5: held-out loss 6.064 before, float32 5.936, stochastic rounding 5.962,
rounding to nearest 6.062; trained in bfloat16 alone 6.076.
"""

import gc
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from depthcut.cut.plan import Plan
from depthcut.heal.training import fsdp, shadow_layers
from depthcut.heal.training.fit import fit_model
from depthcut.heal.training.objective import MixedPrecision, Objective, base_model, head_parameters, next_token_loss
from depthcut.heal.training.recipe import TrainingRecipe
from depthcut.model.decoder import layers
from depthcut.model.decoder.adapters import require_same_weights
from depthcut.runtime import ranks, verified

if TYPE_CHECKING:
    from depthcut.heal import Workspace

WEIGHTS_FILE = "model.safetensors"
NamedParameters = Mapping[str, nn.Parameter]
"""The trained parameters by name; a shared one has one name."""


def train_weights(
    model: nn.Module,
    plan: Plan,
    workspace: "Workspace",
    recipe: TrainingRecipe,
    trained: NamedParameters,
    objective: Objective = next_token_loss,
) -> nn.Module:
    """Train ``trained``, unless this point's weights are on disk already; return ``model`` with them.

    The returned weights are always read back from disk, so the measured model is the stored one. They are stored in the
    dtypes that they have in ``model``.
    """
    L.seed_everything(workspace.seed, verbose=False)
    step = objective if workspace.dense.dtype == "float32" else MixedPrecision(objective)

    def train(folder: Path) -> None:
        with workspace.numbers.timed("heal"), master_weights(model, trained) as types:
            fit_model(model, recipe, workspace, step)
            gc.collect()  # trainer and module form a cycle, which holds the optimiser's state
            rng = torch.Generator().manual_seed(workspace.seed)
            kept = {name: stochastic_round(each, types[name], rng) for name, each in gather_parameters(trained)}
        save_file(kept, folder / WEIGHTS_FILE)
        plan.write(folder / "plan.json")

    folder = workspace.folder / "weights"
    if ranks.global_rank() and not verified.is_verified(folder, workspace.digest):
        with master_weights(model, trained):
            # Contributes to each step; the first process stores the result.
            fit_model(model, recipe, workspace, step)
            for _ in gather_parameters(trained):
                pass
    verified.cached_folder(folder, train, workspace.digest)
    load_weights(trained, folder)
    return model.eval()


def all_parameters(model: nn.Module) -> NamedParameters:
    """Return all parameters of the decoder and of the head: all parameters of a text-only model."""
    wanted = {id(each) for each in [*layers.decoder_stack(model).parameters(), *head_parameters(base_model(model))]}
    return {name: each for name, each in model.named_parameters() if id(each) in wanted}


def last_layer_parameters(model: nn.Module, last: int) -> NamedParameters:
    """Return the parameters of the ``last`` layers and of the head, except a head tied to the embedding."""
    decoder = {id(each) for each in layers.decoder_stack(model).parameters()}
    wanted = {id(each) for layer in list(layers.layer_list(model))[-last:] for each in layer.parameters()}
    wanted |= {id(each) for each in head_parameters(base_model(model))} - decoder
    return {name: each for name, each in model.named_parameters() if id(each) in wanted}


@contextmanager
def master_weights(model: nn.Module, trained: NamedParameters) -> Generator[dict[str, torch.dtype]]:
    """Train ``trained`` alone, in float32, inside the ``with``; yield the original dtypes, and restore them after."""
    types = {name: each.dtype for name, each in trained.items()}
    model.requires_grad_(False)
    for each in trained.values():
        shadow_layers.cast_parameter(each, torch.float32)
        each.requires_grad_(True)
    yield types
    for name, each in trained.items():
        each.grad = None
        each.requires_grad_(False)
        shadow_layers.cast_parameter(each, types[name])


def gather_parameters(trained: NamedParameters) -> Iterator[tuple[str, Tensor]]:
    """Yield the trained parameters by name, on the host, one at a time; if sharded, every process has to iterate."""
    for name, each in trained.items():
        yield name, fsdp.gather_tensor(each)


def stochastic_round(weight: Tensor, dtype: torch.dtype, rng: torch.Generator) -> Tensor:
    """Return ``weight``, float32, in ``dtype``; a bfloat16 is one of its two neighbours, the nearer the more likely."""
    if dtype != torch.bfloat16:
        return weight.to(dtype).contiguous()
    noise = torch.randint(2**16, weight.shape, dtype=torch.int32, generator=rng)
    bits = weight.contiguous().view(torch.int32) + noise  # carries into the 16 bits that a bfloat16 keeps
    return (bits & -(2**16)).view(torch.float32).to(dtype)


def load_weights(trained: NamedParameters, folder: Path) -> None:
    """Read the weights of ``folder`` into the model that ``trained`` belongs to.

    Raises:
        UserError: if they are those of another model.
    """
    with safe_open(folder / WEIGHTS_FILE, "pt") as tensors, torch.no_grad():
        require_same_weights(folder, set(tensors.keys()), trained.keys())
        for name, each in trained.items():
            each.copy_(fsdp.shard_like(tensors.get_tensor(name), each))
