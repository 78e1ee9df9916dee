"""Full fine-tuning, adapters around the gaps, and adapters that start from those of a smaller cut."""

import copy
import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from adapting import adapted_layers, pruned, pruned_and_adapted
from composing import composed
from depthcut.config import build
from depthcut.cut.plan import Plan
from depthcut.heal.full import Full
from depthcut.heal.partial import Partial
from depthcut.heal.training import adapter_modules, full_finetune
from depthcut.heal.training.lightning_module import Healing
from depthcut.heal.training.objective import MixedPrecision, next_token_loss
from depthcut.heal.training.warm_start import WarmStart
from depthcut.model.decoder import layers as decoder_layers
from depthcut.record import links
from depthcut.runtime import verified
from depthcut.study import curve
from depthcut.study.run import Run, open_run
from pico import FAMILIES, pico, texts
from recipes import RECIPE, batch
from running import PICO, UNHEALED, kill_in_healing, light, run, run_two, succeed, text_files

SHARED = {field.name: getattr(RECIPE, field.name) for field in dataclasses.fields(Full)}
FULL = Full(**SHARED | {"betas": (0.9, 0.95), "weight_decay": 0.1})
PARTIAL = Partial(**SHARED, last=2)
AROUND = dataclasses.replace(RECIPE, layers="around_cut")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[str, ...]:
    return text_files(tmp_path_factory.mktemp("text"))


def entered(*words: str) -> Run:
    return open_run(build.build_experiment(composed(*words)))


# --- all weights, and the last of them


def changed(model, recipe) -> set[str]:
    """Return the parameters that two steps on random gradients move."""
    module = Healing(model, recipe, next_token_loss)
    before = copy.deepcopy(dict(model.named_parameters()))
    optimiser = module.configure_optimizers()["optimizer"]
    for _ in range(2):
        optimiser.zero_grad()
        next_token_loss(model, batch(texts())).backward()
        for group in optimiser.param_groups:
            group["lr"] = 1e-3  # the schedule begins at 0
        optimiser.step()
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_recipe_decides_trained_weights_and_gradient_depth(family, tied):
    model = pico(family, layers=5, tie_word_embeddings=tied)
    stem, names = decoder_layers.layer_prefix(model), {name for name, _ in model.named_parameters()}
    with full_finetune.master_weights(model, full_finetune.all_parameters(model)):
        unused = {name for name in names if re.search(r"embed_positions", name)}  # rows that no text reaches
        assert changed(model, FULL) | unused == names
    model = pico(family, layers=5, tie_word_embeddings=tied)
    chosen = full_finetune.last_layer_parameters(model, PARTIAL.last)
    wanted = {name for name in names if re.match(rf"{re.escape(stem)}\.[34]\.", name)}
    heads = {"lm_head.weight", "lm_head.bias", "embed_out.weight"} & names
    assert chosen.keys() == wanted | heads and bool(heads) == (not tied or family == "phi")
    entered: list[bool] = []
    for layer in decoder_layers.layer_list(model):
        layer.register_forward_pre_hook(
            lambda _, given, named: entered.append((given or list(named.values()))[0].requires_grad), with_kwargs=True
        )
    with full_finetune.master_weights(model, chosen):
        assert changed(model, PARTIAL) == chosen.keys()
    assert entered == [False, False, False, False, True] * 2
    assert full_finetune.last_layer_parameters(model, 9).keys() >= {
        name for name in names if name.startswith(f"{stem}.")
    }


@pytest.mark.parametrize("tied", [False, True])
def test_full_gradient_equals_that_of_transformers_loss(tied):
    model, ids = pico("llama", tie_word_embeddings=tied), texts()
    model.requires_grad_(True)
    other = copy.deepcopy(model)
    next_token_loss(model, batch(ids)).backward()
    other(ids, labels=ids).loss.backward()
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert (one.grad - two.grad).norm() < 1e-5 * two.grad.norm(), name


