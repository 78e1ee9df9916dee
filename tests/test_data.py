"""Data: the demo corpus, files and hub data sets; determinism and errors."""

import gzip
import importlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from depthcut.data import text_fingerprint
from depthcut.data.demo import Demo, read_articles, read_speeches, split_sections
from depthcut.data.files import Files
from depthcut.data.hub import Hub
from depthcut.data.text import characters, limits
from depthcut.runtime.errors import UserError

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "outputs/cache"
PATHS = {"PYTHONPATH": str(ROOT / "src")}
TEXTS = [f"Document number {i} is about the number {i * i}.\n\nIt has two paragraphs." for i in range(40)]
PARTS = {"calibration": (0.9, 0.95), "train": (0.0, 0.9), "validation": (0.95, 1.0)}


def demo(part, **changed):
    return Demo(**({"span": PARTS[part], "sequences": 16, "length": 64, "pack": True} | changed))


def files(paths, **changed):
    knobs = {"span": [0.0, 1.0], "sequences": None, "length": 16, "pack": True, "field": "text", "divider": None}
    return Files(paths=[str(path) for path in paths], **(knobs | changed))


def hub(dataset, **changed):
    knobs = {"span": [0.0, 1.0], "sequences": None, "length": 16, "pack": True, "field": "text"}
    return Hub(dataset=str(dataset), **(knobs | {"config": None, "split": "train", "revision": None} | changed))


def write_jsonl(path, texts=TEXTS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


def test_demo_parts_add_up_to_the_whole():
    whole = list(demo("train", span=[0.0, 1.0]).documents(CACHE))
    parts = {part: list(demo(part).documents(CACHE)) for part in PARTS}
    assert sorted(whole) == sorted(itertools.chain(*parts.values()))
    assert 16.5e6 < sum(map(len, whole)) < 17.5e6
    assert 0.04 < len(parts["validation"]) / len(whole) < 0.06
    for one, other in (("train", "validation"), ("train", "calibration"), ("calibration", "validation")):
        assert not {*map(text_fingerprint, parts[one])} & {*map(text_fingerprint, parts[other])}


def test_each_speech_is_in_one_part():
    validation = set(demo("validation").documents(CACHE))
    inside = [[section in validation for section in split_sections(speech)] for speech in read_speeches(CACHE)]
    assert all(all(flags) or not any(flags) for flags in inside)
    assert 5 < sum(all(flags) for flags in inside) < 25


def test_first_documents_mix_both_corpora():
    summaries = {article["extract"] for article in read_articles(CACHE)}
    for part in PARTS:
        documents = list(demo(part).documents(CACHE))[:60]
        assert 15 < sum(text in summaries for text in documents) < 55
        assert documents == list(demo(part).documents(CACHE))[:60]


def test_stage_directions_and_stubs_are_removed():
    assert not any("[laughter]" in text.lower() or "[applause]" in text.lower() for text in read_speeches(CACHE))
    assert all(len(article["extract"]) >= 100 for article in read_articles(CACHE))
    assert "".join("\n\n".join(split_sections("a\n\nb " + "x" * 1600 + "\n\nc")).split()) == "ab" + "x" * 1600 + "c"


def test_span_bounds_are_checked():
    for span in ([0.5, 0.5], [-0.1, 1.0], [0.0, 1.1], [0.0], [False, 1.0], ["0", 1.0]):
        with pytest.raises(ValidationError):
            demo("train", span=span)


def test_fingerprint_ignores_white_space():
    assert text_fingerprint("One  text.\n") == text_fingerprint("One text.") != text_fingerprint("Another text.")


def test_three_formats_give_the_same_documents(tmp_path):
    import pyarrow
    from pyarrow import parquet

    lines = write_jsonl(tmp_path / "a.jsonl")
    parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_bytes("\ufeff".encode() + "\n====\n".join(TEXTS).replace("\n", "\r\n").encode())
    assert list(files([lines]).documents(tmp_path)) == TEXTS
    assert list(files([tmp_path / "a.parquet"]).documents(tmp_path)) == TEXTS
    assert list(files([tmp_path / "a.txt"], divider="\n====\n").documents(tmp_path)) == TEXTS
    assert len(list(files([tmp_path / "a.txt"]).documents(tmp_path))) == 1
    assert len(list(files([tmp_path / "a.txt"], divider="\n\n").documents(tmp_path))) == 41


def zstandard(data):
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


JSONL = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
BOM = "\ufeff".encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.jsonl", BOM + JSONL),
        ("crlf.jsonl", JSONL.replace(b"\n", b"\r\n")),
        ("mac.jsonl", JSONL.replace(b"\n", b"\r")),
        ("lines.json", JSONL),
        ("nulls.jsonl", b'{"text": null}\n' + JSONL + b'{"text": null}'),
        ("a.jsonl.gz", gzip.compress(BOM + JSONL, mtime=0)),
        ("a.json.gz", gzip.compress(JSONL, mtime=0)),
        ("a.jsonl.zst", zstandard(JSONL)),
        ("a.txt.gz", gzip.compress("\n====\n".join(TEXTS).encode(), mtime=0)),
        ("mac.txt", BOM + "\n====\n".join(TEXTS).replace("\n", "\r").encode()),
    ],
)
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_text_encodings_give_the_same_documents(tmp_path, name, content, chunk, monkeypatch, caplog):
    monkeypatch.setattr(characters, "CHUNK", chunk)
    (tmp_path / name).write_bytes(content)
    with caplog.at_level("INFO"):
        assert list(files([tmp_path / name], divider="\n====\n").documents(tmp_path)) == TEXTS
    assert ("skipped 2 rows without text (text is null)" in caplog.text) == (name == "nulls.jsonl")


