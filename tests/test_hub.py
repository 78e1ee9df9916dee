"""Open hub models with the real client against a stand-in on localhost."""

import json
import re
from pathlib import Path

import pytest

from depthcut.model.checkpoint.checkpoint import Checkpoint
from depthcut.model.checkpoint.files import ModelFolder
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.model.pico import byte_tokenizer
from pico import pico
from standins import hub as hub_standin
from standins.hub import COMMIT, UNREACHABLE, Hub

REPO = "someone/pico"
OPEN = """
import sys
from pathlib import Path
from depthcut.model.hub import Hub
from depthcut.cut.plan import Plan
from depthcut.model.checkpoint.tensors import TensorFiles
recipe = {"rank": 2, "lr": 1e-3, "length": 8}
def open(repo="someone/pico", revision=None):
    model = Hub(repo=repo, revision=revision, quantise="none", dtype="float32", separator=None, heal=recipe)
    return model.open(Path(CACHE))
def read():
    tensor_files = TensorFiles(open().files)
    return len(tensor_files.lazy_tensors(tensor_files.weight_map))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save six layers, each in separate shards."""
    folder = tmp_path_factory.mktemp("hub") / "pico"
    pico("llama").save_pretrained(folder, max_shard_size="60KB")
    byte_tokenizer().save_pretrained(folder)
    return folder


class Machine:
    """A machine whose hub cache and depthcut cache are empty at first."""

    def __init__(self, place: Path, url: str) -> None:
        self.place = place
        self.url = url

    def run(self, script: str, url: str | None = None, **environment: str) -> list[str]:
        opening = OPEN.replace("CACHE", repr(str(self.place / "cache")))
        return hub_standin.run(opening + script, self.place / "home", url or self.url, **environment)


def local_digest(folder: Path, tmp_path: Path) -> str:
    return Checkpoint(ModelFolder(folder, HashCache(tmp_path / "hashes.json")), separator=None).digest


def test_hub_digest_equals_local_copy_without_weights(folder: Path, tmp_path: Path) -> None:
    """It needs no torch either."""
    with hub_standin.serve(Hub({REPO: folder})) as hub:
        machine = Machine(tmp_path, hub.url)
        said = machine.run("c = open()\nprint(c.digest, c.depth, 'torch' in sys.modules)")
    assert said == [f"{local_digest(folder, tmp_path)} 6 False"]
    assert not any(name.endswith(".safetensors") for name in hub.fetched())


def test_plan_fetches_only_the_shards_it_keeps(folder: Path, tmp_path: Path) -> None:
    homes = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    dropped = tuple(f"model.layers.{layer}." for layer in (2, 3, 4))
    kept = {home for name, home in homes.items() if not name.startswith(dropped)}
    with hub_standin.serve(Hub({REPO: folder})) as hub:
        machine = Machine(tmp_path, hub.url)
        said = machine.run(
            "model = open().load(Plan(6, (2, 3, 4)), quantise='none', dtype='float32', device='cpu')\n"
            "state = model.state_dict()\n"
            "print(float(state['model.layers.2.mlp.up_proj.weight'].double().sum()))\n"
            "print('model.layers.3.mlp.up_proj.weight' in state)"
        )
    assert {name for name in hub.fetched() if name.endswith(".safetensors")} == kept
    assert len(kept) < len(set(homes.values()))
    last = pico("llama").state_dict()["model.layers.5.mlp.up_proj.weight"]
    assert said == [str(float(last.double().sum())), "False"]


def test_cached_repository_opens_without_a_network(folder: Path, tmp_path: Path) -> None:
    script = "print(open().digest, read())"
    with hub_standin.serve(Hub({REPO: folder})) as hub:
        machine = Machine(tmp_path, hub.url)
        said = machine.run(script)
    assert said[0].startswith(local_digest(folder, tmp_path))
    assert machine.run(script) == said  # the server is gone
    assert machine.run(script, HF_HUB_OFFLINE="1") == said
    (tmp_path / "cache" / "hub").rename(tmp_path / "cache" / "forgotten")  # as after `hf download` on a login node
    assert machine.run(script, HF_HUB_OFFLINE="1") == said


