"""Compare tensors, and the records of two studies."""

import json
from pathlib import Path

import pytest
import torch


def assert_near(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


def stable_records(outputs: Path) -> dict[str, dict]:
    """Read the records by digest, without the keys that differ from run to run."""
    found = {path.parent.name: json.loads(path.read_text()) for path in outputs.glob("main/*/record.json")}
    aside = ("seconds/", "bytes/", "finished", "config")
    return {
        digest: {key: value for key, value in record.items() if not key.startswith(aside)}
        for digest, record in found.items()
    }


def assert_same_records(one: dict[str, dict], other: dict[str, dict]) -> None:
    assert one.keys() == other.keys()
    for digest, record in one.items():
        assert record.keys() == other[digest].keys()
        for key, value in record.items():
            assert other[digest][key] == (pytest.approx(value, abs=1e-5) if isinstance(value, float) else value), key
