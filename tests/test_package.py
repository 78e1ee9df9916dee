"""The built package works outside the checkout: its command, configs, report and page."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from composing import ROOT
from running import text_files

pytestmark = pytest.mark.slow
POINT = ("model=pico", "data=files", "eval=[loss]", "heal=lora", "heal.steps=2", "heal.warmup=0", "heal.batch=2")

CLEAN = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
"""The environment without a checkout's modules."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the source distribution, and the wheel from its content."""
    folder = tmp_path_factory.mktemp("build")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target", folder / "tool", "hatchling>=1.27"]
    if subprocess.run(pip, check=False).returncode:
        pytest.skip("hatchling cannot be downloaded")
    build = [sys.executable, "-m", "hatchling", "build", "-d", folder / "dist"]
    subprocess.run(build, check=True, cwd=ROOT, env={"PYTHONPATH": str(folder / "tool"), "PATH": "/usr/bin:/bin"})
    assert len([*folder.glob("dist/depthcut-*.tar.gz")]) == 1
    (built,) = folder.glob("dist/depthcut-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Install the wheel inside another project's repository, next to this environment's dependencies.

    Returns:
        The folder of the commands.
    """
    folder = tmp_path_factory.mktemp("project")
    git = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, env=CLEAN)
    (own,) = (folder / "venv").glob("lib/python*/site-packages")
    (own / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # not its editable installs
    return python.parent


def call(*words, folder: Path) -> str:
    """Run a command outside the checkout; return its output."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, cwd=folder, env=CLEAN, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_wheel_holds_configs_and_page(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"depthcut/conf/{path.relative_to(ROOT / 'conf')}" in names
    for path in (ROOT / "src" / "depthcut" / "report" / "static").iterdir():
        assert f"depthcut/report/static/{path.name}" in names
    assert not [name for name in names if name.startswith(("tests/", "bench/", "conf/"))]


def test_command_runs_a_point_and_reports_outside_the_checkout(installed, tmp_path):
    depthcut = installed / "depthcut"
    text = call(depthcut, "--help", "metric", folder=tmp_path)
    assert "metric=angular: Angular distance" in text
    code = "import depthcut, depthcut.config.values as v; print(depthcut.__file__, v.CONF)"
    assert str(ROOT) not in call(installed / "python", "-c", code, folder=tmp_path)
    said = call(depthcut, *POINT, *text_files(tmp_path), folder=tmp_path)
    assert "record: " in said
    (path,) = tmp_path.glob("outputs/main/*/record.json")
    record = json.loads(path.read_text())
    assert {"dense/validation/loss", "healed/validation/loss"} <= record.keys()
    assert record["commit"] is None  # not that of the repository that the package is installed in
    assert "1 finished, 0 unfinished" in call(depthcut, "report", "outputs/main", folder=tmp_path)
    call(installed / "python", "-m", "depthcut", "report", "outputs/main", "-o", "page.html", folder=tmp_path)
    assert "<html" in (tmp_path / "page.html").read_text()
