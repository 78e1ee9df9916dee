"""Tokens: packed, or one document per sequence; cached by content; overlapping parts are refused."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from composing import composed
from depthcut.config import build
from depthcut.data import text_fingerprint
from depthcut.data.demo import Demo
from depthcut.data.files import Files
from depthcut.data.text import tokenize
from depthcut.data.text import tokens as text_tokens
from depthcut.runtime.errors import UserError
from depthcut.study.run import open_run
from running import text_files

CACHE = Path(__file__).parents[1] / "outputs/cache"
TEXTS = [f"Document number {i} is about the number {i * i}.\n\nIt has two paragraphs." for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer():
    """Return a byte-level tokenizer that adds a BOS by default, as Llama's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<|endoftext|>"]
    inner.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>", model_max_length=16
    )


def files(paths, **changed):
    knobs = {"span": [0.0, 1.0], "sequences": None, "length": 16, "pack": True, "field": "text", "divider": None}
    return Files(paths=[str(path) for path in paths], **(knobs | changed))


def write_jsonl(path, texts=TEXTS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


def test_packed_by_hand(tmp_path, tokenizer):
    source = files([write_jsonl(tmp_path / "a.jsonl")], length=16)
    found = tokenize.tokenize_source(source, tokenizer, "<|endoftext|>", tmp_path, sequences=5)
    stream = [token for document in TEXTS for token in [*tokenizer(document, verbose=False)["input_ids"], 2]]
    assert found.ids.tolist() == np.reshape(stream[:80], (5, 16)).tolist()
    assert found.ids.dtype == np.int32
    assert found.lengths.tolist() == [16] * 5
    used = len(found.documents)
    ends = np.cumsum([len(tokenizer(document, verbose=False)["input_ids"]) + 1 for document in TEXTS])
    assert ends[used - 2] < 80 <= ends[used - 1]
    assert found.documents.tolist() == [text_fingerprint(document) for document in TEXTS[:used]]


def test_one_document_per_sequence(tmp_path, tokenizer):
    source = files([write_jsonl(tmp_path / "a.jsonl", ["a", *TEXTS])], length=10, pack=False, sequences=3)
    found = tokenize.tokenize_source(source, tokenizer, None, tmp_path)
    first, second = tokenizer(["a", TEXTS[0]], verbose=False)["input_ids"]
    assert found.ids[0].tolist() == first + [1] * (10 - len(first))
    assert found.ids[1].tolist() == second[:10]
    assert found.lengths.tolist() == [len(first), 10, 10]
    assert len(found) == len(found.documents) == 3


def test_batches(tmp_path, tokenizer):
    source = files([write_jsonl(tmp_path / "a.jsonl", ["a", "b", *TEXTS])], length=10, pack=False)
    found = tokenize.tokenize_source(source, tokenizer, None, tmp_path, sequences=5)
    batches = list(found.batches(2))
    assert [tuple(ids_BT.shape) for ids_BT, _ in batches] == [(2, 2), (2, 10), (1, 10)]
    assert all(ids_BT.shape == mask_BT.shape for ids_BT, mask_BT in batches)
    assert sum(int(mask_BT.sum()) for _, mask_BT in batches) == found.lengths.sum()


def test_tokenizers_own_end_is_not_doubled(tmp_path, tokenizer):
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    ending = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    source = files([write_jsonl(tmp_path / "a.jsonl")])
    one, other = (tokenize.tokenize_source(source, each, None, tmp_path, sequences=20) for each in (tokenizer, ending))
    assert one.ids.tolist() == other.ids.tolist()
    assert one.digest != other.digest


def test_cached_once_and_verified(tmp_path, tokenizer):
    source = files([write_jsonl(tmp_path / "a.jsonl")])
    one = tokenize.tokenize_source(source, tokenizer, None, tmp_path, sequences=5)
    made = tmp_path / "tokens" / one.digest / "ids.bin"
    before = made.stat().st_mtime_ns
    again = tokenize.tokenize_source(source, tokenizer, "</s>", tmp_path, sequences=5)
    assert (again.digest, made.stat().st_mtime_ns) == (one.digest, before)
    content = made.read_bytes()
    made.write_bytes(b"\0" * len(content))
    assert tokenize.tokenize_source(source, tokenizer, None, tmp_path, sequences=5).ids.tobytes() == content
    other = [
        tokenize.tokenize_source(source, tokenizer, "<|endoftext|>", tmp_path, 5),
        tokenize.tokenize_source(source, tokenizer, None, tmp_path, 6),
    ]
    assert len({one.digest, *(tokens.digest for tokens in other)}) == 3


def test_using_a_tokenizer_does_not_change_its_digest(tokenizer):
    before = text_tokens.tokenizer_digest(tokenizer)
    tokenizer(TEXTS, padding=True, truncation=True, max_length=4)
    assert text_tokens.tokenizer_digest(tokenizer) == before


def test_number_of_sequences(tmp_path, tokenizer, caplog):
    path = write_jsonl(tmp_path / "a.jsonl")
    whole = tokenize.tokenize_source(files([path]), tokenizer, None, tmp_path, sequences=10**6)
    assert 40 < len(whole) < 10**6
    assert len(whole.documents) == len(TEXTS)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    with caplog.at_level(logging.WARNING):
        short = tokenize.tokenize_source(files([path], sequences=10**6), tokenizer, None, tmp_path, part="validation")
    assert caplog.messages == [f"data.validation: the text has only {len(whole)} sequences, 1000000 were requested"]
    assert short.ids.tolist() == whole.ids.tolist()
    assert len(tokenize.tokenize_source(files([path], sequences=9), tokenizer, None, tmp_path, sequences=4)) == 4
    assert len(tokenize.tokenize_source(files([path], sequences=4), tokenizer, None, tmp_path, sequences=9)) == 4


def test_calibration_needs_a_number_of_sequences(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"data\.calibration\.sequences must be a number here"):
        tokenize.tokenize_source(files([path]), tokenizer, None, tmp_path, part="calibration")


def test_too_little_text_fails_in_one_line(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl", ["Very short."])
    with pytest.raises(
        ValueError, match=r"^data\.calibration: text too short: .* has \d+ tokens, at least 512 are needed$"
    ):
        tokenize.tokenize_source(files([path], length=512), tokenizer, None, tmp_path, 1, part="calibration")
    assert [entry.name for entry in (tmp_path / "tokens").iterdir() if not entry.name.startswith(".")] == []
    with pytest.raises(ValueError, match=r"^data\.train: no file at gone\.txt"):
        tokenize.tokenize_source(files(["gone.txt"]), tokenizer, None, tmp_path, 1, part="train")


def test_single_token_documents_have_no_loss(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl", ["a", "b"])
    plain = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")
    plain.backend_tokenizer.post_processor = None
    with pytest.raises(UserError, match=r"^data\.validation: every document has fewer than two tokens"):
        tokenize.tokenize_source(files([path], pack=False), plain, None, tmp_path, 2, part="validation")


def test_tokenizer_fault_is_not_a_user_error(tmp_path, tokenizer, monkeypatch):
    from depthcut.data.named import texts as named

    def broken(*_: object) -> list[object]:
        raise ValueError("a fault")

    monkeypatch.setattr(tokenize, "encode_documents", broken)
    with pytest.raises(ValueError, match=r"^a fault$"):
        tokenize.tokenize_source(files([write_jsonl(tmp_path / "a.jsonl")]), tokenizer, None, tmp_path, 1)
    with pytest.raises(ValueError, match=r"^a fault$"), named.prefix_errors("mine"):
        broken()


def test_separator_must_be_a_token(tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"model\.separator: '<eot>' is not a token of this tokenizer"):
        tokenize.tokenize_source(files(["x.txt"]), tokenizer, "<eot>", tmp_path, 1)


def test_long_documents_raise_no_warning(tmp_path, tokenizer, caplog, capfd):
    (tmp_path / "a.txt").write_text(" ".join(TEXTS))
    tokenize.tokenize_source(files([tmp_path / "a.txt"]), tokenizer, None, tmp_path, 10)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "longer" not in "".join(capfd.readouterr())


def test_overlapping_parts_are_refused(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl")
    other = write_jsonl(tmp_path / "b.jsonl", [TEXTS[3] + " ", "Something else."])
    train = tokenize.tokenize_source(files([path]), tokenizer, None, tmp_path, 10**6)
    validation = tokenize.tokenize_source(files([other]), tokenizer, None, tmp_path, 10**6)
    with pytest.raises(ValueError, match=r"data\.train and data\.validation share 1 document; .*span"):
        text_tokens.check_disjoint({"train": train, "validation": validation})
    halves = {"train": files([path], span=[0, 0.5]), "validation": files([path, other], span=[0.5, 1])}
    text_tokens.check_disjoint(
        {part: tokenize.tokenize_source(half, tokenizer, None, tmp_path, 10**6) for part, half in halves.items()}
    )


def test_demo_parts_never_overlap(tokenizer):
    spans = {"calibration": (0.9, 0.95), "train": (0.0, 0.9), "validation": (0.95, 1.0)}
    sources = {part: Demo(span=span, sequences=300, length=64, pack=True) for part, span in spans.items()}
    parts = {
        part: tokenize.tokenize_source(source, tokenizer, None, CACHE, part=part) for part, source in sources.items()
    }
    text_tokens.check_disjoint(parts)
    assert all(len(tokens) == 300 for tokens in parts.values())


class Rewritten(Files):
    """Files of which one changes, at the same length, while it is read."""

    def documents(self, cache):
        yield from super().documents(cache)
        write_jsonl(Path(self.paths[0]), [each.upper() for each in TEXTS])


def test_text_changed_while_reading_is_an_error(tmp_path, tokenizer):
    knobs = {"span": [0.0, 1.0], "sequences": None, "length": 16, "pack": True, "field": "text", "divider": None}
    source = Rewritten(paths=[str(write_jsonl(tmp_path / "a.jsonl"))], **knobs)
    with pytest.raises(UserError, match=r"^data\.train: .*a\.jsonl changed during the run; run the same command again"):
        tokenize.tokenize_source(source, tokenizer, None, tmp_path, 10**6, part="train")
    assert not [entry for entry in (tmp_path / "tokens").iterdir() if not entry.name.startswith(".")]


def test_text_changed_after_opening_is_an_error(tmp_path):
    corpus = text_files(tmp_path)
    here = open_run(
        build.build_experiment(composed(f"outputs={tmp_path}/outputs", "model=pico", "data=files", *corpus))
    )
    assert here.digest
    path = tmp_path / "corpus.jsonl"
    path.write_text(path.read_text().replace("cat", "emu"))
    with pytest.raises(UserError, match=r"corpus\.jsonl changed during the run"):
        here.texts.train()