def test_optimiser_is_adamw_with_decay_on_matrices_only():
    model = pico("llama", layers=1).requires_grad_(True)
    optimiser = Healing(model, FULL, next_token_loss).configure_optimizers()["optimizer"]
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    chance, gradients = torch.Generator().manual_seed(0), []
    for _ in range(3):
        gradients.append({name: torch.randn(p.shape, generator=chance) for name, p in model.named_parameters()})
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[-1][name]
        for group in optimiser.param_groups:
            group["lr"] = 1e-2
        optimiser.step()
    for name, parameter in model.named_parameters():
        wanted, first, second = start[name].double(), 0.0, 0.0
        for step, each in enumerate(gradients, 1):  # Loshchilov and Hutter, arXiv:1711.05101, algorithm 2
            first = 0.9 * first + 0.1 * each[name].double()
            second = 0.95 * second + 0.05 * each[name].double() ** 2
            wanted = wanted * (1 - 1e-2 * (0.1 if "proj" in name or "embed" in name or "head" in name else 0))
            wanted = wanted - 1e-2 * (first / (1 - 0.9**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
        assert_close(parameter.double(), wanted, rtol=1e-5, atol=1e-6, msg=name)


# --- precision


def test_stochastic_rounding_is_unbiased_between_neighbours():
    chance = torch.Generator().manual_seed(0)
    low, high = 1.0, 1.0 + 2**-7  # next to each other in bfloat16
    for share in (0.0, 0.1, 0.5):
        many = torch.full((20000,), low + share * (high - low))
        for sign in (1, -1):
            got = sign * full_finetune.stochastic_round(sign * many, torch.bfloat16, chance)
            assert got.dtype == torch.bfloat16 and set(got.tolist()) <= {low, high}
            assert (got == high).float().mean().item() == pytest.approx(share, abs=0.02)


def test_stochastic_rounding_keeps_exact_values_and_the_precision():
    chance = torch.Generator().manual_seed(0)
    some = torch.randn(1000, generator=chance) * 10.0 ** torch.randint(-30, 30, (1000,), generator=chance)
    exact = torch.cat([some, 2.0 ** torch.arange(-20, 20), torch.zeros(3)]).to(torch.bfloat16)
    assert torch.equal(full_finetune.stochastic_round(exact.float(), torch.bfloat16, chance), exact)
    gap = (full_finetune.stochastic_round(some, torch.bfloat16, chance).float() - some).abs() / some.abs()
    assert 0 < gap.max() <= 2**-7


def test_only_bfloat16_is_rounded_stochastically():
    chance = torch.Generator().manual_seed(0)
    many = torch.randn(1000, generator=chance) * 10.0 ** torch.randint(-30, 30, (1000,), generator=chance)
    assert full_finetune.stochastic_round(many, torch.float32, chance) is many
    assert torch.equal(full_finetune.stochastic_round(many, torch.float16, chance), many.half())


def test_bfloat16_weights_need_float32_for_small_steps():
    """16 steps of 1e-5 on weights near 0.2: in bfloat16 next to nothing moves, and rounded to nearest nothing does."""
    steps, lr = 16, 1e-5
    start = {name: p.detach().to(torch.bfloat16).float() for name, p in pico("llama", layers=2).named_parameters()}
    ends: dict[str, torch.Tensor] = {}
    for way in ("plain", "masters"):
        model = pico("llama", layers=2).to(torch.bfloat16)
        chosen = full_finetune.all_parameters(model)
        if way == "plain":
            model.requires_grad_(True)
            walk(model, next_token_loss, steps, lr)
        else:
            with full_finetune.master_weights(model, chosen) as types:
                assert set(types.values()) == {torch.bfloat16}
                assert {p.dtype for p in model.parameters()} == {torch.float32}
                walk(model, MixedPrecision(next_token_loss), steps, lr)
                ends["float32"] = flat(model, start)
                chance = torch.Generator().manual_seed(0)
                drawn = {
                    name: full_finetune.stochastic_round(p.detach(), torch.bfloat16, chance)
                    for name, p in chosen.items()
                }
                ends["rounded"] = torch.cat([(drawn[name].float() - start[name]).flatten() for name in start])
            assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
            assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
        ends[way] = flat(model, start)
    wanted = ends["float32"]
    share = {way: (end @ wanted / (wanted @ wanted)).item() for way, end in ends.items()}
    assert wanted.abs().median() > 5 * lr
    assert share["rounded"] == pytest.approx(1, abs=0.1)
    assert share["plain"] < 0.3 and share["masters"] < 0.3, "`masters` is the nearest bfloat16 at the end"


def walk(model, objective, steps: int, lr: float) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95))
    for _ in range(steps):
        optimiser.zero_grad()
        objective(model, batch(texts())).backward()
        assert all(p.grad.dtype == p.dtype for p in model.parameters())
        optimiser.step()


