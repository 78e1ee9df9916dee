"""``heal.control``: the dense model with the same healing, and the text of its findings."""

import json
from pathlib import Path

import pytest

from composing import composed
from depthcut.config import build
from depthcut.report import table
from depthcut.runtime.errors import UserError
from running import PICO, run, text_files


def test_control_is_a_shared_point(tmp_path: Path) -> None:
    """The control has a record of its own, and every point with the same recipe reuses it."""
    corpus = text_files(tmp_path)
    words = (f"outputs={tmp_path}/o", *PICO, *corpus, "eval=[loss,documentation]", "prune=deepest", "export=none")
    first = run(*words, "stages=[pruned,healed]")
    assert first.returncode == 0, first.stderr
    (path,) = (tmp_path / "o").glob("main/*/record.json")
    done = run(*words, "stages=[pruned,healed]", "heal.control=true")
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text())
    others = [each for each in (tmp_path / "o").glob("main/*/record.json") if each != path]
    control = json.loads(others[0].read_text())
    assert len(others) == 1 and control["plan"]["drop"] == []
    for name in ("validation/loss", "documentation/loss"):
        assert record[f"control/{name}"] == control[f"healed/{name}"]
    assert "the dense model with the same healing: " in done.stdout and "control" in done.stdout
    alone = run(*words, "prune=plan", "prune.drop=[]", "stages=[healed]")
    assert "already done" in alone.stderr
    again = run(*words, "stages=[pruned,healed]", "heal.control=true")
    assert "already done" in again.stderr


@pytest.mark.parametrize(
    "words",
    [("heal.layers=after_cut",), ("heal.init_from=x",), ("heal=boundary",), ("heal=loraprune",)],
)
def test_control_needs_a_cut_and_a_healing_recipe(words: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"^heal\.control=true heals the uncut model, which is incompatible with heal"):
        build.build_experiment(composed("model=pico", *words, "heal.control=true"))


DEMO = {"_target_": "depthcut.data.demo.Demo"}


@pytest.mark.parametrize(
    ("losses", "validation", "says"),
    [
        (
            (3.0, 6.0, 3.75),
            DEMO,
            "of the loss gap: 6.000 to 3.750 (in-domain text)",
        ),
        ((3.0, 6.0, 3.75), {"_target_": "x"}, "healing closed 75% of the loss gap: 6.000 to 3.750"),
        ((3.0, 6.0, 2.5), DEMO, "6.000 to 2.500, below the dense model's 3.000 (in-domain text)"),
        ((3.0, 6.0, 6.5), DEMO, "healing raised the loss: 6.000 to 6.500 (in-domain text)"),
    ],
)
def test_control_text_claims_no_share_above_100_percent(losses: tuple[float, ...], validation: dict, says: str) -> None:
    record = {f"{stage}/validation/loss": loss for stage, loss in zip(table.CUT_STAGES, losses, strict=True)}
    (said,) = table.healing_findings({**record, "config": {"data": {"train": DEMO, "validation": validation}}})
    assert said.endswith(says)
