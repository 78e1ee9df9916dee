import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from depthcut import store


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if "tmp" in path.name]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    store.write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        store.write_json(path, {"x": float("nan")})
    with pytest.raises(RuntimeError), store.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == '{\n  "x": 1\n}\n'
    assert leftovers(tmp_path) == []


def test_digest_is_by_content():
    assert store.digest({"a": 1, "b": [1.5, None]}) == store.digest({"b": [1.5, None], "a": 1})
    assert store.digest({"a": 1}) != store.digest({"a": 1.5})
    assert len(store.digest("x")) == 16


def test_kept_is_made_once_and_again_if_it_is_damaged(tmp_path):
    calls = []

    def make(folder: Path) -> None:
        calls.append(1)
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("whole")

    entry = tmp_path / "entry"
    store.kept(entry, make)
    store.kept(entry, make)
    assert len(calls) == 1
    (entry / "sub" / "x").write_text("WHOLE!")
    store.kept(entry, make)
    assert len(calls) == 2
    assert (entry / "sub" / "x").read_text() == "whole"
    (entry / store.MANIFEST).unlink()
    store.kept(entry, make)
    assert len(calls) == 3


def test_a_maker_that_fails_leaves_nothing(tmp_path):
    def make(folder: Path) -> None:
        (folder / "x").write_text("half")
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="fire"):
        store.kept(tmp_path / "entry", make)
    assert not (tmp_path / "entry").exists()
    assert leftovers(tmp_path) == []


def slow(folder: Path) -> None:
    (folder / "x").write_text("half")
    time.sleep(30)


def count(folder: Path) -> None:
    with (folder.parent / "calls").open("a") as file:
        file.write("x")
    time.sleep(0.2)
    (folder / "x").write_text("whole")


def test_a_killed_maker_is_replaced(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=store.kept, args=(tmp_path / "entry", slow))
    process.start()
    while not list(tmp_path.glob(".entry.tmp/x")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    store.kept(tmp_path / "entry", count)
    assert (tmp_path / "entry" / "x").read_text() == "whole"
    assert leftovers(tmp_path) == []


def test_of_many_processes_one_makes_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    crowd = [context.Process(target=store.kept, args=(tmp_path / "entry", count)) for _ in range(6)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join()
    assert [process.exitcode for process in crowd] == [0] * 6
    assert (tmp_path / "calls").read_text() == "x"
