"""Content-addressed cache of quantised weights: each pruned model is quantised once and then loads in seconds.

Cached weights are bit-identical to those of the first load, quantisation states included.
"""

import copy
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.cut.plan import Plan
from depthcut.model.checkpoint import files
from depthcut.model.checkpoint.files import ModelFolder
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.model.checkpoint.lazy_tensor import LazyTensor
from depthcut.model.checkpoint.tensors import INDEX_FILE, TensorFiles
from depthcut.model.decoder import quantisation
from depthcut.model.decoder.quantisation import LoadConfig
from depthcut.runtime import store, verified

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

FORMAT = 1
SHARD_BYTES = 1000 << 20  # bytes of weights per file, which are on the host while it is written
SPARE_BYTES = 1 << 30  # bytes of disk space left free
log = logging.getLogger("depthcut")

BuildModel = Callable[["PreTrainedConfig", Mapping[str, LazyTensor]], "PreTrainedModel"]
ReadTensors = Callable[[], Mapping[str, LazyTensor]]


def quantised_weights_digest(digest: str, plan: Plan, load_config: LoadConfig) -> str:
    """Return the digest of everything that the weights kept by ``plan`` depend on; ``digest`` is the model's."""
    settings: Any = quantisation.bitsandbytes_config(load_config.quantise, load_config.dtype)
    return store.content_digest(
        {
            "format": FORMAT,
            "model": digest,
            "drop": plan.drop,
            "unit": plan.unit,
            "quantise": json.loads(settings.to_json_string()),
            "dtype": str(load_config.dtype),
            "device": load_config.device.partition(":")[0],  # a CPU may round differently from a GPU
            "versions": [version(package) for package in ("bitsandbytes", "transformers")],
        }
    )


def load_quantised(
    folder: Path | None, config: "PreTrainedConfig", load_config: LoadConfig, build: BuildModel, read: ReadTensors
) -> "PreTrainedModel":
    """Load the model of ``config`` from ``folder``; if it is missing or damaged, build the model and cache it there.

    Args:
        folder: named by its content; None disables the cache.
        config: of the model.
        load_config: quantisation, dtype and device.
        build: builds a model from a config and tensors.
        read: returns the tensors of the checkpoint.

    Raises:
        UserError: as ``build`` and ``read``.
    """
    if folder is None:
        return build(config, read())
    built: list[PreTrainedModel] = []
    hashes = HashCache(folder.parent / "hashes.json")

    def make(new: Path) -> None:
        built.append(build(config, read()))
        write_quantised(built[0], new)

    with ThreadPoolExecutor() as readers, suppress(OSError):  # unreadable files are built again
        list(readers.map(hashes, folder.glob("*.safetensors")))
    try:
        files.cached_model_folder(folder, make, hashes)
    except OSError as error:
        if not built:
            raise
        log.warning("the quantised weights are not cached: %s", error)
        return built[0]
    if not built:
        shards = TensorFiles(ModelFolder(folder, hashes))
        return build(quantised_config(config, load_config), shards.lazy_tensors(shards.weight_map))
    hashes.remember({folder / name: content for name, content in verified.Manifest.read(folder).hashes.items()})
    return built[0]


def quantised_config(config: "PreTrainedConfig", load_config: LoadConfig) -> "PreTrainedConfig":
    """Return a copy of ``config`` for weights that are quantised already."""
    described: Any = copy.deepcopy(config)
    settings: Any = quantisation.bitsandbytes_config(load_config.quantise, load_config.dtype)
    described.quantization_config = settings.to_dict()
    return described


def write_quantised(model: "PreTrainedModel", folder: Path) -> None:
    """Write the tensors of ``model`` to files of at most ``SHARD_BYTES``, or of one tensor, and their index.

    Raises:
        OSError: if they do not fit on disk.
    """
    from safetensors.torch import save_file

    state = unique_tensors(model.state_dict())
    size, free = sum(tensor.nbytes for tensor in state.values()), shutil.disk_usage(folder).free
    if size + SPARE_BYTES > free:
        raise OSError(f"they need {size / 1e9:.1f} GB, {folder.parent} has {free / 1e9:.1f} GB free")
    weight_map: dict[str, str] = {}
    with ThreadPoolExecutor() as hashing:
        for number, names in enumerate(split_shards(state)):
            path = folder / f"model-{number:05}.safetensors"
            save_file({name: state[name].contiguous().cpu() for name in names}, path)
            # Caches the hash; hashing in sequence would take longer than all other work.
            hashing.submit(store.file_sha256, path)
            weight_map |= dict.fromkeys(names, path.name)
    store.write_json(folder / INDEX_FILE, {"weight_map": weight_map})


def unique_tensors(state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return a model's tensors by name; a tensor with several names appears once."""
    seen: set[tuple[int, int]] = set()
    unique: dict[str, Tensor] = {}
    for name, tensor in state.items():
        storage = tensor.data_ptr(), tensor.nbytes
        if storage not in seen or not tensor.nbytes:
            unique[name] = tensor
        seen.add(storage)
    return unique


def split_shards(state: "dict[str, Tensor]") -> list[list[str]]:
    """Split the tensor names, in order, into the files that hold them."""
    shards: list[list[str]] = []
    left = 0
    for name, tensor in state.items():
        if not shards or tensor.nbytes > left:
            shards.append([])
            left = SHARD_BYTES
        shards[-1].append(name)
        left -= tensor.nbytes
    return shards
