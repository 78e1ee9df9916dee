"""FlexiGPT's extension: repeated layers share weights and have separate adapters and norms."""

from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

import depthcut
from adapting import train_briefly
from comparing import assert_near
from composing import composed
from depthcut import algorithm
from depthcut.config import build
from depthcut.cut.plan import Plan
from depthcut.heal.training import adapter_modules
from depthcut.model.checkpoint import exported
from depthcut.model.decoder import layers as decoder_layers
from depthcut.model.surgery import gaps, shared
from depthcut.replace.extend import Extend
from depthcut.study import digests, recording
from depthcut.study.run import open_run
from gaps import DEPTH, model_of, opened
from pico import CACHE, logits, texts, written
from recipes import RECIPE
from running import PICO, kill_in_healing, succeed, text_files

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "phi", "opt", "gpt_neox")
ORDERS = ("block", "sequence", "block", "sequence", "block", "sequence", "sequence")
WHOLE = Plan(DEPTH, ())
UNCUT = ("prune=deepest", "prune.layers=0")
KNOBS: dict[str, Any] = {"start": 1, "stop": 4, "times": 2, "order": "block", "rank": 4, "gain": 0.01}
EXPERIMENT = ("experiment=flexigpt_extend", "eval=[loss]")


def extend(**knobs: Any) -> Extend:
    return Extend(**KNOBS | knobs)


def extended(folder, model, *knobs: str, **more: Any):
    """Return a run and its extended model: layers 1 to 3 of 6 twice."""
    words = [f"replace.{key}={value}" for key, value in ({"start": 1, "stop": 4, "rank": 4} | more).items()]
    here = opened(folder, model, "replace=extend", "heal=none", *UNCUT, *words, *knobs)
    return here, here.experiment.replace(here.dense.load(WHOLE), WHOLE, here)


def repeated(model, stack: list[int]):
    """Build a plain model whose layers are copies of these."""
    fields = model.config.to_dict() | {"num_hidden_layers": len(stack)}
    if fields.get("layer_types"):
        fields["layer_types"] = [fields["layer_types"][number] for number in stack]
    plain = AutoModelForCausalLM.from_config(type(model.config)(**fields), dtype=torch.float32).eval()
    stem, weights = decoder_layers.layer_prefix(model), model.state_dict()
    copies = {name: each for name, each in weights.items() if not name.startswith(f"{stem}.")}
    for at, number in enumerate(stack):
        here = f"{stem}.{number}."
        copies |= {name.replace(here, f"{stem}.{at}."): each for name, each in weights.items() if name.startswith(here)}
    plain.load_state_dict(copies)
    return plain


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tmp_path_factory.mktemp("llama"), model_of("llama")


@pytest.mark.parametrize(
    ("knobs", "stack"),
    [
        ({}, [0, 1, 1, 2, 2, 3, 3, 4, 5]),
        ({"order": "sequence"}, [0, 1, 2, 3, 1, 2, 3, 4, 5]),
        ({"times": 3, "stop": -4}, [0, 1, 1, 1, 2, 3, 4, 5]),
        ({"times": 3, "stop": 3, "order": "sequence"}, [0, 1, 2, 1, 2, 1, 2, 3, 4, 5]),
        ({"start": 0, "stop": 6, "order": "sequence"}, [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]),
    ],
)
def test_blocks_repeat_in_place_and_sequences_whole(knobs, stack):
    assert extend(**knobs).stack(6) == stack


def test_tinyllama_gets_the_papers_depth():
    assert len(extend(start=4, stop=-4).stack(22)) == 36
    assert extend(start=3, stop=-3).stack(22)[3:35] == [number for number in range(3, 19) for _ in range(2)]


@pytest.mark.parametrize(("family", "order"), [*zip(FAMILIES, ORDERS, strict=True)])
def test_zero_gain_equals_the_base_bit_for_bit(family, order, tmp_path):
    model = model_of(family)
    _, long = extended(tmp_path, model, gain=0, order=order)
    assert long.config.num_hidden_layers == len(decoder_layers.layer_list(long)) == 9
    assert torch.equal(logits(long), logits(model))
    assert torch.equal(written(long, use_cache=True), written(model, use_cache=True))


@pytest.mark.parametrize(("family", "order"), [*zip(FAMILIES, ORDERS[::-1], strict=True)])
def test_without_gain_it_equals_copied_layers(family, order, tmp_path):
    """Adapters begin at zero; layer types, windows and biases are copied with the layers."""
    model = model_of(family)
    here, long = extended(tmp_path, model, gain="null", order=order)
    plain = repeated(model, here.experiment.replace.stack(DEPTH))
    assert_near(logits(long), logits(plain))
    assert (logits(long) - logits(model)).abs().max() > 0.1
    assert torch.equal(written(long, use_cache=True), written(plain, use_cache=False))


