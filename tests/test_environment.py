"""The set-up: constraints.txt fits pyproject.toml, and each failure is one line."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from running import ROOT

SCRIPT = ROOT / "tools" / "environment.py"


@pytest.fixture(scope="module")
def environment():
    spec = importlib.util.spec_from_file_location("environment", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(each) for each in [*project["dependencies"], *project["optional-dependencies"]["dev"]]]


def test_constraints_are_names_and_versions_only():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert len(pinned) > 100
    assert [line for line in pinned if not re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*", line)] == []


def test_constraints_satisfy_the_bounds_of_pyproject(environment):
    pinned = environment.versions(environment.CONSTRAINTS)
    outside = [str(each) for each in requirements() if not each.specifier.contains(pinned[each.name.lower()])]
    assert outside == []


def test_oldest_versions_are_the_lower_bounds(environment, tmp_path):
    oldest = environment.versions(environment.oldest(tmp_path))
    bounds = [(each.name, re.findall(r">=([0-9.]+)", str(each.specifier))) for each in requirements()]
    assert oldest == {name: found[0] for name, found in bounds if found}


def set_up(folder, **variables):
    call = [sys.executable, str(SCRIPT), str(folder)]
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    environment = plain | {"PIP_CONFIG_FILE": os.devnull} | variables
    return subprocess.run(call, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_setup_without_an_index_fails_in_one_line(tmp_path):
    """The line says how to continue."""
    done = set_up(tmp_path / "venv", PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="1")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("error: no package index can be reached; then run the same command again")
    assert "packages, 2 to 10 minutes" in done.stdout


def test_setup_refuses_a_full_disk_before_downloading(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "small", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs to mount a small disk")
    try:
        done = set_up(folder / "venv")
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert done.returncode == 2
    assert re.fullmatch(r"error: \S+ needs about 3.5 GB of disk, 0.\d GB free\n", done.stderr)
    assert done.stdout == ""


def test_disk_that_fills_during_pip_is_reported(environment, tmp_path):
    log = tmp_path / "setup.log"
    log.write_text(
        "Collecting torch\nERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
    )
    assert environment.reason(log).startswith("the disk is full: free about 4 GB")


def test_conflicting_versions_are_named(environment, tmp_path):
    log = tmp_path / "setup.log"
    conflict = "    The user requested peft==0.1\n    depthcut 0.1.0 depends on peft>=0.21\n"
    log.write_text(f"ERROR: Cannot install\n\nThe conflict is caused by:\n{conflict}\nTo fix this\n")
    assert "peft==0.1" in environment.reason(log)
    assert "depends on peft>=0.21" in environment.reason(log)
