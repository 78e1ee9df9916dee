import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from depthcut.runtime import store, verified
from depthcut.runtime.errors import UserError


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if "tmp" in path.name]


def test_failed_write_leaves_only_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    store.write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        store.write_json(path, {"x": float("nan")})
    with pytest.raises(RuntimeError), store.atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == '{\n  "x": 1\n}\n'
    assert leftovers(tmp_path) == []


def test_digest_is_by_content():
    assert store.content_digest({"a": 1, "b": [1.5, None]}) == store.content_digest({"b": [1.5, None], "a": 1})
    assert store.content_digest({"a": 1}) != store.content_digest({"a": 1.5})
    assert len(store.content_digest("x")) == 16


def test_cached_entry_is_rebuilt_only_if_damaged(tmp_path):
    calls = []

    def make(folder: Path) -> None:
        calls.append(1)
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("whole")

    entry = tmp_path / "entry"
    verified.cached_folder(entry, make)
    verified.cached_folder(entry, make)
    assert len(calls) == 1
    (entry / "sub" / "x").write_text("WHOLE!")
    verified.cached_folder(entry, make)
    assert len(calls) == 2
    assert (entry / "sub" / "x").read_text() == "whole"
    (entry / store.MANIFEST).unlink()
    verified.cached_folder(entry, make)
    assert len(calls) == 3


def test_failing_builder_leaves_nothing(tmp_path):
    def make(folder: Path) -> None:
        (folder / "x").write_text("half")
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="fire"):
        verified.cached_folder(tmp_path / "entry", make)
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


def test_killed_builder_is_replaced(tmp_path):
    process = multiprocessing.get_context("spawn").Process(
        target=verified.cached_folder, args=(tmp_path / "entry", slow)
    )
    process.start()
    while not list(tmp_path.glob(".entry.tmp/x")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    verified.cached_folder(tmp_path / "entry", count)
    assert (tmp_path / "entry" / "x").read_text() == "whole"
    assert leftovers(tmp_path) == []


def test_one_of_many_processes_builds(tmp_path):
    context = multiprocessing.get_context("spawn")
    crowd = [context.Process(target=verified.cached_folder, args=(tmp_path / "entry", count)) for _ in range(6)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join()
    assert [process.exitcode for process in crowd] == [0] * 6
    assert (tmp_path / "calls").read_text() == "x"


def entry(folder: Path, content: str = "whole") -> Path:
    return verified.cached_folder(folder, lambda new: store.write_text(new / "x", content))


def test_entry_names_its_owner(tmp_path, caplog):
    one, other = entry(tmp_path / "one", "1"), entry(tmp_path / "other", "2")
    one.rename(tmp_path / "aside")
    other.rename(tmp_path / "one")
    assert verified.entry_fault(tmp_path / "one") == verified.size_fault(tmp_path / "one") == "belongs to other"
    assert (entry(tmp_path / "one", "1") / "x").read_text() == "1"
    assert f"{tmp_path / 'one'} belongs to other: rebuilding it" in caplog.messages
    assert verified.is_verified(tmp_path / "aside", "one") and not verified.is_verified(tmp_path / "aside", "two")


def test_older_manifests_count_by_content(tmp_path):
    path = entry(tmp_path / "one") / store.MANIFEST
    store.write_json(path, {name: value for name, value in json.loads(path.read_text()).items() if name})
    assert verified.is_verified(path.parent) and verified.size_fault(path.parent) is None
    (path.parent / "x").write_text("other")
    assert verified.entry_fault(path.parent) == "is damaged (x)"


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[]",
        "{}",
        '{"x": 1}',
        '{"": [], "x": "1"}',
        '{"": {"key": 1, "bytes": {}}, "x": "1"}',
        "folder",
        "link",
        "fifo",
    ],
)
def test_damaged_manifest_is_no_error(tmp_path, damage):
    path = entry(tmp_path / "one") / store.MANIFEST
    path.unlink()
    match damage:
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to("/dev/zero")
        case "fifo":
            os.mkfifo(path)
        case _:
            path.write_text(damage)
    assert verified.entry_fault(path.parent) and verified.size_fault(path.parent)
    assert (entry(tmp_path / "one") / "x").read_text() == "whole"


def test_obstacles_at_an_entrys_path_are_replaced(tmp_path):
    there = entry(tmp_path / "there")
    (tmp_path / "file").write_text("")
    for name in ("link", ".free.tmp"):
        (tmp_path / name).symlink_to(there)
    for name in ("file", "link", "free"):
        assert (entry(tmp_path / name) / "x").read_text() == "whole"
    assert verified.is_verified(there) and not (tmp_path / "link").is_symlink()
    (tmp_path / ".locked.lock").mkdir()
    with pytest.raises(UserError, match=r"locked.lock must be a lock file, but it is a folder: delete it"):
        entry(tmp_path / "locked")
