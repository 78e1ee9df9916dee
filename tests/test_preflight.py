"""Problems visible in config, headers or tokenizer are reported before a weight is loaded."""

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Gemma3ImageProcessorPil, Gemma3Processor, PreTrainedTokenizerFast

from composing import composed
from depthcut.config import build
from depthcut.model.checkpoint import loading
from depthcut.model.checkpoint.files import ModelFolder
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.model.pico import byte_tokenizer
from depthcut.runtime.errors import UserError
from depthcut.study import export, preflight
from depthcut.study.run import open_run
from pico import pico, picture_model
from running import succeed, text_files

BYTES = {"vocab_size": 258, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 257}
OPT = BYTES | {"ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 48}
SHORT = [f"data.{part}.length=48" for part in ("calibration", "validation")] + ["heal.length=48"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return text_files(tmp_path_factory.mktemp("corpus"))


def saved(folder: Path, family: str, added: str = "", **changes: Any) -> None:
    """Write a model and a byte tokenizer with one token added, without resizing the embedding."""
    with loading.quiet_transformers():
        pico(family, **changes).save_pretrained(folder / "model")
    tokenizer = byte_tokenizer()
    if added:
        tokenizer.add_special_tokens({"eos_token": added})
    tokenizer.save_pretrained(folder / "model")


def prepared(folder: Path, corpus: tuple[str, ...], *words: str) -> None:
    """Prepare a run of the model in ``folder``; no weight is read."""
    model = ("model=local", f"model.path={folder / 'model'}", "data=files", "eval=[loss]", "device=cpu")
    entered = open_run(build.build_experiment(composed(*model, f"outputs={folder}", *corpus, "heal=none", *words)))
    preflight.prepare_run(entered)
    assert entered.checkpoint.bytes_read == 0


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("opt", OPT),
        ("gpt2", BYTES | {"max_position_embeddings": 48}),
        ("gptj", BYTES | {"max_position_embeddings": 48, "rotary_dim": 8}),
    ],
)
def test_texts_longer_than_the_positions_are_refused(
    family: str, changes: Any, corpus: tuple[str, ...], tmp_path: Path
) -> None:
    saved(tmp_path, family, **changes)
    with pytest.raises(UserError, match=r"validation\.length=256, but the model has 48 positions; use at most 48"):
        prepared(tmp_path, corpus)
    prepared(tmp_path, corpus, *SHORT[:2])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("eval=[documentation]",),
            r"^eval\.documentation\.length=256, but the model has 48 positions; use at most 48$",
        ),
        (
            ("eval=[speed]", "eval.speed.prompt=abcdefgh", "eval.speed.prefill_batch=null"),
            r"^eval\.speed\.tokens=128, but the model has 48 positions, 7 of which are reserved; use at most 41$",
        ),
        (("eval=[speed]",), r"^eval\.speed\.prefill_length=512, but"),
        (
            ("eval=[perplexity]", "eval.perplexity.window=48", "eval.perplexity.bos=all"),
            r"^eval\.perplexity\.window=48, but .*, 1 of which are reserved; use at most 47$",
        ),
        (("replace=mean", "prune=deepest", "data.calibration.length=256"), r"^data\.calibration\.length=256, but"),
        (("replace=linear", "prune=deepest", "data.calibration.length=256"), r"^data\.calibration\.length=256, but"),
        (("replace=layer", "prune=deepest", "data.train.length=256"), r"^data\.train\.length=256, but"),
    ],
)
def test_other_lengths_beyond_the_positions_are_refused(
    words: tuple[str, ...], said: str, corpus: tuple[str, ...], tmp_path: Path
) -> None:
    saved(tmp_path, "opt", **OPT)
    with pytest.raises(UserError, match=said):
        prepared(tmp_path, corpus, *SHORT[:2], *words)


def test_generation_up_to_the_last_position_is_accepted(corpus: tuple[str, ...], tmp_path: Path) -> None:
    saved(tmp_path, "opt", **OPT)
    short = ("eval.speed.prompt=abcdefgh", "eval.speed.prefill_batch=null", "eval.speed.tokens=41")
    prepared(tmp_path, corpus, *SHORT[:2], "eval=[speed]", *short)
    ids, model = torch.ones(1, 8, dtype=torch.long), pico("opt", **OPT)
    for tokens, refused in ((41, nullcontext()), (42, pytest.raises(IndexError))):
        with loading.quiet_transformers(), refused:
            model.generate(ids, min_new_tokens=tokens, max_new_tokens=tokens)  # pyright: ignore[reportCallIssue]


