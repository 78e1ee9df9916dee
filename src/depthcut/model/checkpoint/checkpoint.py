"""A model on the disk, opened lazily: its config, its tokenizer, its tensors layer by layer."""

from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.cut.plan import Plan, Unit
from depthcut.model.checkpoint import exported, model_config, quantised, tokenizer_files
from depthcut.model.checkpoint.files import ModelFiles
from depthcut.model.checkpoint.tensors import LazyTensor, TensorFiles, absent, layer_lists
from depthcut.runtime import store
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from depthcut.model.decoder.quantisation import Dtype, Quantise

FORMAT = 1
# What config.json says of who wrote it, not of the model.
AUTHORSHIP_KEYS = frozenset({"transformers_version", "_name_or_path"})
# Tensors of a model whose files are not on this machine yet: at most so many.
UNLISTED = 200_000


class Checkpoint:
    """A model in safetensors. Opening reads a few kilobytes; the digest, the depth and the checks need no torch.

    Attributes:
        files: where the bytes come from.
        separator: the token between documents; None: the tokenizer's own end of text.

    Raises:
        UserError: if a file of the model is missing, damaged or of a kind that is never opened.
    """

    def __init__(self, files: ModelFiles, *, separator: str | None) -> None:
        self.files = files
        self.separator = separator
        files.pin(model_config.FILE, *tokenizer_files.NAMES)
        quantised.check_config(files.title, self._config_dict)
        if self._config_dict.get("model_type") == exported.MODEL_TYPE:
            mend = "cut the model that it was made from"
            raise UserError(f"{files.title} is no plain model any more: depthcut cut it; {mend}")
        model_config.check_values(files.title, self._config_dict)
        if "auto_map" in self._config_dict:
            _ = self._read_config  # it comes with code: transformers has the model too, or it is refused here
        self._check_headers()

    def _check_headers(self) -> None:
        """Compare the headers of the files that are on this machine with the index and the config."""
        tensor_files = self._tensor_files
        for file in filter(self.files.local_path, tensor_files.names):
            entries = tensor_files.entries(file)
            quantised.check_entries(self.files.title, entries)
            indexed = (name for name, place in tensor_files.weight_map.items() if place == file)
            if missing := next((name for name in indexed if name not in entries), None):
                raise UserError(absent(self.files, missing, file))
        if tensor_files.listed and self._depth_entry:
            assert self.layer_prefix is not None  # a config that counts more layers than the files hold is refused

    @cached_property
    def _config_dict(self) -> dict[str, Any]:
        return self.files.read_json("config.json")

    @cached_property
    def _tensor_files(self) -> TensorFiles:
        return TensorFiles(self.files)

    @cached_property
    def digest(self) -> str:
        """Name of the model by its content: weights, config and tokenizer, wherever they lie."""
        config = {key: value for key, value in self._config_dict.items() if key not in AUTHORSHIP_KEYS}
        tokenizer = [name for name in tokenizer_files.NAMES if name in self.files.names]
        return store.content_digest(
            {
                "format": FORMAT,
                "weights": sorted(map(self.files.sha256, self._tensor_files.names)),
                "config": model_config.portable_value(config),
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
        """The key of config.json that counts the layers, and its value; None where the family's default holds."""
        text = self._config_dict.get("text_config") or self._config_dict
        return next(((key, text[key]) for key in model_config.DEPTH_KEYS if key in text), None)

    @cached_property
    def _read_config(self) -> "PreTrainedConfig":
        """The config as transformers reads it."""
        return model_config.read_model_config(self.files.title, self.files.folder, self._config_dict)

    @cached_property
    def bare(self) -> "PreTrainedModel":
        """The model on the meta device. Raises as :attr:`config`."""
        most = 2 * len(self._tensor_files.weight_map) + 1000 if self._tensor_files.listed else UNLISTED
        return model_config.build_meta_model(self.files.title, self._read_config, self._config_dict, most)

    @property
    def config(self) -> "PreTrainedConfig":
        """The model's config, of which a model can be built.

        Raises:
            UserError: if it cannot be cut, or transformers has no such model; code that a model brings is never run.
        """
        assert self.bare is not None  # a config of which none can be built is refused
        return self._read_config

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The model's tokenizer.

        Raises:
            UserError: if there is none that transformers can read, or it has changed since the model was opened.
        """
        return tokenizer_files.read_tokenizer(self.files, self._read_config)

    @property
    def bytes_read(self) -> int:
        """Bytes of all the tensors read so far."""
        return self._tensor_files.bytes_read

    @cached_property
    def layer_prefix(self) -> str:
        """The dotted name of the layer list in the files, which may lack the start that it has in the model.

        Raises:
            UserError: if no list of layers in the files is as long as the config says.
        """
        lists = layer_lists(self._tensor_files.weight_map)
        fits = [prefix for prefix, length in lists.items() if length >= self.depth]
        if not fits:
            key = self._depth_entry[0] if self._depth_entry else "num_hidden_layers"
            wanted = f"all of the {self.depth} layers that its config has ({model_config.FILE}: {key})"
            there = f"the longest list of layers in them has {max(lists.values(), default=0)}"
            raise UserError(f"{self.files.title}: its files do not hold {wanted}; {there}")
        if len(fits) > 1:  # e.g. a picture encoder of the same depth
            from depthcut.model.decoder import layers

            model = set(layers.layer_prefix(self.bare).split("."))
            fits.sort(key=lambda prefix: -len(model & set(prefix.split("."))))
        return fits[0]

    def tensors(self, layer: int | None, unit: Unit = "layer") -> dict[str, LazyTensor]:
        """The tensors of one layer, or with None those outside the layer list; unread, and named as in the files.

        Args:
            layer: its number.
            unit: only those of its attention or its MLP.
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
        """What the names of a unit's tensors begin with inside a layer, e.g. ``mlp.``; empty for whole layers.

        Raises:
            UserError: if the model's layers have no such part.
        """
        if unit == "layer":
            return ""
        from depthcut.model.decoder import layers

        return layers.unit_name(self._first_layer, unit) + "."

    @cached_property
    def _first_layer(self) -> "nn.Module":
        """The first layer, without its weights."""
        from depthcut.model.decoder import layers

        return layers.layer_list(self.bare)[0]

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
        with torch.inference_mode(False):  # who asks may only mean to measure, who takes it later may train
            model = quantised_cache.load_quantised(
                folder, config, load_config, build, lambda: self._renumbered_tensors(plan)
            )
        if (generation := loading.read_generation_config(self.files)) is not None:
            model.generation_config = generation
        self.files.check_unchanged()
        return model

    def _check_plan(self, plan: Plan | None) -> None:
        """Refuse a plan that was made for another model."""
        if plan and plan.depth != self.depth:
            raise UserError(f"the plan is for a model of {plan.depth} layers; {self.files.title} has {self.depth}")
        if plan and plan.model and plan.model != self.digest:
            raise UserError(f"the plan was made for model {plan.model[:8]}; {self.files.title} is {self.digest[:8]}")

    def _renumbered_tensors(self, plan: Plan) -> dict[str, LazyTensor]:
        """The tensors outside the layer list and what is kept of the layers, under consecutive numbers."""
        from depthcut.model.decoder import layers

        new = {old: number for number, old in enumerate(plan.keep)}
        dropped = self.unit_prefix(plan.unit)
        names: dict[str, str] = {}
        for name in self._tensor_files.weight_map:
            layer, rest = layers.split_tensor_name(name, self.layer_prefix) or (None, "")
            if layer is None:
                names[name] = name
            elif layer in new and not (layer in plan.drop and rest.startswith(dropped)):
                names[f"{self.layer_prefix}.{new[layer]}.{rest}"] = name
        tensors = self._tensor_files.lazy_tensors(names.values())
        return {name: tensors[old] for name, old in names.items()}
