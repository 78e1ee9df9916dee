"""A checkpoint on disk, opened lazily: its config, its tokenizer, its tensors layer by layer."""

from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.cut.plan import Plan, Unit
from depthcut.model.checkpoint import config_values, exported, model_config, quantised, tokenizer_files
from depthcut.model.checkpoint.files import ModelFiles
from depthcut.model.checkpoint.lazy_tensor import LazyTensor
from depthcut.model.checkpoint.tensors import TensorFiles, absent, layer_lists
from depthcut.runtime import store
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from depthcut.model.decoder.quantisation import Dtype, Quantise

FORMAT = 1
# Config keys that describe the author of the file instead of the model.
AUTHORSHIP_KEYS = frozenset({"transformers_version", "_name_or_path"})
# Upper bound on the tensors of a model that is not downloaded yet.
UNLISTED = 200_000


class Checkpoint:
    """A safetensors checkpoint. Opening it reads a few kilobytes; the digest, the depth and the checks need no torch.

    Attributes:
        files: the source of its files.
        separator: token between documents; None: the tokenizer's end-of-text token.

    Raises:
        UserError: if a file of the model is missing, damaged or of a type that is never opened.
    """

    def __init__(self, files: ModelFiles, *, separator: str | None) -> None:
        self.files = files
        self.separator = separator
        files.pin(config_values.FILE, *tokenizer_files.NAMES)
        quantised.check_config(files.title, self._config_dict)
        if self._config_dict.get("model_type") == exported.MODEL_TYPE:
            mend = "cut the model that it was made from"
            raise UserError(f"{files.title} was already cut by depthcut; {mend}")
        config_values.check_values(files.title, self._config_dict)
        if "auto_map" in self._config_dict:
            _ = self._read_config  # raises if transformers lacks the model and only the shipped code has it
        self._check_headers()

    def _check_headers(self) -> None:
        """Compare the headers of downloaded files with the index and the config."""
        tensor_files = self._tensor_files
        for file in filter(self.files.local_path, tensor_files.names):
            entries = tensor_files.entries(file)
            quantised.check_entries(self.files.title, entries)
            indexed = (name for name, place in tensor_files.weight_map.items() if place == file)
            if missing := next((name for name in indexed if name not in entries), None):
                raise UserError(absent(self.files, missing, file))
        if tensor_files.listed and self._depth_entry:
            assert self.layer_prefix is not None  # raises if the config has more layers than the files

    @cached_property
    def _config_dict(self) -> dict[str, Any]:
        return self.files.read_json("config.json")

    @cached_property
    def _tensor_files(self) -> TensorFiles:
        return TensorFiles(self.files)

    @cached_property
    def digest(self) -> str:
        """Content digest of weights, config and tokenizer, independent of their location."""
        config = {key: value for key, value in self._config_dict.items() if key not in AUTHORSHIP_KEYS}
        tokenizer = [name for name in tokenizer_files.NAMES if name in self.files.names]
        return store.content_digest(
            {
                "format": FORMAT,
                "weights": sorted(map(self.files.sha256, self._tensor_files.names)),
                "config": config_values.portable_value(config),
                "tokenizer": {name: self.files.sha256(name) for name in tokenizer},
            }
        )

    @cached_property
    def depth(self) -> int:
        """Number of layers, L."""
        if (entry := self._depth_entry) is not None:
            return entry[1]
        from depthcut.model.decoder import layers

        return int(layers.text_config(self.config).num_hidden_layers)

    @cached_property
    def _depth_entry(self) -> tuple[str, int] | None:
        """The config key for the number of layers, and its value; None if the family's default applies."""
        text = self._config_dict.get("text_config") or self._config_dict
        return next(((key, text[key]) for key in config_values.DEPTH_KEYS if key in text), None)

    @cached_property
    def _read_config(self) -> "PreTrainedConfig":
        return model_config.read_model_config(self.files.title, self.files.folder, self._config_dict)

    @cached_property
    def bare(self) -> "PreTrainedModel":
        """The model on the meta device. Raises as :attr:`config`."""
        most = 2 * len(self._tensor_files.weight_map) + 1000 if self._tensor_files.listed else UNLISTED
        return model_config.build_meta_model(self.files.title, self._read_config, self._config_dict, most)

    @property
    def config(self) -> "PreTrainedConfig":
        """The model's config, checked by building the model on the meta device.

        Raises:
            UserError: if the model cannot be pruned, or transformers lacks it; code shipped with a model is never run.
        """
        assert self.bare is not None  # raises if no model can be built from the config
        return self._read_config

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The model's tokenizer.

        Raises:
            UserError: if transformers cannot read one, or a file has changed since the model was opened.
        """
        return tokenizer_files.read_tokenizer(self.files, self._read_config)

    @property
    def bytes_read(self) -> int:
        """Total bytes of the tensors read so far."""
        return self._tensor_files.bytes_read

    @cached_property
    def layer_prefix(self) -> str:
        """Dotted name of the layer list in the files; leading parts of the name in the model may be missing.

        Raises:
            UserError: if no layer list in the files is as long as the config says.
        """
        lists = layer_lists(self._tensor_files.weight_map)
        fits = [prefix for prefix, length in lists.items() if length >= self.depth]
        if not fits:
            key = self._depth_entry[0] if self._depth_entry else "num_hidden_layers"
            wanted = f"all {self.depth} layers of its config ({config_values.FILE}: {key})"
            there = f"the longest list of layers has {max(lists.values(), default=0)}"
            raise UserError(f"{self.files.title}: its files do not contain {wanted}; {there}")
        if len(fits) > 1:  # for example an image encoder of the same depth
            from depthcut.model.decoder import layers

            model = set(layers.layer_prefix(self.bare).split("."))
            fits.sort(key=lambda prefix: -len(model & set(prefix.split("."))))
        return fits[0]

    def tensors(self, layer: int | None, unit: Unit = "layer") -> dict[str, LazyTensor]:
        """Return the unread tensors of one layer, or with None those outside the layers, named as in the files.

        Args:
            layer: index of the layer.
            unit: ``attention`` or ``mlp`` selects that sublayer only.
        """
        from depthcut.model.decoder import layers

        parts = {
            name: layers.split_tensor_name(name, self.layer_prefix) or (None, "")
            for name in self._tensor_files.weight_map
        }
        inside = self.unit_prefix(unit)
        return self._tensor_files.lazy_tensors(
            [name for name, (at, rest) in parts.items() if at == layer and rest.startswith(inside)]
        )

    def unit_prefix(self, unit: Unit) -> str:
        """Return the prefix of a unit's tensor names in a layer, for example ``mlp.``; empty for whole layers.

        Raises:
            UserError: if the layers have no such sublayer.
        """
        if unit == "layer":
            return ""
        from depthcut.model.decoder import layers

        return layers.unit_name(self._first_layer, unit) + "."

    @cached_property
    def _first_layer(self) -> "nn.Module":
        from depthcut.model.decoder import layers

        return layers.layer_list(self.bare)[0]

    def load(
        self, plan: Plan | None, *, quantise: "Quantise", dtype: "Dtype", device: str, cache: Path | None = None
    ) -> "PreTrainedModel":
        """Load the model, keeping only the layers in ``plan``; quantise each tensor as it is read.

        Args:
            plan: None keeps all layers.
            quantise: ``nf4`` (with double quantisation) or ``int8`` of bitsandbytes, for the linear layers.
            dtype: type of unquantised weights and of the computation.
            device: for example ``cpu`` or ``cuda``.
            cache: folder that caches quantised weights by content; None disables the cache.

        Returns:
            The model in eval mode; new layer i is old layer ``plan.keep[i]``, without its dropped sublayers.

        Raises:
            UserError: if the plan is for another model, a file is damaged, or a tensor is missing.
        """
        import torch

        from depthcut.model.checkpoint import loading, quantised_cache
        from depthcut.model.decoder import layers, quantisation

        self._check_plan(plan)
        plan = plan or Plan(self.depth, ())
        config = layers.trimmed_config(self.config, plan.drop) if plan.drop and plan.unit == "layer" else self.config
        load_config = quantisation.LoadConfig(quantise, getattr(torch, dtype), device)
        build = partial(loading.build_model, self.files.title, plan=plan, load_config=load_config)
        folder = (
            cache / quantised_cache.quantised_weights_digest(self.digest, plan, load_config)
            if cache and quantise != "none"
            else None
        )
        with torch.inference_mode(False):  # the caller may only measure, but the model may be trained later
            read = partial(self._renumbered_tensors, plan)
            model = quantised_cache.load_quantised(folder, config, load_config, build, read)
        if (generation := loading.read_generation_config(self.files)) is not None:
            model.generation_config = generation
        self.files.check_unchanged()
        return model

    def _check_plan(self, plan: Plan | None) -> None:
        if plan and plan.depth != self.depth:
            raise UserError(f"the plan is for a model of {plan.depth} layers; {self.files.title} has {self.depth}")
        if plan and plan.model and plan.model != self.digest:
            raise UserError(f"the plan was made for model {plan.model[:8]}; {self.files.title} is {self.digest[:8]}")

    def _renumbered_tensors(self, plan: Plan) -> dict[str, LazyTensor]:
        """Return the tensors outside the layers and those of kept layers, under consecutive layer numbers."""
        from depthcut.model.decoder import layers

        unit_prefix = self.unit_prefix(plan.unit)
        names = layers.renumber_tensor_names(self._tensor_files.weight_map, self.layer_prefix, plan, unit_prefix)
        tensors = self._tensor_files.lazy_tensors(names.values())
        return {name: tensors[old] for name, old in names.items()}