def test_rotary_models_accept_any_length(corpus: tuple[str, ...], tmp_path: Path) -> None:
    saved(tmp_path, "llama", **BYTES, max_position_embeddings=48)
    prepared(tmp_path, corpus)


def test_separator_without_an_embedding_is_refused(corpus: tuple[str, ...], tmp_path: Path) -> None:
    saved(tmp_path, "llama", added="<|im_end|>", **BYTES)
    with pytest.raises(UserError, match=r"token 258 \(<\|im_end\|>\) has no row in an embedding of 258; name another"):
        prepared(tmp_path, corpus)
    prepared(tmp_path, corpus, "model.separator='<|endoftext|>'")


def test_text_with_out_of_vocabulary_token_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "llama", added="<|im_end|>", **BYTES)
    words = text_files(tmp_path)
    lines = [json.dumps({"text": f"{i} is a number.<|im_end|>" * 40}) for i in range(400)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"data\.\w+: token 258 \(<\|im_end\|>\) has no row .*; resize the embedding"):
        prepared(tmp_path, words, "model.separator='<|endoftext|>'")


def test_unquantised_remainder_is_reported_or_refused(
    corpus: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixture = BYTES | {"num_key_value_heads": 2, "num_local_experts": 4}
    saved(tmp_path, "mixtral", **mixture)
    with pytest.raises(UserError, match=r"nf4 would leave 89% of the layers' weights in bfloat16 \(mlp\.experts\."):
        prepared(tmp_path, corpus, "model.quantise=nf4", "model.dtype=bfloat16")
    saved(tmp_path, "mixtral", **mixture | {"intermediate_size": 8, "num_local_experts": 2})
    with caplog.at_level(logging.WARNING, "depthcut"):
        prepared(tmp_path, corpus, "model.quantise=nf4", "model.dtype=bfloat16")
    assert "model.quantise=nf4 leaves 21% of the layers' weights in bfloat16" in caplog.text


def test_broken_generation_config_is_reported_early(corpus: tuple[str, ...], tmp_path: Path) -> None:
    saved(tmp_path, "llama", **BYTES)
    (tmp_path / "model" / "generation_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"generation_config\.json is truncated or damaged"):
        prepared(tmp_path, corpus)


def test_export_copies_processor_configs(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    names = (
        "preprocessor_config.json",
        "processor_config.json",
        "video_preprocessor_config.json",
        "chat_template.json",
    )
    for name in (*names, "config.json", "model.safetensors"):
        (source / name).write_text(name)
    (target / "chat_template.json").write_text("the tokenizer's own")
    export.copy_side_files(ModelFolder(source, HashCache(tmp_path / "hashes.json")), target)
    assert {file.name for file in target.iterdir()} == set(names)
    assert (target / "chat_template.json").read_text() == "the tokenizer's own"


def test_exported_models_processor_can_be_used(corpus: tuple[str, ...], tmp_path: Path) -> None:
    """Images as PIL reads them: the other kind of image processor needs torchvision."""
    marks = {f"{name}_token": f"<{name}>" for name in ("image", "boi", "eoi")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer().backend_tokenizer, eos_token="<|endoftext|>", extra_special_tokens=marks
    )
    images = Gemma3ImageProcessorPil(size={"height": 28, "width": 28}, image_mean=[0.25, 0.5, 0.75])
    with loading.quiet_transformers():
        picture_model(3, vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    Gemma3Processor(images, tokenizer, image_seq_length=4).save_pretrained(tmp_path / "model")
    words = (f"outputs={tmp_path}", "model=local", f"model.path={tmp_path / 'model'}", "data=files", *corpus)
    record = succeed(*words, "prune=deepest", "prune.layers=1", "heal=none", "eval=[]", "device=cpu")
    call: Any = {"text": "A <boi> picture", "images": [Image.new("RGB", (30, 40), "red")], "return_tensors": "pt"}
    before, after = (
        AutoProcessor.from_pretrained(path)(**call) for path in (tmp_path / "model", record["folder"] / "model")
    )
    assert after["pixel_values"].shape == (1, 3, 28, 28) and before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_adapter_folder_error_names_its_base(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "me/base"}))
    with pytest.raises(
        UserError, match=r"^\S+ is only an adapter \(\S+\) of me/base, not a model; use the base model, or merge"
    ):
        prepared(tmp_path, text_files(tmp_path))


def test_hub_cache_folder_error_names_its_snapshot(tmp_path: Path) -> None:
    snapshot = tmp_path / "model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"a repository in the hub's cache, not a model; use {snapshot}"):
        prepared(tmp_path, text_files(tmp_path))