def test_commit_is_resolved_once(folder: Path, tmp_path: Path) -> None:
    with hub_standin.serve(Hub({REPO: folder})) as hub:
        machine = Machine(tmp_path, hub.url)
        first = machine.run(f"print(open(revision='{COMMIT}').digest)")
        asked = len(hub.asked)
        assert machine.run(f"print(open(revision='{COMMIT}').digest)") == first
        assert len(hub.asked) == asked


def test_hub_errors_are_one_line_with_the_fix(folder: Path, tmp_path: Path) -> None:
    hub = Hub({REPO: folder, "someone/gated": folder, "someone/text": tmp_path}, gated=frozenset({"someone/gated"}))
    with hub_standin.serve(hub):
        machine = Machine(tmp_path, hub.url)
        said = [
            machine.run("open('someone/gated')"),
            machine.run("open('someone/absent')"),
            machine.run("open(revision='v9')"),
            machine.run("open('someone/text')"),
            machine.run("open('no repository')"),
        ]
    login = "log in with `hf auth login` (or set HF_TOKEN)"
    assert said == [
        [f"error: someone/gated is gated: accept its licence at {hub.url}/someone/gated and {login}"],
        [f"error: no model someone/absent at {hub.url}: check the name, or, if it is private, {login}"],
        [f"error: someone/pico has no revision 'v9'; see {hub.url}/someone/pico/tree/main"],
        ["error: someone/text has no config.json: it is not a complete transformers model"],
        ["error: 'no repository' is not a repository on the hub; write OWNER/NAME"],
    ]


def test_no_network_fails_in_one_line(folder: Path, tmp_path: Path) -> None:
    machine = Machine(tmp_path, UNREACHABLE)
    (refused,) = machine.run("open()")
    (offline,) = machine.run("open()", HF_HUB_OFFLINE="1")
    assert refused.startswith(f"error: someone/pico is not on this machine and {UNREACHABLE} did not respond (")
    assert offline.endswith("did not respond (HF_HUB_OFFLINE is set); connect, or name a local folder")
    with hub_standin.serve(Hub({REPO: folder})) as hub:
        machine.run("open().digest", url=hub.url)
    (shard,) = machine.run("read()", url=hub.url)
    assert re.match(r"error: model-\d+-of-\d+.safetensors of someone/pico is not on this machine and http", shard)
    assert "hf download someone/pico" in shard


def test_interrupted_download_is_reported_and_repeatable(folder: Path, tmp_path: Path) -> None:
    script = "print(read())"
    with hub_standin.serve(Hub({REPO: folder})) as hub:
        machine = Machine(tmp_path, hub.url)
        machine.run("open().digest")
        hub.broken = 4000
        (cut,) = machine.run(script)
        hub.broken = None
        assert machine.run(script) == ["57"]
    assert re.match(r"error: model-.*received 4000 bytes.*run again", cut)


def test_flipped_bit_in_the_hub_cache_is_detected(folder: Path, tmp_path: Path) -> None:
    script = "print(read())"
    with hub_standin.serve(Hub({REPO: folder})) as hub:
        machine = Machine(tmp_path, hub.url)
        assert machine.run(script) == ["57"]
        blob = next((tmp_path / "home").glob("**/snapshots/*/model-00003*")).resolve()
        flip(blob)
        (seen,) = machine.run(script)
        assert seen.startswith("error: someone/pico: model-00003-of-")
        Path(seen.partition("delete ")[2].partition(" and")[0]).resolve().unlink()
        assert machine.run(script) == ["57"]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-7] ^= 16
    file.chmod(0o644)
    file.write_bytes(content)