def flat(model, start) -> torch.Tensor:
    """Return how far each weight moved."""
    return torch.cat([(p.detach().float() - start[name]).flatten() for name, p in model.named_parameters()])


# --- runs

WAY = {"full": (), "partial": ("heal.last=2",)}
SOON = ("heal.steps=12", "heal.save_every=2", "heal.lr=1e-3", "model.dtype=bfloat16")


def kept(outputs: Path) -> bytes:
    return next(outputs.glob("main/*/weights/model.safetensors")).read_bytes()


@pytest.fixture(scope="module")
def full(tmp_path_factory, corpus):
    return succeed(f"outputs={tmp_path_factory.mktemp('full')}", *PICO, *corpus, "heal=full", *SOON)


def test_full_heals_and_exports_what_it_keeps(full):
    assert full["healed/validation/loss"] < full["pruned/validation/loss"]
    there = {path.name for path in full["folder"].iterdir() if path.suffix != ".lock"}
    assert there == {"config.yaml", "run.log", "plan.json", "heal.csv", "record.json", "model", "weights"}
    tensors = load_file(full["folder"] / "weights/model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(full["folder"] / "model", dtype="auto")
    found = dict(model.named_parameters())
    assert tensors.keys() == found.keys() and {each.dtype for each in tensors.values()} == {torch.bfloat16}
    assert all(torch.equal(tensors[name], found[name]) for name in tensors)
    assert Plan.read(full["folder"] / "weights/plan.json").drop


def test_finished_point_loads_nothing(full, corpus):
    assert "already done" in light(f"outputs={full['folder'].parents[1]}", *PICO, *corpus, "heal=full", *SOON).stderr


@pytest.mark.slow
def test_added_task_reuses_the_healed_weights(full, corpus):
    outputs = full["folder"].parents[1]
    same = (f"outputs={outputs}", *PICO, *corpus, "heal=full", *SOON)
    before = kept(outputs)
    more = run(*same, "eval=[loss,harness]", "eval.tasks=[capitals]", "eval.limit=4")
    assert more.returncode == 0 and "healing" not in more.stderr, more.stderr
    record = json.loads((full["folder"] / "record.json").read_text())
    assert record["healed/validation/loss"] == full["healed/validation/loss"] and "healed/capitals/acc" in record
    assert kept(outputs) == before


def test_killed_run_ends_with_the_same_weights(tmp_path, corpus, full):
    same = (*PICO, *corpus, "heal=full", *SOON)
    kill_in_healing(tmp_path / "killed", *same)
    assert not list(tmp_path.glob("killed/main/*/weights"))
    resumed = succeed(f"outputs={tmp_path}/killed", *same)
    assert "healing resumes at step" in (resumed["folder"] / "run.log").read_text()
    assert kept(tmp_path / "killed") == kept(full["folder"].parents[1])
    assert resumed["healed/validation/loss"] == full["healed/validation/loss"]


def test_partial_leaves_other_weights_unchanged(tmp_path, corpus):
    record = succeed(f"outputs={tmp_path}", *PICO, *corpus, "heal=partial", "heal.last=2", "heal.lr=1e-3")
    tensors = load_file(record["folder"] / "weights/model.safetensors")
    assert {name.split(".")[2] for name in tensors if "layers" in name} == {"4", "5"} and "lm_head.weight" in tensors
    assert not any("embed" in name for name in tensors)
    healed = load_file(record["folder"] / "model/model.safetensors")
    (dense,) = tmp_path.glob("cache/models/*/model.safetensors")
    was, keep = load_file(dense), Plan.from_dict(record["plan"]).keep
    for name, tensor in healed.items():
        old = re.sub(r"layers\.(\d+)", lambda at: f"layers.{keep[int(at[1])]}", name)
        assert torch.equal(tensor, was[old]) == (name not in tensors), name
    assert record["healed/validation/loss"] < record["pruned/validation/loss"]


@pytest.mark.slow
def test_two_processes_full_finetune_like_one(tmp_path, corpus):
    same = (*UNHEALED, *corpus, "heal=full", "prune=deepest", "heal.steps=6", "heal.warmup=1")
    same = (*same, "heal.batch=4", "heal.lr=1e-3", "export=none")
    one = run(f"outputs={tmp_path}/one", *same, "heal.micro_batch=4")
    assert one.returncode == 0, one.stderr
    run_two(f"outputs={tmp_path}/two", *same, "heal.micro_batch=1")
    files = [next(tmp_path.glob(f"{each}/main/*/weights/model.safetensors")) for each in ("one", "two")]
    assert_close(load_file(files[1]), load_file(files[0]), atol=2e-4, rtol=0)


@pytest.mark.parametrize("heal", WAY)
def test_full_finetune_refuses_adapter_export_and_quantised_base(heal):
    with pytest.raises(
        ValueError, match=f"^export=adapter needs a recipe that trains adapters; heal={heal} trains none$"
    ):
        build.build_experiment(composed("model=pico", f"heal={heal}", "export=adapter"))
    with pytest.raises(ValueError, match=f"^heal={heal} needs model.quantise=none, got nf4$"):
        build.build_experiment(composed("model=pico", f"heal={heal}", "model.quantise=nf4"))
    with pytest.raises(ValueError, match=r"^heal.betas must be two numbers in \[0, 1\), got \[0.9, 1.0\]$"):
        build.build_experiment(composed("model=pico", f"heal={heal}", "heal.betas=[0.9,1.0]"))


# --- around the gaps


def layers_near_gaps(plan: Plan, reach: int, filled: int | None = 0) -> set[int]:
    """Return the layers, kept or in a gap, within ``reach`` of the nearest gap.

    Args:
        filled: how many layers fill each gap; None: as many as were dropped.
    """
    row: list[str] = []
    for layer in range(plan.depth):
        if layer not in plan.drop:
            row.append("kept")
            continue
        if layer - 1 not in plan.drop:
            row += ["gap"] + ["fill"] * (filled or 0)
        row += ["fill"] * (filled is None)
    chosen, number = set(), 0
    for place, kind in enumerate(row):
        if kind == "gap":
            continue
        up = next((n for n, each in enumerate(w for w in row[place::-1] if w != "fill") if each == "gap"), math.inf)
        down = next((n for n, each in enumerate(w for w in row[place:] if w != "fill") if each == "gap"), math.inf)
        if kind == "fill" or min(up, down) <= reach:
            chosen.add(number)
        number += 1
    return chosen


PLANS = [Plan(9, (3, 4)), Plan(9, (0,)), Plan(9, (7, 8)), Plan(9, (1, 4, 5)), Plan(9, (2, 4)), Plan(9, (1, 2, 6, 7))]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.words)
@pytest.mark.parametrize("reach", [1, 2, 5])
def test_around_cut_is_next_to_a_gap(plan, reach):
    recipe, left = dataclasses.replace(AROUND, reach=reach), len(plan.keep)
    assert set(recipe.reached(plan, left)) == layers_near_gaps(plan, reach)
    gaps = sum(layer - 1 not in plan.drop for layer in plan.drop)
    if left + gaps < plan.depth:  # otherwise one for each dropped layer
        assert set(recipe.reached(plan, left + gaps)) == layers_near_gaps(plan, reach, 1)
    assert set(recipe.reached(plan, plan.depth)) == around_all(plan, reach)


