"""Only a whole checkpoint of the same training, written under the same code, is resumed."""

import pytest
import torch

from depthcut.runtime import resume
from depthcut.runtime.errors import UserError


def saved(path, **changes):
    torch.save({"step": 3, "weights": torch.ones(1000), resume.KEY: resume.checkpoint_identity("mine") | changes}, path)
    return path


def test_same_training_is_resumed(tmp_path):
    path = tmp_path / "last.ckpt"
    assert not resume.is_resumable(path, "mine")
    assert resume.is_resumable(saved(path), "mine") and path.exists()


def middle(content: bytes) -> bytes:
    at = content.index(torch.ones(9).numpy().tobytes())
    return content[:at] + b"\1" + content[at + 1 :]


DAMAGE = {
    "empty": lambda _: b"",
    "cut": lambda content: content[:-100],
    "a bit in a weight": middle,
    "garbage": lambda content: b"\0" * len(content),
    "a pickle": lambda _: b"cos\nsystem\n(S'false'\ntR.",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoint_is_named_and_restarted(tmp_path, damage, caplog):
    path = saved(tmp_path / "last.ckpt")
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert not resume.is_resumable(path, "mine") and not path.exists()
    (said,) = caplog.messages
    assert said.startswith(f"{path} cannot be used (") and said.endswith("): restarting the training")


def test_another_points_checkpoint_is_not_resumed(tmp_path, caplog):
    assert not resume.is_resumable(saved(tmp_path / "last.ckpt", digest="other"), "mine")
    assert "it belongs to other" in caplog.text
    torch.save({"step": 3}, tmp_path / "last.ckpt")
    assert not resume.is_resumable(tmp_path / "last.ckpt", "mine")
    assert "it does not name its point" in caplog.text


def test_checkpoint_of_other_code_is_refused_and_kept(tmp_path):
    path = saved(tmp_path / "last.ckpt", code="0" * 16)
    with pytest.raises(
        UserError, match=r"last.ckpt was written with another version of depthcut's code\. Restore that to resume"
    ):
        resume.is_resumable(path, "mine")
    saved(path, versions={**resume.checkpoint_identity("")["versions"], "torch": "1.0"})
    with pytest.raises(UserError, match=rf"was written with torch 1\.0 \(now {torch.__version__.partition('+')[0]}"):
        resume.is_resumable(path, "mine")
    assert path.exists()
