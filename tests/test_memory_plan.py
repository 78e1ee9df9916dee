"""The predicted memory of a step against the bytes that its tensors take."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from composing import composed
from counting import peak
from depthcut.config import build
from depthcut.cut.plan import Plan
from depthcut.heal.training import (
    adapter_modules,
    boundary,
    distill,
    fit,
    full_finetune,
    memory_plan,
    model_memory,
    objective,
)
from depthcut.heal.training.batches import MicroBatch
from depthcut.heal.training.memory_plan import Layout, MemoryPlan
from depthcut.heal.training.objective import MixedPrecision, Objective, next_token_loss
from depthcut.model.decoder import layers as decoder_layers

WIDTH, LENGTH, ROWS, VOCABULARY = 256, 256, 2, 2048
CHUNK = 64 * VOCABULARY * 4
KNOBS = ("model=pico", "heal.batch=2", f"heal.length={LENGTH}", "heal.warmup=0", "model.heal.rank=8", "data=demo")


def llama(layers: int, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 688, "num_attention_heads": 4, "num_key_value_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=layers, **sizes)).to(dtype).train()  # pyright: ignore


def recipe(heal: str, *more: str) -> Any:
    return build.build_experiment(composed(*KNOBS, f"heal={heal}", *more)).heal


def lora(heal: str, layers: int = 4, below: int | None = None) -> tuple[nn.Module, Any]:
    asked = recipe(heal)
    drop = () if below is None else (below,)
    return adapter_modules.add_adapters(llama(layers, torch.bfloat16), asked, Plan(layers + len(drop), drop)), asked


def whole(heal: str, last: int | None = None) -> tuple[nn.Module, Any]:
    model = llama(4, torch.float32)
    trained = full_finetune.all_parameters(model) if last is None else full_finetune.last_layer_parameters(model, last)
    model.requires_grad_(False)
    for each in trained.values():
        each.requires_grad_(True)
    return model, recipe(heal)


def drawn(edge: int) -> Objective:
    return boundary.boundary_objective(
        lambda _: torch.randn(ROWS, LENGTH, WIDTH, dtype=torch.bfloat16), edge, "relative"
    )


def distilled(asked: Any) -> Objective:
    positions = ROWS * (LENGTH - 1)
    ids_NK = torch.randint(0, VOCABULARY, (positions, asked.top_k))
    log_p_NC = torch.randn(positions, asked.top_k + 1).log_softmax(-1).half()
    return distill.distill_objective(lambda _: lambda places_N: (ids_NK[places_N], log_p_NC[places_N]), asked)


def counted(model: nn.Module, asked: Any, goal: Objective, layout: Layout) -> int:
    """Return the peak bytes of two steps; in the second the optimiser's state exists with the activations."""
    batch = MicroBatch(torch.randint(0, VOCABULARY, (ROWS, LENGTH)), torch.arange(ROWS))
    optimiser = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], fused=True)

    def steps() -> None:
        for _ in range(2):
            goal(model, batch).backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=False)

    with fit.applied_layout(model, layout, asked.runs_all):
        return peak(steps)


CASES: dict[str, Callable[[], tuple[tuple[nn.Module, Any], Callable[[Any], Objective]]]] = {
    "lora": lambda: (lora("lora"), lambda _: next_token_loss),
    "distill": lambda: (lora("distill"), distilled),
    "boundary": lambda: (lora("boundary", 8, 3), lambda _: drawn(3)),
    "full": lambda: (whole("full"), lambda _: next_token_loss),
    "full_mixed": lambda: (whole("full"), lambda _: MixedPrecision(next_token_loss)),
    "partial_mixed": lambda: (whole("partial", 2), lambda _: MixedPrecision(next_token_loss)),
}


@pytest.mark.parametrize(("again", "most"), [(0, 1.1), (3, 1.45)], ids=["kept", "recomputed"])
@pytest.mark.parametrize("case", CASES)
def test_predicted_memory_matches_measured_memory(case, again, most, monkeypatch):
    """With gradient checkpointing the prediction errs on the safe side: it counts one more layer's activations."""
    for module in (objective, memory_plan):
        monkeypatch.setattr(module, "CHUNK_BYTES", CHUNK)
    (model, asked), goal = CASES[case]()
    layout = Layout(ROWS, again, False)
    space = MemoryPlan.of(model, asked, "cpu", isinstance(goal(asked), MixedPrecision))
    taken = counted(model, asked, goal(asked), layout)
    assert 0.95 * taken < space.needs(layout) < most * taken


def test_skipped_layers_take_no_memory():
    model, asked = lora("boundary", 8, 3)
    assert model_memory.gradient_layers(model, asked.runs_all) == list(decoder_layers.layer_list(model))[:3]
    assert not model_memory.frozen_prefix_layers(model) and len(model_memory.gradient_layers(model)) == 8
    model, asked = lora("lora", 8, 3)
    assert len(model_memory.gradient_layers(model, asked.runs_all)) == 8