def around_all(plan: Plan, reach: int) -> set[int]:
    """Return the dropped layers and those near one, where all layers are restored."""
    return {n for n in range(plan.depth) if any(abs(n - gone) <= reach for gone in plan.drop)}


def test_around_cut_by_example():
    for plan, wanted in ((Plan(8, (3, 4)), [1, 2, 3, 4]), (Plan(8, ()), []), (Plan(8, (7,)), [5, 6])):
        assert AROUND.reached(plan, len(plan.keep)) == wanted
    assert AROUND.reached(Plan(8, (4,), "mlp"), 8) == [2, 3, 4, 5, 6]
    plan = Plan(8, (3, 4))
    assert adapted_layers(pruned_and_adapted(pico("llama", layers=8), plan, 0, AROUND)) == {1, 2, 3, 4}


def test_points_healed_below_the_cut_are_not_shared(tmp_path):
    for layers, may in (("after_cut", True), ("around_cut", False), ("all", False)):
        here = open_run(build.build_experiment(composed("model=pico", f"outputs={tmp_path}", f"heal.layers={layers}")))
        assert curve.heals_above_cut(here) == may
    for heal in WAY:
        assert not curve.heals_above_cut(
            open_run(build.build_experiment(composed("model=pico", f"outputs={tmp_path}", f"heal={heal}")))
        )


