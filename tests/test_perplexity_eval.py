"""Perplexity in windows, against transformers' own loss."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from composing import composed
from depthcut import algorithm
from depthcut.config import build
from depthcut.cut import subnetworks
from depthcut.data.named import texts as named
from depthcut.data.text.parts import Texts
from depthcut.eval.perplexity import Perplexity
from depthcut.model.decoder import layers
from depthcut.model.pico import byte_tokenizer
from depthcut.runtime.errors import UserError
from depthcut.study import digests
from depthcut.study.run import Run, open_run
from depthcut.study.standalone import Standalone
from pico import pico
from running import ENVIRONMENT, text_files

KNOBS: dict[str, Any] = {"window": 16, "stride": None, "windows": None, "bos": "first", "batch": 3}
DOCUMENTS = [f"Document {i} says {i * i * 977} {'and more ' * (i % 4)}." for i in range(30)]


def bare(cache: Path, tokenizer: Any = None) -> Any:
    """Open a run that reads no other text."""
    tokenizer = tokenizer or byte_tokenizer()
    return Standalone(texts=Texts({}, Standalone(tokenizer=tokenizer), cache, 0), tokenizer=tokenizer, cache=cache)


def jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in documents))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "a.jsonl", DOCUMENTS)


def evaluation(file: Path, **knobs: Any) -> Perplexity:
    return Perplexity(texts={"a": {"paths": [str(file)]}}, **KNOBS | knobs)


def byte_model(**changes: Any) -> Any:
    return pico("llama", layers=4, vocab_size=258, **changes)


def own_losses(model: Any, rows: list[list[int]]) -> list[float]:
    """Return transformers' loss of each window."""
    with torch.no_grad():
        return [model(torch.tensor([row]), labels=torch.tensor([row])).loss.item() for row in rows]


