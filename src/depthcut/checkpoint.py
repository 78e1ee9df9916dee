"""A model on the disk, opened lazily: its config, its tokenizer, its tensors layer by layer."""

import re
from collections import defaultdict
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut import saved, shards, store
from depthcut.files import Files
from depthcut.plan import Plan, Unit
from depthcut.runtime.errors import UserError
from depthcut.shards import Shards, Slice

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from depthcut.loading import Dtype, Quantise

FORMAT = 1
# What config.json says of who wrote it, not of the model.
AUTHORSHIP = frozenset({"transformers_version", "_name_or_path"})
# The names that a config gives to the number of layers.
DEPTH = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# What tokenizers are read from.
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


class Checkpoint:
    """A model in safetensors. Opening reads a few kilobytes; the digest, the depth and the checks need no torch.

    Attributes:
        files: where the bytes come from.
        separator: the token between documents; None: the tokenizer's own end of text.

    Raises:
        UserError: if a file of the model is missing, damaged or of a kind that is never opened.
    """

    def __init__(self, files: Files, *, separator: str | None) -> None:
        self.files = files
        self.separator = separator
        if quantised := self._described.get("quantization_config"):
            method = quantised.get("quant_method", "")
            raise UserError(f"{files.title} is quantised already ({method}); give the model that it was made from")
        if self._described.get("model_type") == saved.KIND:
            mend = "cut the model that it was made from"
            raise UserError(f"{files.title} is no plain model any more: depthcut cut it; {mend}")
        if "auto_map" in self._described:
            assert self.config  # it comes with code: transformers has the model too, or it is refused here
        for name in shards.weights(files):
            if here := files.here(name):
                shards.header(files, name, here)

    @cached_property
    def _described(self) -> dict[str, Any]:
        return self.files.json("config.json")

    @cached_property
    def _shards(self) -> Shards:
        return Shards(self.files)

    @cached_property
    def digest(self) -> str:
        """Name of the model by its content: weights, config and tokenizer, wherever they lie."""
        return store.digest(
            {
                "format": FORMAT,
                "weights": sorted(self.files.sha256(name) for name in shards.weights(self.files)),
                "config": {key: value for key, value in self._described.items() if key not in AUTHORSHIP},
                "tokenizer": {name: self.files.sha256(name) for name in TOKENIZER if name in self.files.names},
            }
        )

    @cached_property
    def depth(self) -> int:
        """Number of layers, L."""
        text = self._described.get("text_config") or self._described
        found = next((text[key] for key in DEPTH if key in text), None)
        if isinstance(found, int):
            return found
        from depthcut import depth

        return int(depth.text_config(self.config).num_hidden_layers)

    @cached_property
    def config(self) -> "PreTrainedConfig":
        """The model's config.

        Raises:
            UserError: if it cannot be cut, or transformers has no such model; code that a model brings is never run.
        """
        from transformers import AutoConfig

        from depthcut import depth

        folder = self.files.folder
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except (ValueError, KeyError, TypeError, OSError) as error:
            kind = self._described.get("model_type")
            own = "it comes as code of its own, which is never run" if "auto_map" in self._described else ""
            why = own or " ".join(str(error).split())[:200]
            raise UserError(f"{self.files.title}: transformers has no model like its {kind} ({why})") from None
        depth.text_config(config)
        return config

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The model's tokenizer.

        Raises:
            UserError: if there is none that transformers can read.
        """
        from transformers import AutoTokenizer

        folder = self.files.folder
        try:
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # a tokenizer's reader, in Rust, raises plain Exception
            why = " ".join(str(error).split())[:200]
            raise UserError(f"{self.files.title} has no tokenizer that transformers can read ({why})") from None

    @property
    def bytes_read(self) -> int:
        """Bytes of all the tensors read so far."""
        return self._shards.bytes_read

    @cached_property
    def prefix(self) -> str:
        """The dotted name of the layer list in the files, which may lack the start that it has in the model.

        Raises:
            UserError: if no list of layers in the files is as long as the config says.
        """
        numbers: defaultdict[str, set[int]] = defaultdict(set)
        for name in self._shards.homes:
            if found := re.match(r"(.+?)\.(\d+)\.", name):
                numbers[found[1]].add(int(found[2]))
        fits = [prefix for prefix, found in numbers.items() if found >= set(range(self.depth))]
        if not fits:
            wanted = f"all of the {self.depth} layers that its config has"
            raise UserError(f"{self.files.title}: its files do not hold {wanted}")
        if len(fits) > 1:  # e.g. a picture encoder of the same depth
            from depthcut import depth

            model = set(depth.prefix(depth.skeleton(self.config)).split("."))
            fits.sort(key=lambda prefix: -len(model & set(prefix.split("."))))
        return fits[0]

    def tensors(self, layer: int | None, unit: Unit = "layer") -> dict[str, Slice]:
        """The tensors of one layer, or with None those outside the layer list; unread, and named as in the files.

        Args:
            layer: its number.
            unit: only those of its attention or its MLP.
        """
        from depthcut import depth

        parts = {name: depth.split(name, self.prefix) or (None, "") for name in self._shards.homes}
        inside = self.unit_prefix(unit)
        return self._shards.slices(
            [name for name, (at, rest) in parts.items() if at == layer and rest.startswith(inside)]
        )

    def unit_prefix(self, unit: Unit) -> str:
        """What the names of a unit's tensors begin with inside a layer, e.g. ``mlp.``; empty for whole layers.

        Raises:
            UserError: if the model's layers have no such part.
        """
        if unit == "layer":
            return ""
        from depthcut import depth

        return depth.unit_name(self._first_layer, unit) + "."

    @cached_property
    def _first_layer(self) -> "nn.Module":
        """The first layer, without its weights."""
        from depthcut import depth

        return depth.layers(depth.skeleton(self.config))[0]

    def load(
        self, plan: Plan | None, *, quantise: "Quantise", dtype: "Dtype", device: str, cache: Path | None = None
    ) -> "PreTrainedModel":
        """Read the layers that ``plan`` keeps, and no others, into an ordinary model; quantise each as it arrives.

        Args:
            plan: None keeps all.
            quantise: ``nf4`` (with double quantisation) or ``int8`` of bitsandbytes for the linear layers.
            dtype: of all that is not quantised, and of the computation.
            device: where the model goes, e.g. ``cpu`` or ``cuda``.
            cache: folder where quantised weights are kept, by content, for the next load; None keeps none.

        Returns:
            The model in eval mode; new layer i is old layer ``plan.keep[i]``, or what the plan leaves of it.

        Raises:
            UserError: if the plan is for another model, a file is damaged, or a tensor is missing.
        """
        import torch

        from depthcut import depth, loading, packed

        self._check(plan)
        plan = plan or Plan(self.depth, ())
        config = depth.trimmed(self.config, plan.drop) if plan.drop and plan.unit == "layer" else self.config
        form = loading.Form(quantise, getattr(torch, dtype), device)
        fill = partial(loading.build, self.files.title, plan=plan, form=form)
        folder = cache / packed.named(self.digest, plan, form) if cache and quantise != "none" else None
        with torch.inference_mode(False):  # who asks may only mean to measure, who takes it later may train
            model = packed.load(folder, config, form, fill, lambda: self._renumbered(plan))
        if "generation_config.json" in self.files.names:
            model.generation_config = loading.generation(self.files.folder)
        return model

    def _check(self, plan: Plan | None) -> None:
        """Refuse a plan that was made for another model."""
        if plan and plan.depth != self.depth:
            raise UserError(f"the plan is for a model of {plan.depth} layers; {self.files.title} has {self.depth}")
        if plan and plan.model and plan.model != self.digest:
            raise UserError(f"the plan was made for model {plan.model[:8]}; {self.files.title} is {self.digest[:8]}")

    def _renumbered(self, plan: Plan) -> dict[str, Slice]:
        """The tensors outside the layer list and what is kept of the layers, under consecutive numbers."""
        from depthcut import depth

        new = {old: number for number, old in enumerate(plan.keep)}
        gone = self.unit_prefix(plan.unit)
        names: dict[str, str] = {}
        for name in self._shards.homes:
            layer, rest = depth.split(name, self.prefix) or (None, "")
            if layer is None:
                names[name] = name
            elif layer in new and not (layer in plan.drop and rest.startswith(gone)):
                names[f"{self.prefix}.{new[layer]}.{rest}"] = name
        slices = self._shards.slices(names.values())
        return {name: slices[old] for name, old in names.items()}
