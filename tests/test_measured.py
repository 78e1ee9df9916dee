"""Results of an evaluation with several settings have different names, and no smaller sample replaces a larger one."""

import json
import time
from pathlib import Path

from depthcut.record import measured
from depthcut.record.measured import Measured
from depthcut.report import chance, labels, table, tidy
from running import UNHEALED, run, succeed, text_files


def capitals(limit, acc, shots=None, items=None):
    numbers = {"capitals/acc": acc, "capitals/acc_stderr": 0.1, "capitals/items": items or limit or 197}
    return Measured("harness", {"shots": shots}, {"limit": limit}, numbers)


def test_smaller_sample_is_kept_beside_a_larger_one():
    """In either order."""
    large, small = capitals(100, 0.5), capitals(20, 0.4)
    for found in ({"a": large, "b": small}, {"b": small, "a": large}):
        numbers = measured.named_numbers(found)
        assert (numbers["capitals/acc"], numbers["capitals/items"]) == (0.5, 100)
        assert (numbers["capitals[limit=20]/acc"], numbers["capitals[limit=20]/items"]) == (0.4, 20)
    assert measured.named_numbers({"a": large, "b": capitals(None, 0.6)})["capitals/acc"] == 0.6
    assert measured.describe_kept({"a": large, "b": small}, ["b"]) == [
        "capitals keeps its value on 100 items. capitals[limit=20], on 20 items, is shown too"
    ]
    assert measured.describe_kept({"a": large, "b": small}, ["a"]) == []


def test_last_requested_settings_get_the_plain_name():
    found = {"a": capitals(100, 0.5, "0"), "b": capitals(20, 0.4, "5"), "c": capitals(100, 0.6, "5")}
    numbers = measured.named_numbers(found)
    assert {name: value for name, value in numbers.items() if name.endswith("/acc")} == {
        "capitals/acc": 0.6,
        "capitals[shots=0]/acc": 0.5,
        "capitals[limit=20]/acc": 0.4,
    }


def test_same_settings_on_other_content_replace_old_numbers():
    found = {"a": capitals(100, 0.5, items=90), "b": capitals(100, 0.4, items=80)}
    assert list(measured.current_evaluations(found)) == ["b"]
    assert measured.named_numbers(found)["capitals/acc"] == 0.4


def test_parts_without_common_names_keep_their_names():
    one = Measured("speed", {"batches": [1]}, {}, {"speed/latency_s@1": 1.0})
    eight = Measured("speed", {"batches": [8]}, {}, {"speed/latency_s@8": 2.0})
    assert measured.named_numbers({"a": one, "b": eight}) == {"speed/latency_s@1": 1.0, "speed/latency_s@8": 2.0}


def loss(length, **numbers):
    named = {f"validation/{name}": value for name, value in numbers.items()}
    return Measured("loss", {"length": length}, {"sequences": 8}, {**named, "validation/items": 8})


def test_finite_and_non_finite_losses_keep_separate_names():
    broken, sound = loss(1, loss_finite=0), loss(64, loss=5.9, loss_stderr=0.1)
    assert measured.named_numbers({"a": broken, "b": sound}) == {
        "validation[length=1]/loss_finite": 0,
        "validation[length=1]/items": 8,
        "validation/items": 8,
        "validation/loss": 5.9,
        "validation/loss_stderr": 0.1,
    }
    assert measured.named_numbers({"b": sound, "a": broken}) == {
        "validation/loss_finite": 0,
        "validation/items": 8,
        "validation[length=64]/items": 8,
        "validation[length=64]/loss": 5.9,
        "validation[length=64]/loss_stderr": 0.1,
    }
    mended = loss(1, loss=6.0)
    assert measured.current_evaluations({"a": broken, "b": mended}) == {"b": mended}
    assert measured.named_numbers({"a": broken, "b": mended}) == {"validation/loss": 6.0, "validation/items": 8}


def test_non_finite_flag_is_dropped_with_its_task():
    broken = Measured("harness", {}, {"limit": 8}, {"capitals/likelihood_finite": 0, "capitals/items": 8})
    numbers = measured.named_numbers({"a": broken, "b": capitals(100, 0.5)})
    assert numbers["capitals/acc"] == 0.5 and "capitals/likelihood_finite" not in numbers


def test_thousands_of_evaluations_are_named_in_seconds():
    tasks = {str(n): Measured("harness", {}, {}, {f"t{n}/acc": 0.5, f"t{n}/items": 8}) for n in range(5000)}
    record = {
        "measured": {"pruned": measured.measured_to_dict(tasks | {f"c{n}": capitals(n, 0.5) for n in range(1, 1000)})}
    }
    began = time.process_time()
    assert len(measured.named_numbers(measured.measured_from_record(record, "pruned"))) == 2 * 5000 + 3 * 999
    assert labels.samples(record) == {"harness.limit": "999"}
    assert time.process_time() - began < 5