@pytest.mark.parametrize("bos", ["first", "all"])
def test_perplexity_equals_transformers_loss_over_windows(bos: str, file: Path, tmp_path: Path) -> None:
    tokenizer, model = byte_tokenizer(), byte_model()
    ids = [tokenizer.convert_tokens_to_ids(each) for each in tokenizer.tokenize("\n\n".join(DOCUMENTS))]
    end = tokenizer.bos_token_id
    whole = [end, *ids] if bos == "first" else ids
    rows = [whole[start : start + 16] for start in range(0, len(whole) - 15, 16)]
    rows = rows if bos == "first" else [[end, *row] for row in rows]
    assert len(whole) % 16 and len(rows) > 60 and end not in whole[1:]
    losses = own_losses(model, rows)
    (got,) = evaluation(file, bos=bos)(model, bare(tmp_path))
    assert got.keys() == {"a/loss", "a/loss_stderr", "a/loss_over_log_v", "a/perplexity", "a/items", "a/tokens"}
    assert (got["a/items"], got["a/tokens"]) == (len(rows), len(rows) * (len(rows[0]) - 1))
    assert got["a/loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert got["a/loss_stderr"] == pytest.approx(np.std(losses, ddof=1) / math.sqrt(len(losses)), rel=1e-4)
    assert got["a/perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)


@pytest.mark.parametrize(("bos", "stride"), [("first", 5), ("first", 16), ("all", 4)])
def test_stride_equals_the_loop_in_transformers_docs(bos: str, stride: int, file: Path, tmp_path: Path) -> None:
    """Its code, except that a window's loss counts for the tokens that it predicts, and for the BOS before each."""
    tokenizer, model = byte_tokenizer(), byte_model()
    ids = tokenizer("\n\n".join(DOCUMENTS), add_special_tokens=False)["input_ids"]
    ids, before = ([tokenizer.bos_token_id, *ids], []) if bos == "first" else (ids, [tokenizer.bos_token_id])
    nll_sum, n_tokens, prev_end_loc = 0.0, 0, 0
    for begin_loc in range(0, len(ids), stride):
        end_loc = min(begin_loc + 16, len(ids))
        trg_len = end_loc - prev_end_loc
        input_ids = torch.tensor([[*before, *ids[begin_loc:end_loc]]])
        target_ids = input_ids.clone()
        target_ids[:, :-trg_len] = -100
        num_loss_tokens = int((target_ids[:, 1:] != -100).sum())
        with torch.no_grad():
            nll_sum += model(input_ids, labels=target_ids).loss.item() * num_loss_tokens
        n_tokens += num_loss_tokens
        prev_end_loc = end_loc
        if end_loc == len(ids):
            break
    (got,) = evaluation(file, bos=bos, stride=stride)(model, bare(tmp_path))
    assert got["a/tokens"] == n_tokens
    assert stride == 16 or n_tokens == len(ids) - (bos == "first")
    assert got["a/loss"] == pytest.approx(nll_sum / n_tokens, rel=1e-5)


def test_stride_changes_digest_but_null_keeps_old_one(file: Path, tmp_path: Path) -> None:
    here: Any = bare(tmp_path)
    assert "stride" not in digests.method_fields(evaluation(file))
    assert digests.evaluation_digest(evaluation(file), here) == "ce5358ed189ad188"
    assert digests.evaluation_digest(evaluation(file, stride=8), here) != digests.evaluation_digest(
        evaluation(file, stride=4), here
    )
    assert evaluation(file).windowed("a", here).digest == "57a9f665186c3274"
    with pytest.raises(ValueError, match=r"stride must be at most eval\.perplexity\.window=16, got 17"):
        evaluation(file, stride=17)


def test_fewer_windows_are_a_prefix_read_lazily(file: Path, tmp_path: Path) -> None:
    whole = evaluation(file).windowed("a", bare(tmp_path))
    few = evaluation(file, windows=2).windowed("a", bare(tmp_path))
    assert len(few) == 2 and np.array_equal(few.ids, whole.ids[:2])
    assert 0 < len(few.documents) < len(whole.documents) == 30
    assert np.array_equal(few.documents, whole.documents[: len(few.documents)])


def test_text_with_fewer_windows_is_reported(file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = evaluation(file, windows=1000).windowed("a", bare(tmp_path))
    assert f"a: the text has only {len(found)} windows, 1000 were requested" in caplog.text


def test_tokenizer_without_bos_adds_none(file: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    with_bos = evaluation(file).windowed("a", bare(tmp_path / "one"))
    tokenizer.bos_token = None
    without = evaluation(file).windowed("a", bare(tmp_path / "other", tokenizer))
    assert np.array_equal(with_bos.ids.ravel()[1:200], without.ids.ravel()[:199])
    with pytest.raises(ValueError, match=r"bos=all: this tokenizer has no BOS"):
        evaluation(file, bos="all").prepare(bare(tmp_path, tokenizer))


def test_cuts_in_one_pass_equal_each_alone(file: Path, tmp_path: Path) -> None:
    model, asked = byte_model(), [subnetworks.FULL, subnetworks.Subnetwork((1, 2)), subnetworks.Subnetwork((3,))]
    shared = evaluation(file)(model, bare(tmp_path), asked)
    for cut, numbers in zip(asked, shared, strict=True):
        with layers.bypass_layers(model, cut.drop):
            (alone,) = evaluation(file)(model, bare(tmp_path))
        assert numbers == pytest.approx(alone, rel=1e-4)
    assert len({numbers["a/loss"] for numbers in shared}) == 3


def test_several_texts_are_measured_and_cached_separately(file: Path, tmp_path: Path) -> None:
    given = {"a": {"paths": [str(file)]}, "b": {"paths": [str(jsonl(tmp_path / "b.jsonl", DOCUMENTS[::-1]))]}}
    both = Perplexity(texts=given | {"gone": None}, **KNOBS)
    here: Any = bare(tmp_path)
    (got,) = both(byte_model(), here)
    assert got["a/loss"] != got["b/loss"]
    parts = both.parts()
    assert [part(byte_model(), here)[0] for part in parts] == [  # type: ignore[index]
        {key: got[key] for key in got if key.startswith(f"{name}/")} for name in "ab"
    ]
    assert len({digests.evaluation_digest(part, here) for part in parts}) == 2


def test_text_is_identified_by_content(file: Path, tmp_path: Path) -> None:
    here: Any = bare(tmp_path)
    same, other = jsonl(tmp_path / "moved.jsonl", DOCUMENTS), jsonl(tmp_path / "other.jsonl", DOCUMENTS[1:])
    name = digests.evaluation_digest(evaluation(file), here)
    assert digests.evaluation_digest(evaluation(same), here) == name
    assert digests.evaluation_digest(evaluation(file, batch=8), here) == name
    for changed in (evaluation(other), evaluation(file, window=8), evaluation(file, bos="all")):
        assert digests.evaluation_digest(changed, here) != name


def test_text_file_lines_are_joined_by_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(DOCUMENTS))
    given = {"a": {"paths": [str(tmp_path / "a.txt")], "divider": "\n"}}
    lines = Perplexity(texts=given, **KNOBS).windowed("a", bare(tmp_path))
    rows = evaluation(jsonl(tmp_path / "a.jsonl", DOCUMENTS)).windowed("a", bare(tmp_path))
    assert np.array_equal(lines.ids, rows.ids)


def test_penn_treebank_folder_layout_is_read(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    folder = tmp_path / "ptb/penn_treebank/validation"
    folder.mkdir(parents=True)
    parquet.write_table(pa.table({"sentence": DOCUMENTS}), folder / "0000.parquet")
    given = dict(composed("model=pico", "eval=[perplexity]").eval.perplexity.texts.ptb)
    del given["revision"]
    ptb = Perplexity(texts={"ptb": given | {"dataset": str(tmp_path / "ptb")}}, **KNOBS)
    rows = evaluation(jsonl(tmp_path / "a.jsonl", DOCUMENTS)).windowed("a", bare(tmp_path))
    assert np.array_equal(ptb.windowed("ptb", bare(tmp_path)).ids, rows.ids)


def test_text_changed_after_opening_is_an_error(file: Path, tmp_path: Path) -> None:
    here: Any = bare(tmp_path)
    digests.evaluation_digest(evaluation(file), here)
    jsonl(file, DOCUMENTS[::-1])  # of the same length
    with pytest.raises(UserError, match=r"^eval\.perplexity\.texts\.a: .*a\.jsonl changed during the run"):
        evaluation(file).prepare(here)


def test_oversized_text_is_refused(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "LONGEST", 500)
    with pytest.raises(UserError, match=r"texts\.a: the text has more than .* set eval\.perplexity\.windows"):
        evaluation(file).prepare(bare(tmp_path))
    assert len(evaluation(file, windows=1).windowed("a", bare(tmp_path))) == 1


WRONG = {
    "no text": ({}, r"eval\.perplexity\.texts is empty; add a text"),
    "no source": ({"a": {}}, r"texts\.a: set its paths, its dataset, or a span of the demo corpus"),
    "unknown key": ({"a": {"path": ["x"]}}, r"eval\.perplexity\.texts\.a\.path: no such key\. Did you mean paths"),
    "wrong kind": ({"a": {"paths": "x"}}, r"eval\.perplexity\.texts\.a\.paths must be a list, got 'x'"),
    "wrong span": ({"a": {"paths": ["x"], "span": [1, 0]}}, r"texts\.a\.span must be two numbers with 0 <= start"),
    "a name that is taken": (
        {"validation": {"paths": ["x"]}},
        r"texts\.validation: this name is used for other numbers",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_invalid_option_fails_in_one_line(case: str) -> None:
    given, said = WRONG[case]
    with pytest.raises(ValueError, match=said) as error:
        Perplexity(texts=given, **KNOBS)
    assert str(error.value).startswith("1 validation error") or "\n" not in str(error.value)


def test_unreadable_text_is_named(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^eval\.perplexity\.texts\.a: no file at no/such\.txt"):
        evaluation(Path("no/such.txt")).reads(bare(tmp_path))
    hub = Perplexity(texts={"a": {"dataset": str(tmp_path / "none"), "revision": "0" * 40}}, **KNOBS)
    with pytest.raises(ValueError, match=r"texts\.a: could not read .*; connect, or set its files: eval\.perplexity"):
        hub.prepare(bare(tmp_path))
    with pytest.raises(
        ValueError, match=r"^eval\.perplexity\.texts\.a: the text has \d+ tokens, fewer than one window of 9999"
    ):
        evaluation(file, window=9999).prepare(bare(tmp_path))


def opened(folder: Path, corpus: tuple[str, ...], *knobs: str) -> Run:
    shape = ("data.calibration.sequences=8", "data.validation.sequences=8", "eval.perplexity.texts.ptb=null")
    return open_run(
        build.build_experiment(
            composed(f"outputs={folder}/outputs", "model=pico", "data=files", *corpus, *shape, *knobs)
        )
    )


def test_training_document_in_the_text_is_refused(tmp_path: Path) -> None:
    corpus = text_files(tmp_path)
    mine = f"eval.perplexity.texts.wikitext2={{paths:[{tmp_path}/corpus.jsonl],field:text}}"

    def prepare(span: str, *knobs: str) -> None:
        here = opened(
            tmp_path, corpus, "eval=[perplexity]", mine, f"+eval.perplexity.texts.wikitext2.span={span}", *knobs
        )
        here.experiment.eval["perplexity"].prepare(here)

    prepare("[0.95,1.0]")
    for span, part in (("[0.0,0.9]", "train"), ("[0.9,0.95]", "calibration")):
        with pytest.raises(ValueError, match=rf"texts\.wikitext2 shares documents with data\.{part}"):
            prepare(span)
    prepare("[0.0,0.9]", "heal=none", "prune=deepest")  # nothing else reads it


def test_run_measures_several_texts_without_repeating_any(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus = text_files(tmp_path)
    wiki, c4 = jsonl(tmp_path / "wiki.jsonl", DOCUMENTS), jsonl(tmp_path / "c4.jsonl", DOCUMENTS[3:])
    texts = ("eval=[loss,perplexity]", f"eval.perplexity.texts.wikitext2={{paths:[{wiki}],field:text}}")
    knobs = (*texts, "heal=none", "export=none", "eval.perplexity.window=16")
    found: list[dict[str, float]] = []
    for more in ((), (f"+eval.perplexity.texts.c4.paths=[{c4}]",)):
        here = opened(tmp_path, corpus, *knobs, *more)
        caplog.clear()
        with caplog.at_level("INFO"):
            algorithm.run_experiment(here.experiment, here)
        assert ("wikitext2 loss" in caplog.text) == (not more)
        found.append(here.numbers)
    names = ("validation", "wikitext2", "c4")
    for stage in ("dense", "pruned"):
        assert found[0][f"{stage}/wikitext2/loss"] == found[1][f"{stage}/wikitext2/loss"]
        assert len({found[1][f"{stage}/{name}/perplexity"] for name in names}) == len(names)
        assert f"{stage}/c4/loss" not in found[0]


LIGHT = """
import sys
from pathlib import Path
from depthcut.data.text.parts import Texts
from depthcut.study.standalone import Standalone
from depthcut.eval.perplexity import Perplexity
read = Perplexity(texts={"a": {"paths": [sys.argv[1]]}}, window=16, stride=None, windows=None, bos="first", batch=1)
assert read.reads(Standalone(texts=Texts({}, Standalone(), Path(sys.argv[2]), 0)))["a"]
assert not {"torch", "transformers", "datasets"} & set(sys.modules)
"""


def test_text_sources_are_described_without_torch(file: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LIGHT, str(file), str(tmp_path)], env=ENVIRONMENT, check=True)