def test_lone_surrogates_are_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "cut \\ud83d off, \\ud83d\\ude00 whole"}')
    assert list(files([tmp_path / "a.jsonl"]).documents(tmp_path)) == ["cut \ufffd off, \U0001f600 whole"]


def test_every_arrow_text_column_is_read(tmp_path):
    import pyarrow
    from pyarrow import parquet

    kinds = (pyarrow.large_string(), pyarrow.string_view(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))
    for place, kind in enumerate(kinds):
        parquet.write_table(pyarrow.table({"text": pyarrow.array([*TEXTS, None], kind)}), tmp_path / f"{place}.parquet")
        assert list(files([tmp_path / f"{place}.parquet"]).documents(tmp_path)) == TEXTS


def test_invalid_utf_8_in_parquet_names_its_row(tmp_path):
    import pyarrow
    from pyarrow import parquet

    column = pyarrow.array([b"fine", b"caf\xe9"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: row 2 of column `text` is not UTF-8"):
        list(files([tmp_path / "a.parquet"]).documents(tmp_path))


def test_non_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for name in ("pipe.jsonl", "zero.txt"):
        with pytest.raises(UserError, match=rf"{name} is a device, pipe or socket"):
            files([tmp_path / name]).identity(tmp_path)
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "set" / name)
        with pytest.raises(UserError, match=rf"{name} is not a regular file"):
            hub(tmp_path / "set").identity(tmp_path)
        (tmp_path / "set" / name).unlink()


def test_endless_document_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "LONGEST", 1 << 20)
    (tmp_path / "a.txt").write_text("word " * 300_000)
    (tmp_path / "a.jsonl").write_text('{"text": "short"}\n{"text": "' + "x" * 1_100_000 + '"}')
    for name, where in (("a.txt", r"a\.txt"), ("a.jsonl", r"a\.jsonl, line 2")):
        with pytest.raises(UserError, match=rf"{where} contains a document of more than 1 million characters"):
            list(files([tmp_path / name], divider="\n\n").documents(tmp_path))


EXPANDS = """
import resource, sys
from pathlib import Path
import pyarrow
from pyarrow import parquet
from depthcut.data.text import documents
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
file, text = Path(sys.argv[1]), "x" * (2 << 20)
column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000), pyarrow.array([text]))
parquet.write_table(pyarrow.table({"text": column}), file, compression="zstd")
assert file.stat().st_size < 1000
before = peak()
assert sum(len(each) for each in documents.read_documents(file, "text", None)) == 1000 * len(text)
long = file.with_name("a.txt")
with long.open("w") as lines:
    lines.writelines(("x" * 999 + "\\n") * 1000 for _ in range(300))
assert sum(1 for each in documents.read_documents(long, "text", "\\n")) == 300_000
print((peak() - before) >> 10)
"""


def test_large_files_are_streamed(tmp_path):
    call = [sys.executable, "-c", EXPANDS, str(tmp_path / "a.parquet")]
    done = subprocess.run(call, capture_output=True, text=True, check=True, env={**os.environ, **PATHS})
    assert int(done.stdout) < 200, "MiB"