def test_small_gain_starts_near_the_base(llama):
    _, long = extended(*llama, gain=1e-6)
    assert_near(logits(long), logits(llama[1]))
    norms = [part for part in long.modules() if isinstance(part, shared.OutputNorm)]
    assert len(norms) == 2 * 3 and all((part.gain == 1e-6).all() for part in norms)


def randomised(long: nn.Module) -> nn.Module:
    """Randomise adapters and gains, as training would."""
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, each in long.named_parameters():
            if "own_delta.left" in name or "own_norm" in name:
                each.add_(0.2 * torch.randn(each.shape, generator=chance))
    return long


@pytest.mark.parametrize(("order", "family"), [("block", "llama"), ("sequence", "qwen2"), ("sequence", "gpt_neox")])
def test_cached_generation_and_reloading_agree(order, family, tmp_path):
    model = model_of(family)
    here, long = extended(tmp_path, model, gain=0.5, order=order)
    wanted = logits(randomised(long))
    assert (wanted - logits(model)).abs().max() > 0.1
    assert torch.equal(written(long, use_cache=True), written(long, use_cache=False))
    with torch.no_grad():
        cache, steps = None, []
        for token in texts().T:
            out = long(token[:, None], **{CACHE: cache}, use_cache=True)
            cache, steps = out[CACHE], [*steps, out.logits]
    assert_near(torch.cat(steps, 1), wanted)
    assert len(cache.layers) == 9
    exported.write_exported(long, WHOLE, tmp_path / "out")
    assert torch.equal(logits(long), wanted), "it is left as it was"
    again = depthcut.load(tmp_path / "out", dtype="float32")
    assert torch.equal(logits(again), wanted)
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in long.parameters())
    gaps.remove_filling(long)
    assert torch.equal(logits(long), logits(model))
    assert {**long.config.to_dict(), "_name_or_path": ""} == {
        **here.dense.load(WHOLE).config.to_dict(),
        "_name_or_path": "",
    }


def test_repeated_layer_adds_only_adapters_and_gains(llama):
    """7 linear layers of 64 -> 64, 64 -> 32 twice, 64 -> 64, 64 -> 128 twice, 128 -> 64 at rank 4; two gains of 64."""
    _, long = extended(*llama, gain=0.01)
    pairs = 2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128)
    more = sum(p.numel() for p in long.parameters()) - sum(p.numel() for p in llama[1].parameters())
    assert more == 3 * (4 * pairs + 2 * 64)
    layers = decoder_layers.layer_list(long)
    mine = {name for name, each in layers[2].named_parameters() if each.data_ptr() not in pointers(layers[1])}
    assert mine == {name for name, _ in layers[2].named_parameters() if ".own_" in name}
    assert all("norm" in name for name in {name for name, _ in layers[2].named_parameters()} - mine)


def pointers(module: nn.Module) -> set[int]:
    return {each.data_ptr() for each in module.parameters()}


def test_adapters_begin_as_an_svd_of_zero(llama):
    _, long = extended(*llama)
    fill = shared.extract_shared_layers(long)
    assert set(fill.by_layer()) == {2, 4, 6} and fill.options["bases"] == {"2": 1, "4": 3, "6": 5}
    lefts = [t for name, t in fill.tensors.items() if name.endswith("left")]
    rights = [t for name, t in fill.tensors.items() if name.endswith("right")]
    assert len(lefts) == len(rights) == 21 and not any(left.any() for left in lefts)
    for right in rights:
        torch.testing.assert_close(right @ right.T, torch.eye(4))
    assert not torch.equal(rights[0], rights[7]), "repeats begin apart"
    _, again = extended(*llama)
    assert all(torch.equal(t, shared.extract_shared_layers(again).tensors[name]) for name, t in fill.tensors.items())


