"""Tiny real models of every supported family, with random weights large enough to change the output."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

# The name of the KV cache in a model's arguments and outputs; transformers before 5.24 has another.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 16}

# A family's own knobs; windows are shorter than the tests' texts, otherwise attention types would not matter.
KNOBS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3},
    "qwen3": GROUPED,
    "mistral": GROUPED | {"sliding_window": 6},
    "phi": {"num_key_value_heads": 4},
    "phi3": {"num_key_value_heads": 2},
    "gemma2": GROUPED | {"sliding_window": 4},
    "gemma3": GROUPED | {"model_type": "gemma3_text", "sliding_window": 4, "sliding_window_pattern": 3},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "gpt_neox": {},
}
FAMILIES = tuple(KNOBS)


def pico(family: str, layers: int = 6, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Return a float32 model in eval mode, the same for the same arguments; no layer equals another.

    Args:
        family: one of FAMILIES, which come with their own knobs set, or any ``model_type`` of transformers.
        changes: fields of the config that differ from the family's here.
    """
    fields = SIZES | {"model_type": family} | KNOBS.get(family, {}) | {"num_hidden_layers": layers} | changes
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def picture_model(layers: int = 6, **changes: Any) -> PreTrainedModel:
    """Return a multimodal Gemma 3: its vision encoder has as many layers, with linear layers of the same names."""
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2}
    text = pico("gemma3", layers, **changes).config.to_dict()
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=tower | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def texts(batch: int = 2, length: int = 20) -> torch.Tensor:
    """Return token ids without special tokens, longer than any window of a pico model."""
    return torch.randint(3, 128, (batch, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def randomise_lora_b(adapted: Any, std: float = 0.05) -> Any:
    """Give the adapters a random B, which is zero at first, and return the model."""
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=std)
    return adapted


@torch.no_grad()
def slope(loss: Callable[[], torch.Tensor], model: nn.Module, towards: torch.Tensor, step: float = 1e-2) -> float:
    """Return the directional derivative of ``loss`` along ``towards`` in the trained weights, by finite differences."""
    trained = [each for each in model.parameters() if each.requires_grad]
    before = torch.nn.utils.parameters_to_vector(trained).clone()
    values: list[float] = []
    for by in (step, -step):
        torch.nn.utils.vector_to_parameters(before + by * towards / towards.norm(), trained)
        values.append(loss().item())
    torch.nn.utils.vector_to_parameters(before, trained)
    return (values[0] - values[1]) / (2 * step)


@torch.no_grad()
def logits(model: nn.Module, **more: Any) -> torch.Tensor:
    return model(texts(), **more).logits


def written(model: nn.Module, use_cache: bool) -> torch.Tensor:
    """Generate greedily after two texts, of which the second is padded on the left."""
    ids, mask = texts(), torch.ones(2, 20, dtype=torch.long)
    ids[1, :7], mask[1, :7] = 0, 0
    return model.generate(  # pyright: ignore
        input_ids=ids, attention_mask=mask, use_cache=use_cache, do_sample=False, min_new_tokens=12, max_new_tokens=12
    )