def test_non_scalar_setting_is_named_by_its_digest():
    texts = [Measured("perplexity", {"paths": [path]}, {}, {"wiki/loss": 1.0}) for path in ("a/b.txt", "c/d.txt")]
    (name,) = [name for name in measured.named_numbers({"a": texts[0], "b": texts[1]}) if "[" in name]
    assert len(name) == len("wiki[paths=12345678]/loss") and name.count("/") == 1
    assert chance.chance_level("capitals[limit=20]/acc") == 0.25


def acc(record):
    return {name: value for name, value in record.items() if name.startswith("pruned/") and name.endswith("/acc")}


def test_smaller_sample_changes_no_number_of_finished_point(tmp_path):
    corpus = text_files(tmp_path)
    base = (f"outputs={tmp_path}/outputs", *UNHEALED, *corpus, "heal=none", "stages=[pruned]", "eval=[harness]")
    whole = succeed(*base, "eval.tasks=[capitals,topics]", "eval.limit=8")
    assert whole["pruned/capitals/items"] == whole["pruned/topics/items"] == 8 and whole["status"] == "done"
    done = run(*base, "eval.tasks=[capitals]", "eval.limit=4")
    assert done.returncode == 0, done.stderr
    assert "capitals keeps its value on 8 items. capitals[limit=4], on 4 items" in done.stdout
    assert "capitals/acc (8 items)" in done.stdout
    record = json.loads((whole["folder"] / "record.json").read_text())
    assert acc(record) == {**acc(whole), "pruned/capitals[limit=4]/acc": record["pruned/capitals[limit=4]/acc"]}
    assert record["pruned/capitals[limit=4]/items"] == 4
    card = (whole["folder"] / "model/README.md").read_text()
    assert "capitals/acc (8 items)" in card and "topics/acc (8 items)" in card
    assert "already done" in run(*base, "eval.tasks=[capitals,topics]", "eval.limit=8").stderr
    assert labels.samples(record) == {"harness.limit": "8"}
    rows = tidy.tidy_table([record])
    assert set(rows.loc[rows["name"] == "topics/acc", "items"]) == {8}
    assert not any(table.is_note(name) for name in rows["name"])


def test_sweep_over_evaluation_option_keeps_all_numbers(tmp_path):
    corpus = text_files(tmp_path)
    wiki = f"eval.perplexity.texts.wikitext2={{paths:[{tmp_path}/corpus.jsonl],field:text}}"
    texts = (wiki, "+eval.perplexity.texts.wikitext2.span=[0.95,1.0]", "eval.perplexity.texts.ptb=null")
    study = (
        *("-m", f"outputs={tmp_path}/outputs", "model=pico", "data=files", *corpus, "heal=none", "export=none"),
        *("eval=[loss,perplexity]", *texts, "eval.perplexity.bos=all,first", "data.validation.length=64,128"),
        *("prune=deepest", "eval.perplexity.windows=8", "eval.perplexity.window=32"),
    )
    done = run(*study)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 points done" in done.stderr + done.stdout
    (path,) = Path(tmp_path).glob("outputs/main/*/record.json")
    record = json.loads(path.read_text())
    losses = {name for name in record if name.startswith("pruned/") and name.endswith("/loss")}
    assert losses == {
        *("pruned/wikitext2/loss", "pruned/wikitext2[bos=all]/loss"),
        *("pruned/validation/loss", "pruned/validation[length=128]/loss"),
    }
    assert record["config"]["eval"]["perplexity"]["bos"] == "first"  # the plain names are those of the config
    assert record["config"]["data"]["validation"]["length"] == 64
    again = run(*study)
    assert again.returncode == 0 and "4 of 4 points already done" in again.stderr, again.stderr
    assert json.loads(path.read_text()) == record


def test_finite_remeasurement_of_diverged_point_is_done(tmp_path):
    corpus = text_files(tmp_path)
    base = (f"outputs={tmp_path}/outputs", *UNHEALED, *corpus, "heal=none", "export=none", "stages=[pruned]")
    path = succeed(*base, "data.validation.length=32")["folder"] / "record.json"
    broken = json.loads(path.read_text())
    for name in ("loss", "loss_stderr", "loss_over_log_v", "perplexity"):
        del broken[f"pruned/validation/{name}"]
    broken |= {"pruned/validation/loss_finite": 0, "status": "diverged"}
    (found,) = broken["measured"]["pruned"].values()
    counts = {name: found["numbers"][name] for name in ("validation/items", "validation/tokens")}
    found["numbers"] = {"validation/loss_finite": 0, **counts}
    path.write_text(json.dumps(broken))
    sound = succeed(*base, "data.validation.length=64")
    assert sound["status"] == "done" and sound["pruned/validation[length=32]/loss_finite"] == 0
    assert "pruned/validation/loss_finite" not in sound
    assert table.format_cell(sound, "pruned/validation/loss").startswith(f"{sound['pruned/validation/loss']:.3f}")


def test_records_of_earlier_versions_are_readable():
    numbers = {"pruned/capitals/acc": 0.5, "pruned/capitals/acc_stderr": 0.1}
    assert measured.measured_from_record(numbers, "pruned") == {}
    assert table.titled(numbers, "capitals/acc") == "capitals/acc"
    assert labels.samples(numbers) == {}