def test_single_document_corpus_is_reported(tmp_path):
    (tmp_path / "book.txt").write_text("\n".join(TEXTS))
    book = [files([tmp_path / "book.txt"], divider="\n====\n", span=span) for span in ([0, 0.5], [0.5, 1])]
    told = []
    for half in book:
        try:
            assert len(list(half.documents(tmp_path))) == 1
        except UserError as error:
            told.append(str(error))
    assert len(told) == 1
    assert "is one document" in told[0] and "set divider to the text between its documents" in told[0]


def test_span_without_documents_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"none of the 40 documents of .*a\.jsonl is in the span \[0\.9999, 1\.0\]"):
        list(files([write_jsonl(tmp_path / "a.jsonl")], span=[0.9999, 1.0]).documents(tmp_path))


def test_sequence_length_has_an_upper_bound(tmp_path):
    with pytest.raises(ValidationError, match="less than or equal to 1048576"):
        files([tmp_path / "a.txt"], length=10**8)


def test_plain_file_identities_are_unchanged(tmp_path):
    """They equal those that earlier versions computed, so their caches and records stay valid."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(JSONL)
    assert files([path]).identity(tmp_path) == "ba9fce2509623190"
    assert hub("nobody/nothing", revision="0" * 40).identity(tmp_path) == "b7c5518fa5d583e4"
    (tmp_path / "set").mkdir()
    path.rename(tmp_path / "set/train.jsonl")
    assert hub(tmp_path / "set").identity(tmp_path) == "6707655fa3a9ea17"
    assert demo("train").identity(tmp_path) == "9fc3fda55525f137"


def test_patterns_and_spans(tmp_path):
    write_jsonl(tmp_path / "x/1.jsonl", TEXTS[:20])
    write_jsonl(tmp_path / "x/2.jsonl", TEXTS[20:])
    assert list(files([tmp_path / "**/*.jsonl", tmp_path / "x/1.jsonl"]).documents(tmp_path)) == TEXTS
    halves = [list(files([tmp_path / "x/*"], span=span).documents(tmp_path)) for span in ([0, 0.5], [0.5, 1])]
    assert sorted(halves[0] + halves[1]) == sorted(TEXTS)
    assert min(map(len, halves)) > 8


def test_identity_is_by_content(tmp_path):
    one, same = write_jsonl(tmp_path / "one.jsonl"), write_jsonl(tmp_path / "elsewhere/same.jsonl")
    other = write_jsonl(tmp_path / "other.jsonl", TEXTS[1:])
    assert files([one]).identity(tmp_path) == files([same]).identity(tmp_path)
    changed = [files([other]), files([one], span=[0, 0.5]), files([one], field="id"), files([one], divider="x")]
    assert len({source.identity(tmp_path) for source in [files([one]), *changed]}) == 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xc3\xa9 caf\xe9", r"a\.txt is not UTF-8: byte 9 is 0xe9"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', r"a\.jsonl is not UTF-8: byte 24 is 0xff"),
        ("a.txt", b"\n\n", r"a\.txt contains no text"),
        ("a.jsonl", b"", r"a\.jsonl contains no text"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', r"a\.jsonl, line 3 is not JSON: Expecting value"),
        ("a.jsonl", b'["x"]\n', r"a\.jsonl, line 1 is a list, not a JSON object"),
        ("a.jsonl", b'{"body": "x", "id": 1}\n', r"line 1 has no field `text`; its fields: body, id"),
        ("a.jsonl", b'{"text": null}\n', r"a\.jsonl contains no text"),
        ("a.jsonl", b'{"text": 7}\n', r"a\.jsonl, line 1: field `text` is int, not text"),
        (
            "a.jsonl",
            b'{"text": ' + b"7" * 6000 + b"}",
            r"a\.jsonl, line 1 cannot be parsed as JSON: .*has 6000 digits$",
        ),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, r"a\.jsonl, line 1 cannot be parsed as JSON: .*recursion"),
        ("a.json", b'[{"text": "x"}]', r"a\.json, line 1 is a list, not a JSON object; write one object per line"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz is truncated or damaged"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n', mtime=0)[:-9], r"a\.jsonl\.gz is truncated or damaged"),
        ("a.jsonl.zst", b"no zstandard", r"a\.jsonl\.zst is truncated or damaged"),
        ("a.parquet.gz", b"x", r"cannot read \.gz"),
        ("a.parquet", b"no parquet", r"a\.parquet is not a parquet file"),
        ("a.csv", b"text\nx", r"a\.csv: cannot read \.csv, only \.txt, \.jsonl or \.parquet"),
        ("a", b"x", r"cannot read a file without suffix"),
    ],
)
def test_bad_file_fails_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        list(files([tmp_path / name]).documents(tmp_path))
    assert "\n" not in str(caught.value)


def test_missing_files_columns_and_folders(tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"body": ["x"], "text": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"has no column `words`; its columns: body, text"):
        list(files([tmp_path / "a.parquet"], field="words").documents(tmp_path))
    with pytest.raises(ValueError, match="column `text` is int64, not text"):
        list(files([tmp_path / "a.parquet"]).documents(tmp_path))
    with pytest.raises(ValueError, match=r"no file at .*\*\.jsonl"):
        files([tmp_path / "*.jsonl"]).identity(tmp_path)
    with pytest.raises(ValueError, match=r"is a folder; name its files"):
        files([tmp_path]).identity(tmp_path)
    with pytest.raises(ValueError, match=r"data\.train\.paths"):
        files([]).identity(tmp_path)


def test_hub_reads_a_data_set_in_a_folder(tmp_path):
    folder = tmp_path / "set"
    write_jsonl(folder / "train.jsonl", TEXTS[:30])
    write_jsonl(folder / "validation.jsonl", TEXTS[30:])
    source = hub(folder)
    assert list(source.documents(tmp_path)) == TEXTS[:30]
    assert list(hub(folder, split="validation").documents(tmp_path)) == TEXTS[30:]
    assert 0 < len(list(hub(folder, span=[0, 0.5]).documents(tmp_path))) < 30


def test_data_set_folder_identity_is_by_content(tmp_path):
    folder = tmp_path / "set"
    write_jsonl(folder / "train.jsonl", TEXTS[:30])
    source = hub(folder)
    before = source.identity(tmp_path)
    shutil.copytree(folder, tmp_path / "copy")
    assert hub(tmp_path / "copy").identity(tmp_path) == before
    write_jsonl(folder / "train.jsonl", TEXTS[:29])
    assert source.identity(tmp_path) != before


def test_missing_data_set_split_or_field_is_reported(tmp_path):
    folder = tmp_path / "set"
    write_jsonl(folder / "train.jsonl", TEXTS[:30])
    with pytest.raises(ValueError, match=r"could not read .*set tset \(.*tset.*\)"):
        list(hub(folder, split="tset").documents(tmp_path))
    with pytest.raises(ValueError, match=r"train has no field `words`; its fields: id, text"):
        list(hub(folder, field="words").documents(tmp_path))


@pytest.mark.parametrize(
    ("method", "variable"), [("documents", "HF_HUB_OFFLINE=1"), ("identity", "HF_ENDPOINT=http://127.0.0.1:9")]
)
def test_unreachable_hub_fails_in_one_line(tmp_path, variable, method):
    script = f"""