def test_reach_matters_only_around_the_cut(tmp_path):
    def digest(*words: str) -> str:
        return entered("model=pico", f"outputs={tmp_path}", *words).digest

    assert digest("heal.reach=2") == digest("heal.reach=3")
    assert digest("heal.layers=around_cut", "heal.reach=2") != digest("heal.layers=around_cut", "heal.reach=3")


# --- chained


def test_shared_layers_start_from_the_smaller_cuts_adapters(tmp_path):
    small, large = Plan(8, (4,)), Plan(8, (3, 4, 5))
    model = pico("llama", layers=8)
    smaller = pruned_and_adapted(model, small, 0)
    smaller.save_pretrained(str(tmp_path), save_embedding_layers=False)
    larger = adapter_modules.add_adapters(pruned(model, large), RECIPE, large)
    fresh = copy.deepcopy(larger.state_dict())
    adapter_modules.copy_adapters(larger, WarmStart(tmp_path, small), large)
    there, seen = smaller.state_dict(), []
    for name, tensor in larger.state_dict().items():
        if "lora_" not in name:
            continue
        number = large.keep[int(re.search(r"layers\.(\d+)", name)[1])]
        if number in (6, 7):  # kept by both, and after the smaller cut's gap, where it has adapters
            old = re.sub(r"layers\.\d+", f"layers.{small.keep.index(number)}", name)
            assert torch.equal(tensor, there[old]) and (tensor != 0).any()
            seen.append(number)
        else:
            assert torch.equal(tensor, fresh[name])
    assert set(seen) == {6, 7}
    with pytest.raises(ValueError, match="no layer has adapters both in"):
        nothing = Plan(8, (5, 6, 7))
        adapter_modules.copy_adapters(
            adapter_modules.add_adapters(pruned(model, nothing), RECIPE, nothing), WarmStart(tmp_path, small), nothing
        )


DEEPEST = ("prune=deepest", "export=none", "stages=[healed]", "heal.steps=2", "heal.lr=0.01")


@pytest.fixture(scope="module")
def smaller(tmp_path_factory, corpus):
    outputs = tmp_path_factory.mktemp("chain")
    return succeed(f"outputs={outputs}", *PICO, *corpus, *DEEPEST, "prune.layers=1", "heal.layers=all")


def chained(smaller, corpus, *words: str) -> tuple[str, ...]:
    outputs = smaller["folder"].parents[1]
    return (f"outputs={outputs}", *PICO, *corpus, *DEEPEST, "prune.layers=3", *words)


