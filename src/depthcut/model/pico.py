"""A tiny Llama with random weights, made on the spot: every stage runs in seconds, and its numbers mean nothing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from typing_extensions import override

from depthcut.model import Model
from depthcut.model.checkpoint import files
from depthcut.model.checkpoint.checkpoint import Checkpoint
from depthcut.model.checkpoint.files import ModelFolder
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.runtime import store
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
END, PAD = "<|endoftext|>", "<|pad|>"


@strict
class Pico(Model):
    """A Llama of any size over a byte vocabulary.

    Attributes:
        layers: number of layers, L.
        hidden: width of the residual stream, D; a multiple of twice ``heads``.
        heads: number of attention heads.
        seed: seed of the random weights.
    """

    layers: Annotated[int, Field(ge=1, le=1000)]
    hidden: Annotated[int, Field(ge=1, le=16_384)]
    heads: Annotated[int, Field(ge=1, le=1024)]
    seed: Annotated[int, Field(ge=0)]

    def __post_init__(self) -> None:
        if self.hidden % (2 * self.heads):
            raise UserError(f"hidden must be a multiple of 2 x heads = {2 * self.heads}, got {self.hidden}")

    @override
    def open(self, cache: Path) -> Checkpoint:
        hashes = HashCache(cache / "hashes.json")
        name = store.content_digest([FORMAT, "pico", self.layers, self.hidden, self.heads, self.seed])
        return Checkpoint(
            ModelFolder(files.cached_model_folder(cache / "models" / name, self._make, hashes), hashes),
            separator=self.separator,
        )

    def _make(self, folder: Path) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from depthcut.model.checkpoint.loading import quiet_transformers

        tokenizer = byte_tokenizer()
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=4 * self.hidden,
            num_attention_heads=self.heads,
            initializer_range=self.hidden**-0.5,  # each layer's output is then about as large as the residual stream
            bos_token_id=len(tokenizer) - 2,
            eos_token_id=len(tokenizer) - 2,
            pad_token_id=len(tokenizer) - 1,
        )
        with torch.random.fork_rng(devices=[]), quiet_transformers():
            torch.manual_seed(self.seed)
            LlamaForCausalLM(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)


def byte_tokenizer() -> "PreTrainedTokenizerBase":
    """Return a tokenizer with one token per byte, plus end-of-text and padding; it can encode any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=PAD)
