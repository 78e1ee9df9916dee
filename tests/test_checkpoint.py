"""A checkpoint reads exactly the layers that a plan keeps, and refuses damaged files."""

import json
import math
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from depthcut.cut.plan import Plan
from depthcut.model.checkpoint import loading
from depthcut.model.checkpoint.checkpoint import Checkpoint
from depthcut.model.checkpoint.files import ModelFolder
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.model.decoder import layers, quantisation
from depthcut.model.pico import byte_tokenizer
from depthcut.runtime import store, verified
from depthcut.runtime.errors import UserError
from pico import FAMILIES, SIZES, pico

INDEX = "model.safetensors.index.json"
PLAIN: Any = {"quantise": "none", "dtype": "float32", "device": "cpu"}


def saved(model: PreTrainedModel, folder: Path, shard: str = "60KB") -> Path:
    with loading.quiet_transformers():
        model.save_pretrained(folder, max_shard_size=shard)
    return folder


def opened(folder: Path) -> Checkpoint:
    return Checkpoint(ModelFolder(folder, HashCache(folder.parent / "hashes.json")), separator=None)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save six layers in 20 shards, with a tokenizer."""
    folder = saved(pico("llama"), tmp_path_factory.mktemp("checkpoint") / "llama")
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llama, tmp_path / "copy")


def assert_equal(got: nn.Module, wanted: nn.Module) -> None:
    ours, theirs = got.state_dict(), wanted.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    ids_BT = torch.arange(3, 15)[None]
    with torch.no_grad():
        assert torch.equal(got(ids_BT).logits, wanted(ids_BT).logits)


def whole_then_cut(folder: Path, drop: tuple[int, ...], **how: Any) -> nn.Module:
    with loading.quiet_transformers():
        return layers.cut_layers(AutoModelForCausalLM.from_pretrained(folder, **({"dtype": torch.float32} | how)), drop)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_loading_a_plan_equals_cutting_the_loaded_model(family: str, tied: bool, tmp_path: Path) -> None:
    folder = saved(pico(family, tie_word_embeddings=tied), tmp_path / family)
    checkpoint = opened(folder)
    for drop in ((2, 3), (0, 5), ()):
        before = checkpoint.bytes_read
        model = checkpoint.load(Plan(6, drop), **PLAIN)
        kept = [checkpoint.tensors(layer) for layer in (None, *Plan(6, drop).keep)]
        assert checkpoint.bytes_read - before == sum(each.nbytes for part in kept for each in part.values())
        assert_equal(model, whole_then_cut(folder, drop))
        assert not model.training


MIXTURE = {"num_local_experts": 4, "num_key_value_heads": 2}
PICTURES: dict[str, Any] = {
    "text_config": SIZES | {"num_hidden_layers": 6, "num_key_value_heads": 2, "head_dim": 16},
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 1,
}
ODD: dict[str, Callable[[], tuple[PreTrainedModel, PreTrainedModel, str]]] = {
    "bare gpt2": lambda: with_part(pico("gpt2"), "transformer", "h"),
    "bare llama": lambda: with_part(pico("llama", tie_word_embeddings=True), "model", "layers"),
    "experts": lambda: with_part(pico("mixtral", **MIXTURE), "", "model.layers"),
    "pictures": lambda: with_part(vision_model(), "", "language_model.model.layers"),
}


def vision_model() -> PreTrainedModel:
    """Return a model with a vision encoder as deep as its decoder."""
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3", **PICTURES)).eval()


def with_part(model: PreTrainedModel, part: str, prefix: str) -> tuple[PreTrainedModel, PreTrainedModel, str]:
    saves = model.get_submodule(part)
    assert isinstance(saves, PreTrainedModel)
    return model, saves, prefix


@pytest.mark.parametrize("case", ODD)
def test_tensor_names_may_differ_from_the_models(case: str, tmp_path: Path) -> None:
    model, saves, prefix = ODD[case]()
    checkpoint = opened(saved(saves, tmp_path / "model"))
    assert checkpoint.layer_prefix == prefix
    assert checkpoint.depth == 6
    assert_equal(checkpoint.load(Plan(6, (1, 2)), **PLAIN), layers.cut_layers(model, (1, 2)))


def test_kept_layers_are_renumbered_and_dropped_unread(tmp_path: Path) -> None:
    model = pico("llama", layers=8)
    for number, layer in enumerate(layers.layer_list(model)):
        for parameter in layer.parameters():
            nn.init.constant_(parameter, number)
    checkpoint = opened(saved(model, tmp_path / "model"))
    plan = Plan(8, (1, 2, 3, 6))
    loaded = checkpoint.load(plan, **PLAIN)
    values = [{p.min().item() for p in layer.parameters()} for layer in layers.layer_list(loaded)]
    assert values == [{0.0}, {4.0}, {5.0}, {7.0}]
    assert [layer.self_attn.layer_idx for layer in layers.layer_list(loaded)] == [0, 1, 2, 3]
    assert loaded.config.num_hidden_layers == 4
    assert checkpoint.bytes_read == sum(parameter.nbytes for parameter in loaded.parameters())
    again = saved(loaded, tmp_path / "again", shard="1GB")
    assert_equal(opened(again).load(None, **PLAIN), loaded)


def test_layers_are_read_one_at_a_time(llama: Path) -> None:
    checkpoint, model = opened(llama), pico("llama")
    tensors = checkpoint.tensors(4)
    assert checkpoint.bytes_read == 0
    assert set(tensors) == {f"model.layers.4.{name}" for name, _ in layers.layer_list(model)[4].named_parameters()}
    up, wanted = (part["model.layers.4.mlp.up_proj.weight"] for part in (tensors, model.state_dict()))
    assert (up.get_shape(), up.get_dtype(), up.nbytes) == (list(wanted.shape), "F32", wanted.nbytes)
    assert torch.equal(up[...], wanted)
    assert checkpoint.bytes_read == wanted.nbytes
    assert set(checkpoint.tensors(None)) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.uint8, torch.bool]
)
def test_dtypes_and_shapes_match_safetensors(dtype: torch.dtype, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from depthcut.model.checkpoint.tensors import TensorFiles

    shapes = [(3, 5), (7,), (), (0, 4), (2, 3, 4)]
    tensors = {str(i): (torch.rand(shape) * 9).to(dtype) for i, shape in enumerate(shapes)}
    save_file(tensors, tmp_path / "model.safetensors")
    wanted = load_file(tmp_path / "model.safetensors")
    shards = TensorFiles(ModelFolder(tmp_path, HashCache(tmp_path / "hashes.json")))
    for name, lazy in shards.lazy_tensors(wanted).items():
        got = lazy[...]
        assert (got.dtype, got.shape, lazy.get_shape()) == (dtype, wanted[name].shape, list(got.shape))
        assert got.tolist() == wanted[name].tolist()


@pytest.mark.parametrize("quantise", ["nf4", "int8"])
def test_layers_are_quantised_like_the_whole_model(quantise: Any, llama: Path) -> None:
    checkpoint = opened(llama)
    model = checkpoint.load(Plan(6, (2, 3)), quantise=quantise, dtype="bfloat16", device="cpu")
    config = quantisation.bitsandbytes_config(quantise, torch.bfloat16)
    wanted = whole_then_cut(llama, (2, 3), dtype=torch.bfloat16, quantization_config=config, device_map={"": "cpu"})
    quantisation.keep_differentiable(wanted)
    assert_equal(model, wanted)
    assert type(layers.layer_list(model)[3].mlp.up_proj).__name__ in ("Linear4bit", "Linear8bitLt")
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=4, min_new_tokens=4).shape == (1, 7)


def test_generation_config_is_loaded(copy: Path) -> None:
    (copy / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.5, "eos_token_id": 7}))
    settings = opened(copy).load(Plan(6, (2,)), **PLAIN).generation_config
    assert (settings.repetition_penalty, settings.eos_token_id) == (1.5, 7)


def test_digest_is_by_content(llama: Path, copy: Path, tmp_path: Path) -> None:
    digest = opened(llama).digest
    assert opened(copy).digest == digest
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"transformers_version": "9.9", "_name_or_path": "x"}))
    (copy / "README.md").write_text("a note")
    assert opened(copy).digest == digest
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    others = {opened(copy).digest}
    (copy / "config.json").write_text(json.dumps(config))
    flip(copy / "model-00002-of-00020.safetensors")
    others.add(opened(copy).digest)
    fresh = shutil.copytree(llama, tmp_path / "fresh")
    flip(fresh / "tokenizer.json", -30)
    others.add(opened(fresh).digest)
    assert len(others | {digest}) == 4


def test_digest_and_depth_need_no_torch(llama: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from depthcut.model.checkpoint.checkpoint import Checkpoint\n"
        "from depthcut.model.checkpoint.files import HashCache, ModelFolder\n"
        f"files = ModelFolder(Path({str(llama)!r}), HashCache(Path({str(llama.parent / 'new.json')!r})))\n"
        "c = Checkpoint(files, separator=None)\n"
        "print(c.digest, c.depth, {'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [opened(llama).digest, "6", "set()"]


def test_file_hashes_are_cached_by_size_times_inode(tmp_path: Path) -> None:
    file, memory = tmp_path / "file", tmp_path / "hashes.json"
    file.write_bytes(b"one")
    first = HashCache(memory)(file)
    assert first == store.file_sha256(file)
    content = json.loads(memory.read_text())
    content[str(file.resolve())][-1] = "remembered"
    memory.write_text(json.dumps(content))
    assert HashCache(memory)(file) == "remembered"
    file.write_bytes(b"three")
    assert HashCache(memory)(file) not in (first, "remembered")


def test_damaged_hash_cache_is_ignored(tmp_path: Path) -> None:
    file, memory = tmp_path / "file", tmp_path / "hashes.json"
    file.write_bytes(b"one")
    for damaged in ("{", "[1]", json.dumps({str(file.resolve()): 5}), json.dumps({str(file.resolve()): [[], {}]})):
        memory.write_text(damaged)
        assert HashCache(memory)(file) == store.file_sha256(file)


def test_same_size_and_mtime_change_is_detected(tmp_path: Path) -> None:
    file, memory = tmp_path / "file", tmp_path / "hashes.json"
    file.write_bytes(b"one")
    first, times = HashCache(memory)(file), file.stat()
    time.sleep(0.02)  # the clock of a file system ticks every few milliseconds
    file.write_bytes(b"two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert HashCache(memory)(file) != first


# Damaged folders: the damage, and what the error line must name.


def change(name: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        (folder / name).write_bytes(edit((folder / name).read_bytes()))

    return do


def edit_json(name: str, **changes: Any) -> Callable[[Path], None]:
    return change(name, lambda content: json.dumps(json.loads(content) | changes).encode())


def rehome(home: str) -> Callable[[Path], None]:
    def edit(content: bytes) -> bytes:
        index = json.loads(content)
        index["weight_map"]["model.norm.weight"] = home
        return json.dumps(index).encode()

    return change(INDEX, edit)


def only(*names: str) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        for file in folder.iterdir():
            if file.suffix == ".safetensors" or file.name == INDEX:
                file.unlink()
        for name in names:
            (folder / name).write_bytes(b"?")

    return do


def flip(file: Path, at: int = -9) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


SHARD = "model-00005-of-00020.safetensors"
FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    **{f"shard cut to {n}": (change(SHARD, lambda old, n=n: old[:n]), SHARD) for n in (0, 5, 60, -1, -3000)},
    "shard with a tail": (change(SHARD, lambda old: old + b"\0"), SHARD),
    "shard of zeros": (change(SHARD, lambda old: bytes(len(old))), SHARD),
    "shard with a huge header": (change(SHARD, lambda old: struct.pack("<Q", 99 << 20) + old[8:]), "header claims"),
    "shard missing": (lambda folder: (folder / SHARD).unlink(), SHARD),
    "shards swapped": (
        lambda folder: shutil.copy(folder / "model-00006-of-00020.safetensors", folder / SHARD),
        SHARD,
    ),
    "index cut": (change(INDEX, lambda old: old[:200]), INDEX),
    "index empty": (change(INDEX, lambda _: b"{}"), INDEX),
    "index without a tensor": (edit_json(INDEX, weight_map={"model.norm.weight": SHARD}), "of two versions"),
    "index out of the folder": (rehome("../other/model.safetensors"), "not a plain safetensors file name"),
    "index to the wrong shard": (rehome(SHARD), "model.norm.weight"),
    "config missing": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "config cut": (change("config.json", lambda old: old[:50]), "config.json"),
    "config a list": (change("config.json", lambda _: b"[]"), "config.json"),
    "config of another shape": (edit_json("config.json", intermediate_size=112), "requires model.layers.0.mlp"),
    "config of another depth": (edit_json("config.json", num_hidden_layers=9), "all 9 layers"),
    "config of an unknown model": (edit_json("config.json", model_type="nobody"), "nobody"),
    "config with code": (
        edit_json("config.json", model_type="own", auto_map={"AutoConfig": "own.Own"}),
        "it requires remote code, which is never run",
    ),
    "config of two stacks": (edit_json("config.json", model_type="t5"), "an encoder-decoder"),
    "already quantised": (edit_json("config.json", quantization_config={"quant_method": "gptq"}), "gptq"),
    "head missing": (
        change(INDEX, lambda old: json.dumps({"weight_map": without(old, "lm_head.weight")}).encode()),
        "lm_head.weight",
    ),
    "only pickles": (only("pytorch_model.bin"), "pytorch_model.bin"),
    "only a GGUF": (only("small.gguf"), "small.gguf"),
    "no weights": (only(), "no weights"),
}


def without(index: bytes, name: str) -> dict[str, str]:
    return {key: home for key, home in json.loads(index)["weight_map"].items() if key != name}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_folder_fails_in_one_line_unmodified(fault: str, copy: Path) -> None:
    do, named = FAULTS[fault]
    do(copy)
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    with pytest.raises(ValueError) as refused:
        opened(copy).load(None, **PLAIN)
    line = str(refused.value)
    assert "\n" not in line
    assert str(copy) in line or fault == "config of two stacks"
    assert named in line
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before


def test_opening_detects_damage_in_shards_not_read(copy: Path) -> None:
    change(SHARD, lambda old: old[:-10])(copy)
    with pytest.raises(ValueError, match=f"{SHARD} is truncated or damaged .*; delete .*{SHARD} and download it again"):
        opened(copy)


def test_flipped_bit_is_detected_with_a_manifest(copy: Path) -> None:
    verified.write_manifest(copy, copy.name)
    opened(copy).load(None, **PLAIN)
    flip(copy / SHARD)
    with pytest.raises(ValueError, match=f"{SHARD} is truncated or damaged .its checksum differs"):
        opened(copy).load(None, **PLAIN)


def test_file_truncated_during_reading_is_reported(copy: Path) -> None:
    tensors = opened(copy).tensors(None)
    for file in copy.glob("*.safetensors"):
        change(file.name, lambda old: old[: len(old) // 2])(copy)
    with pytest.raises(ValueError, match="was truncated while it was read"):
        [tensor[...] for tensor in tensors.values()]


@pytest.mark.parametrize("name", [SHARD, "config.json", "tokenizer.json"])
def test_file_changed_during_a_run_is_named(name: str, copy: Path) -> None:
    checkpoint = opened(copy)
    checkpoint.load(Plan(6, (2,), model=checkpoint.digest), **PLAIN)
    (copy / name).touch()
    checkpoint.load(None, **PLAIN)  # touched; the bytes are the same
    before = (copy / name).read_bytes()
    changed = before.replace(b"1", b"2") if name.endswith(".json") else before[:-4] + bytes(4)
    (copy / name).write_bytes(changed)
    with pytest.raises(UserError, match=f"{name} has changed since this run first read it"):
        checkpoint.load(Plan(6, (0,)), **PLAIN) if name != "tokenizer.json" else checkpoint.tokenizer


def test_file_changed_during_tensor_reads_is_refused(copy: Path) -> None:
    (name, tensor), *_ = opened(copy).tensors(4).items()
    assert tensor[...].isfinite().all(), name
    for file in copy.glob("*.safetensors"):
        flip(file)
    with pytest.raises(UserError, match=r"\.safetensors has changed since this run first read it"):
        tensor[...]


def test_plan_for_another_model_is_refused(llama: Path) -> None:
    checkpoint = opened(llama)
    with pytest.raises(ValueError, match=r"the plan is for a model of 7 layers; .*llama has 6"):
        checkpoint.load(Plan(7, (3,)), **PLAIN)
    with pytest.raises(ValueError, match=f"the plan was made for model other; .*llama is {checkpoint.digest[:8]}"):
        checkpoint.load(Plan(6, (3,), model="other"), **PLAIN)
    checkpoint.load(Plan(6, (3,), model=checkpoint.digest), **PLAIN)


def test_missing_tokenizer_is_reported(tmp_path: Path) -> None:
    checkpoint = opened(saved(pico("llama"), tmp_path / "model"))
    with pytest.raises(ValueError, match="no tokenizer that transformers can read") as refused:
        _ = checkpoint.tokenizer
    assert "\n" not in str(refused.value)


PEAK = """
import resource, sys
from pathlib import Path
import psutil, torch, bitsandbytes
from transformers import LlamaForCausalLM
from depthcut.model.decoder import layers
from depthcut.model.checkpoint.checkpoint import Checkpoint
from depthcut.model.checkpoint.files import ModelFolder
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.cut.plan import Plan
from depthcut.runtime.errors import UserError
torch.set_num_threads(1)
folder, how, dtype = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
checkpoint = Checkpoint(ModelFolder(folder, HashCache(folder.parent / "hashes.json")), separator=None)
checkpoint.config
plan = Plan(16, tuple(range(7, 15)))
baseline = psutil.Process().memory_info().rss
if how == "plan":
    checkpoint.load(plan, quantise="none", dtype=dtype, device="cpu")
