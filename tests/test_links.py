"""Readable names of points: symbolic links, and digest prefixes."""

from pathlib import Path

import pytest

from composing import composed
from depthcut.config import build
from depthcut.record import links as record_links
from depthcut.report import study as studies
from depthcut.study import links


def point(study: Path, digest: str) -> Path:
    folder = study / digest
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("words", "label"),
    [
        (("prune=deepest", "prune.frac=0.25"), "deepest-0.25-lora"),
        (("prune.frac=0.5", "heal=none", "replace=mean"), "angular-block-0.5-mean-unhealed"),
        (("prune=lowest", "prune.layers=8"), "angular-lowest-layers8-lora"),
        (("prune=plan", "prune.drop=[3,11-18]"), "plan-drop_3_11-18-lora"),
    ],
)
def test_link_name_describes_the_point(words: tuple[str, ...], label: str) -> None:
    assert links.point_label(build.build_experiment(composed("model=pico", *words))) == label


def test_points_with_equal_names_both_get_links(tmp_path: Path) -> None:
    x = build.build_experiment(composed("model=pico", "prune=deepest", "prune.frac=0.25"))
    study = tmp_path / "main"
    one, two = point(study, "0123456789abcdef"), point(study, "0123456fedcba987")
    for each in (one, two, one, two):
        links.link_point(each, x)
    found = {link.name: link.readlink() for link in (study / links.FOLDER).iterdir()}
    assert found == {
        "deepest-0.25-lora": Path("../0123456789abcdef"),
        "deepest-0.25-lora-0123456f": Path("../0123456fedcba987"),
    }
    assert len(list(study.glob("*/config.yaml"))) == 2
    assert studies.read_studies([study]).words == "2 points: 0 done, 0 failed, 0 running, 2 left"
    (one / "config.yaml").unlink()
    one.rmdir()
    links.link_point(two, x)
    assert (study / links.FOLDER / "deepest-0.25-lora").resolve() == two


def test_point_is_found_by_its_digest_prefix(tmp_path: Path) -> None:
    study = tmp_path / "main"
    one, two = point(study, "0123456789abcdef"), point(study, "0123456fedcba987")
    point(tmp_path / "other", "0123456789abcdef")
    far = point(tmp_path / "other", "aaaa456789abcdef")
    assert record_links.find_points("01234567", study) == [one]
    assert set(record_links.find_points("0123456", study)) == {one, two}
    assert record_links.find_points("aaaa", study) == [far]
    assert (
        record_links.find_points("012", study)
        == []
        == record_links.find_points("bbbb", study)
        == record_links.find_points("../x", study)
    )
    assert record_links.find_points(str(one / "adapter"), study) == [one]