@pytest.mark.parametrize("gain", [0, 0.01])
def test_all_adapters_and_norms_train_nothing_else(llama, gain):
    _, long = extended(*llama, gain=gain)
    torch.manual_seed(0)
    healed = adapter_modules.add_adapters(long, RECIPE, WHOLE)
    assert isinstance(healed, PeftModel)
    trained = {name: p for name, p in healed.named_parameters() if p.requires_grad}
    own = {name for name in trained if ".own_delta." in name or ".own_norm." in name}
    assert len(own) == 3 * (7 * 2 + 2)
    assert len(trained) - len(own) == 6 * 7 * 2, "the layers that were there have LoRA, repeats have not"
    assert all("lora_" in name for name in trained.keys() - own)
    before = {name: p.detach().clone() for name, p in healed.named_parameters()}
    train_briefly(healed)
    moved = {name for name, p in healed.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trained.keys()


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        (["prune.layers=2"], "replace=extend adds layers to the whole model, but 2 are cut; use prune.layers=0"),
        (["prune.layers=0", "replace.start=4"], "replace.start=4 replace.stop=-3 is not a span of layers 0-5"),
        (["prune.layers=0", "replace.stop=7"], "replace.start=3 replace.stop=7 is not a span of layers 0-5"),
    ],
)
def test_invalid_extension_is_refused_before_reading_weights(knobs, words, llama):
    with pytest.raises(ValueError, match=words):
        assert opened(*llama, "replace=extend", "prune=deepest", *knobs).digest


@pytest.mark.parametrize(
    ("family", "knobs", "words"),
    [
        ("gemma2", {}, "normalises its sublayers' outputs before adding them; use replace.gain=null"),
        ("qwen3_moe", {"gain": "null"}, r"Qwen3MoeDecoderLayer has mlp\.\S+; use another replacement"),
    ],
)
def test_models_that_cannot_share_layers_are_refused(family, knobs, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        extended(tmp_path, model_of(family), **knobs)


def test_digest_covers_layer_order_not_its_spelling(llama):
    def digest(*knobs: str) -> str:
        return digests.pruned_digest(opened(*llama, *UNCUT, *knobs), WHOLE)

    spans = [digest("replace=extend", "replace.start=1", f"replace.stop={stop}") for stop in (4, -2, 5)]
    assert spans[0] == spans[1] != spans[2]
    assert digest("replace=none") == digests.base_digest(opened(*llama)) not in spans


SMALL = (*PICO, *EXPERIMENT, "data=files", "replace.order=sequence", "data.validation.sequences=8")


@pytest.mark.filterwarnings("ignore")  # Lightning warns of workers, of its own dependencies
def test_experiment_exports_and_counts_repeated_layers(tmp_path):
    x = build.build_experiment(composed(f"outputs={tmp_path}/outputs", *SMALL, *text_files(tmp_path)))
    run = open_run(x)
    algorithm.run_experiment(x, run)
    kept = recording.write_record(run)
    loss = [kept[f"{stage}/validation/loss"] for stage in ("dense", "pruned", "healed")]
    assert loss[0] == pytest.approx(loss[1], abs=0.05) and loss[2] < loss[1] - 0.1
    model = depthcut.load(run.folder / "model", dtype="float32")
    assert len(decoder_layers.layer_list(model)) == 10  # 3 and 4 of 0-7 once more
    for stage in ("pruned", "healed"):
        assert kept[f"{stage}/size/parameters"] == sum(p.numel() for p in model.parameters())
        assert kept[f"{stage}/size/cache_bytes"] == kept["dense/size/cache_bytes"] * 10 / 8
        assert kept[f"{stage}/size/flops_per_token"] > kept["dense/size/flops_per_token"] * 1.2
        assert kept[f"{stage}/size/weight_bytes"] == sum(p.nbytes for p in model.parameters())
    plan = Plan(8, ())
    healed = x.heal(x.replace(run.dense.load(plan), plan, run), plan, run)
    assert_near(logits(model), logits(healed))


@pytest.mark.filterwarnings("ignore")
def test_uncut_model_has_nothing_around_the_cut(tmp_path):
    for words in (("heal=boundary",), ("heal.layers=after_cut",), ("heal.layers=around_cut",)):
        x = build.build_experiment(composed(f"outputs={tmp_path}/outputs", *SMALL, *text_files(tmp_path), *words))
        run = open_run(x)
        plan = Plan(8, ())
        long = x.replace(run.dense.load(plan), plan, run)
        assert x.heal(long, plan, run) is long


@pytest.mark.slow
def test_killed_healing_ends_with_the_same_weights(tmp_path):
    words = (*SMALL, *text_files(tmp_path), "heal.steps=24", "heal.save_every=2")
    kill_in_healing(tmp_path / "killed", *words)
    killed = succeed(f"outputs={tmp_path}/killed", *words)
    whole = succeed(f"outputs={tmp_path}/whole", *words)
    assert killed["digest"] == whole["digest"]
    name = "model/replacement.safetensors"
    assert (killed["folder"] / name).read_bytes() == (whole["folder"] / name).read_bytes()