else:
    layers.cut_layers(checkpoint.load(None, quantise="none", dtype=dtype, device="cpu"), plan.drop)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - baseline, checkpoint.bytes_read)
"""


@pytest.mark.slow
def test_half_the_layers_cost_half_the_memory(tmp_path: Path) -> None:
    """The bytes read are exactly those of the kept layers."""
    folder = tmp_path / "llama"
    write_llama_1b(folder)

    def measured(how: str) -> tuple[int, int]:
        command = [sys.executable, "-c", PEAK, str(folder), how, "bfloat16"]
        peak, read = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return int(peak), int(read)

    try:
        (half, read), (whole, all_read) = measured("plan"), measured("all")
        checkpoint = opened(folder)
        kept = [checkpoint.tensors(layer) for layer in (None, *range(7), 15)]
    finally:
        shutil.rmtree(folder)
    assert half <= 0.6 * whole, (half, whole)
    assert read == pytest.approx(sum(each.nbytes for part in kept for each in part.values()), rel=0.01)
    assert read < 0.6 * all_read


def write_llama_1b(folder: Path) -> None:
    """Write a Llama of 1.1 B random bfloat16 parameters, a layer at a time."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        architectures=["LlamaForCausalLM"],
    )
    folder.mkdir()
    config.save_pretrained(folder)
    shapes = {name: tensor.shape for name, tensor in layers.meta_model(config).state_dict().items()}
    assert sum(map(math.prod, shapes.values())) > 1e9
    homes = {
        name: f"part-{(layers.split_tensor_name(name, 'model.layers') or (99,))[0]}.safetensors" for name in shapes
    }
    for home in set(homes.values()):
        part = [name for name in shapes if homes[name] == home]
        bits = {name: torch.randint(15000, 15600, shapes[name], dtype=torch.int16) for name in part}
        save_file({name: value.view(torch.bfloat16) for name, value in bits.items()}, folder / home)
    (folder / INDEX).write_text(json.dumps({"weight_map": homes}))


def test_each_file_is_resolved_once(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the hub each look-up searches the cache on the disk."""
    checkpoint, own, asked = opened(llama), ModelFolder.path, list[str]()
    monkeypatch.setattr(ModelFolder, "path", lambda self, name: asked.append(name) or own(self, name))
    assert sum(len(checkpoint.tensors(layer)) for layer in (None, *range(6))) == 57
    assert len(asked) == len({*asked}) == 20