from pathlib import Path
from depthcut.data.hub import Hub
source = Hub(dataset="allenai/c4", config="en", split="train", field="text", revision=None,
             span=[0.0, 1.0], sequences=None, length=16, pack=True)
try:
    list(source.{method}(Path()))
except ValueError as error:
    print(error)
"""
    environment = os.environ | dict([variable.split("=")]) | {"HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("could not read allenai/c4 en train ("), done
    assert done.stdout.count("\n") == 1
    assert "data=demo" in done.stdout


def test_pinned_hub_data_set_has_an_offline_identity(tmp_path):
    pinned = hub("nobody/nothing", revision="0" * 40)
    assert pinned.identity(tmp_path) == hub("nobody/nothing", revision="0" * 40).identity(tmp_path)
    assert pinned.identity(tmp_path) != hub("nobody/nothing", revision="1" * 40).identity(tmp_path)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "conf/data").glob("*/*.yaml")), ids=lambda file: f"{file.parent.name}-{file.stem}"
)
def test_every_source_option_is_in_its_yaml(file):
    keys = yaml.safe_load(file.read_text())
    module, _, name = keys.pop("_target_").rpartition(".")
    source = getattr(importlib.import_module(module), name)
    assert set(keys) == {field.name for field in fields(source)}
    sample = {"length": 16, "paths": ["x"], "dataset": "x"}
    source(
        **{key: sample[key] if isinstance(value, str) and value[0] in "$?" else value for key, value in keys.items()}
    )


@pytest.mark.parametrize("choice", ["demo", "files", "c4", "hub"])
def test_spans_of_a_choice_do_not_overlap(choice):
    spans = [yaml.safe_load((ROOT / f"conf/data/{part}/{choice}.yaml").read_text())["span"] for part in PARTS]
    spans.sort()
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