def test_run_starts_from_a_smaller_cut(smaller, corpus):
    """Tiny steps leave the adapters where they started: at the other run's."""
    digest = smaller["folder"].name
    done = run(*chained(smaller, corpus, f"heal.init_from={digest}", "heal.lr=1e-12"))
    assert done.returncode == 0 and "healing starts from" in done.stderr, done.stderr
    (larger,) = (path.parent for path in smaller["folder"].parent.glob("*/adapter") if path.parent.name != digest)
    one, two = (load_file(each / "adapter/adapter_model.safetensors") for each in (smaller["folder"], larger))
    plans = [Plan.read(each / "plan.json") for each in (smaller["folder"], larger)]
    assert plans[0].drop == (6,) and plans[1].drop == (4, 5, 6)
    for name, tensor in two.items():
        number = plans[1].keep[int(re.search(r"layers\.(\d+)", name)[1])]
        old = one[re.sub(r"layers\.\d+", f"layers.{plans[0].keep.index(number)}", name)]
        assert_close(tensor, old, atol=1e-9, rtol=0)
        assert tensor.abs().max() > 0


def test_digest_covers_init_from_by_content(smaller, corpus, tmp_path):
    folder = smaller["folder"]
    fresh, by_digest, by_folder = (
        entered(*chained(smaller, corpus, *words)).digest
        for words in ((), (f"heal.init_from={folder.name}",), (f"heal.init_from={folder}",))
    )
    assert by_digest == by_folder != fresh
    link = folder.parent / links.FOLDER / "deepest-layers1-lora"
    assert link.is_symlink() and link.resolve() == folder.resolve()
    for name in (folder.name[:8], folder / "adapter", link, link.name):
        assert entered(*chained(smaller, corpus, f"heal.init_from='{name}'")).digest == by_digest
    other = shutil.copytree(folder, tmp_path / "other")
    assert entered(*chained(smaller, corpus, f"heal.init_from={other}")).digest == by_digest
    file = other / "adapter/adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\1\2\3\4")
    verified.write_manifest(other / "adapter", folder.name)
    assert entered(*chained(smaller, corpus, f"heal.init_from={other}")).digest not in (by_digest, fresh)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match=f"^heal.init_from={other}: no complete adapters in {other}/adapter"):
        assert entered(*chained(smaller, corpus, f"heal.init_from={other}")).digest


MISTAKES = [
    (
        ("heal.init_from=nowhere",),
        r"no such point; give a point's folder, or at least 4 digits of its digest in ",
    ),
    (("model.heal.rank=8",), r"its adapters have heal.rank=4, this point has heal.rank=8; they must agree$"),
    (("heal.alpha=8",), r"its adapters have heal.alpha=4, this point has heal.alpha=8; they must agree$"),
    (("heal.modules=ffn",), r"its adapters have heal.modules=all, this point has heal.modules=ffn; they must agree$"),
    (("model.seed=1",), r"its adapters are for model [0-9a-f]{8}, this is [0-9a-f]{8}$"),
    (("replace=mean",), r"both points must have replace=none, got replace=mean$"),
]


@pytest.mark.parametrize(("words", "says"), MISTAKES, ids=[words[0] for words, _ in MISTAKES])
def test_unsuitable_init_from_fails_in_one_line(smaller, corpus, words, says):
    with pytest.raises(ValueError, match=rf"^heal.init_from=\S+: {says}") as error:
        assert entered(*chained(smaller, corpus, f"heal.init_from={smaller['folder']}", *words)).digest
    assert "\n" not in str(error.value)


def test_unsuitable_init_from_fails_before_heavy_imports(smaller, corpus, full):
    done = light(*chained(smaller, corpus, "heal.init_from=nowhere"))
    assert done.returncode and done.stderr.strip().splitlines()[-1].startswith("error: heal.init_from=nowhere: no such")
    with pytest.raises(ValueError, match=r"no complete adapters in .*/adapter; first heal that point with adapters"):
        assert entered(*chained(smaller, corpus, f"heal.init_from={full['folder']}")).digest
