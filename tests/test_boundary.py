"""heal=boundary: its loss, which layers run and train, the teacher's hidden states, whole runs."""

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from composing import composed
from depthcut.config import build
from depthcut.cut.plan import Plan
from depthcut.heal.boundary import Boundary
from depthcut.heal.training import adapter_modules, boundary
from depthcut.heal.training.batches import MicroBatch
from depthcut.heal.training.fit import applied_layout
from depthcut.heal.training.memory_plan import Layout
from depthcut.model.decoder import inputs, layers, layerwise, sublayers
from depthcut.runtime import store
from depthcut.runtime.strict import method_fields
from depthcut.study import curve, runlog
from depthcut.study.run import Run, open_run
from pico import FAMILIES, pico, randomise_lora_b, slope, texts
from running import PICO, UNHEALED, succeed, text_files

SHORT = ("heal.steps=6", "heal.warmup=1", "heal.batch=4", "heal.micro_batch=2", "export=none")
CUT = Plan(6, (2, 3))


def recipe(**changes: Any) -> Boundary:
    heal: Any = build.build_experiment(composed("model=pico", "heal=boundary")).heal
    return dataclasses.replace(heal, **changes)


def pruned(model: Any, plan: Plan) -> Any:
    model = copy.deepcopy(model)
    if plan.unit == "layer":
        return layers.cut_layers(model, plan.drop)
    sublayers.remove_sublayers(model, plan)
    return model


def student(family: str = "llama", plan: Plan = CUT) -> Any:
    """Return a pruned model with random adapters."""
    torch.manual_seed(0)
    adapted = adapter_modules.add_adapters(pruned(pico(family), plan), recipe(), plan).eval()
    return randomise_lora_b(adapted)


def batch() -> MicroBatch:
    ids = texts(3, 12)
    return MicroBatch(ids, torch.arange(len(ids)))


def loss_of(dense: Any, plan: Plan, error: Any = "relative") -> Any:
    edge, above = len(recipe().reached(plan, len(plan.keep))), max(plan.drop) + 1
    return boundary.boundary_objective(boundary.live_state_teacher(dense, above), edge, error)


def gradient(loss: torch.Tensor, model: Any) -> torch.Tensor:
    trained = [each for each in model.parameters() if each.requires_grad]
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, trained)])


@pytest.mark.parametrize(
    ("plan", "left", "below"),
    [
        (Plan(8, (2, 3)), 6, 2),
        (Plan(8, (6, 7)), 6, 6),  # the teacher's hidden states after its last layer
        (Plan(8, (1, 5)), 6, 4),  # of two gaps the last one
        (Plan(8, (0,)), 7, 0),
        (Plan(8, ()), 8, 0),
        (Plan(8, (3, 6), "attention"), 8, 7),
        (Plan(8, (2, 3)), 7, 3),  # the gap has a replacement
        (Plan(8, (0, 1)), 8, 2),
    ],
)
def test_adapters_sit_below_the_last_gap(plan, left, below):
    assert recipe().reached(plan, left) == range(below)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_match_layer_by_layer_forward(family):
    model, ids = pico(family), texts()
    with torch.no_grad():
        way = layerwise.start_forward(model, inputs.model_inputs(model, ids, torch.ones_like(ids)))
        h_BTD = way.h_BTD
        for edge in range(1, 7):
            h_BTD = way.step(edge - 1, h_BTD)
            torch.testing.assert_close(boundary.states_before_layer(model, ids, edge), h_BTD)


@pytest.mark.parametrize("error", ["relative", "squared"])
def test_error_equals_the_formula(error):
    chance = torch.Generator().manual_seed(0)
    h, wanted = (torch.randn(2, 5, 7, generator=chance, dtype=torch.float64) for _ in range(2))
    total = 0.0
    for one, other in zip(h.flatten(0, 1).numpy(), wanted.flatten(0, 1).numpy(), strict=True):
        scale = float(np.dot(other, other)) if error == "relative" else 7
        total += float(np.linalg.norm(other - one)) ** 2 / scale
    assert boundary.hidden_state_error(h.float(), wanted.float(), error).item() == pytest.approx(total / 10, rel=1e-5)


@pytest.mark.parametrize("error", ["relative", "squared"])
def test_uncut_model_has_zero_boundary_loss(error):
    model, some = pico("llama"), batch()
    for edge in range(1, 7):
        assert (
            boundary.boundary_objective(boundary.live_state_teacher(model, edge), edge, error)(model, some).item() == 0
        )
    assert loss_of(model, CUT, error)(pruned(model, CUT), some).item() > 0.01


@pytest.mark.parametrize("error", ["relative", "squared"])
def test_gradient_equals_finite_differences(error):
    model, some = student(), batch()
    loss = loss_of(pico("llama"), CUT, error)
    towards = gradient(loss(model, some), model)
    assert slope(lambda: loss(model, some), model, towards) == pytest.approx(towards.norm().item(), rel=1e-2)


@pytest.mark.parametrize(
    ("plan", "below", "above"),
    [(CUT, 2, 4), (Plan(6, (1, 3)), 2, 4), (Plan(6, (4, 5)), 4, 6), (Plan(6, (1, 3), "mlp"), 4, 4)],
    ids=lambda value: value.words if isinstance(value, Plan) else "",
)
@pytest.mark.parametrize("recompute", [0, 3])
def test_only_layers_below_the_cut_run_and_train(plan, below, above, recompute):
    dense, model, some = pico("llama"), student(plan=plan), batch()
    wanted = gradient(loss_of(dense, plan)(model, some), model)
    assert (wanted != 0).float().mean() > 0.9
    sites = {name.split(".layers.")[1].split(".")[0] for name, each in model.named_parameters() if each.requires_grad}
    assert sites == {str(number) for number in range(below)}
    passed: list[Any] = []
    for who, each in (("student", model), ("teacher", dense)):
        for number, layer in enumerate(layers.layer_list(each)):
            layer.register_forward_pre_hook(lambda *_, at=(who, number): passed.append(at))
    for each in (dense, model.get_base_model()):
        each.lm_head.register_forward_pre_hook(lambda *_: passed.append("head"))
    with applied_layout(model, Layout(3, recompute, False)):
        got = gradient(loss_of(dense, plan)(model, some), model)
    assert passed == [("teacher", n) for n in range(above)] + [("student", n) for n in range(below)]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[str, ...]:
    return text_files(tmp_path_factory.mktemp("text"))


def opened(*overrides: str) -> Run:
    return open_run(build.build_experiment(composed(*UNHEALED, *SHORT, "heal=boundary", *overrides)))


def healed(here: Run, plan: Plan) -> dict[str, torch.Tensor]:
    """Heal and return the trained adapters."""
    plan = here.decide(plan)
    with runlog.quiet_libraries():
        here.experiment.heal(here.experiment.replace(here.dense.load(plan), plan, here), plan, here)
    return load_file(here.folder / "adapter" / adapter_modules.ADAPTER_FILE)


def losses(here: Run) -> list[float]:
    rows = (here.folder / "heal.csv").read_text().splitlines()
    return [float(row.split(",")[3]) for row in rows[1:]]


@pytest.mark.parametrize(
    ("plan", "more"),
    [(Plan(8, (4, 5)), ()), (Plan(8, (2, 6)), ("model.dtype=bfloat16", "heal.error=squared"))],
    ids=["one gap", "two gaps, bfloat16"],
)
def test_cached_and_live_teachers_train_the_same_weights(tmp_path, corpus, plan, more):
    ways = ("cached", "live")
    points = [opened(*corpus, f"outputs={tmp_path}/{way}", f"heal.teacher={way}", *more) for way in ways]
    one, other = (healed(here, plan) for here in points)
    assert points[0].digest == points[1].digest
    assert (tmp_path / "cached/cache/teacher").exists() and not (tmp_path / "live/cache/teacher").exists()
    assert one.keys() == other.keys() and max(t.abs().max() for n, t in one.items() if "lora_B" in n) > 1e-3
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-6)
    size = sum(path.stat().st_size for path in tmp_path.glob("cached/cache/teacher/*/*.safetensors"))
    promised = 24 * 64 * 32 * (2 if more else 4)
    assert promised <= size < promised + 1000


@pytest.mark.parametrize(
    "more",
    [
        ("model.quantise=none",),
        ("model.quantise=nf4", "model.hidden=64"),
        ("model.quantise=int8", "model.hidden=64"),
        ("replace=linear", "data.calibration.sequences=16"),
    ],
    ids=lambda more: more[0],
)
def test_training_lowers_the_boundary_loss(tmp_path, corpus, more):
    here = opened(*corpus, f"outputs={tmp_path}", "heal.steps=8", *more)
    trained = healed(here, Plan(8, (4, 5)))
    assert {name.split(".layers.")[1].split(".")[0] for name in trained} == {"0", "1", "2", "3"}
    assert losses(here)[-1] < 0.9 * losses(here)[0]


def test_no_layers_below_the_cut_leaves_model_unchanged(tmp_path, corpus):
    here = opened(*corpus, f"outputs={tmp_path}")
    for plan in (Plan(8, (0, 1)), Plan(8, ())):
        model = here.dense.load(plan)
        assert here.experiment.heal(model, plan, here) is model
    assert not (here.folder / "adapter").exists() and not (tmp_path / "cache/teacher").exists()


def test_cached_states_serve_all_cuts_with_that_boundary(tmp_path, corpus):
    def blocks(above: int, *more: str) -> set[str]:
        boundary.cached_state_teacher(opened(*corpus, f"outputs={tmp_path}", *more), above, "crossed")
        return {path.parent.name for path in tmp_path.glob("cache/teacher/*/*.safetensors")}

    first = blocks(6)
    assert len(first) == 1
    assert blocks(6, "heal.rank=2", "seed=3", "heal.error=squared") == first
    assert len(blocks(5)) == 2


def test_healing_below_the_cut_excludes_shared_healed_passes(corpus, tmp_path):
    """The curve launcher's shared healed pass is for adapters above the cut."""
    assert not curve.heals_above_cut(opened(*corpus, f"outputs={tmp_path}"))
    lora = composed(*UNHEALED, *corpus, f"outputs={tmp_path}", "heal=lora", "heal.layers=after_cut")
    assert curve.heals_above_cut(open_run(build.build_experiment(lora)))


def test_layers_above_the_cut_are_refused(corpus):
    with pytest.raises(ValueError, match=r"heal\.layers.*before_cut"):
        opened(*corpus, "heal.layers=after_cut")


def test_digest_covers_only_settings_that_change_numbers():
    def name(*more: str) -> str:
        x: Any = build.build_experiment(composed("model=pico", "heal=boundary", *more))
        return store.content_digest(method_fields(x.heal))

    assert name() == name("heal.teacher=live") == name("heal.micro_batch=1")
    assert len({name(), name("heal.error=squared"), name("heal.rank=3")}) == 3


@pytest.mark.slow
def test_run_ends_with_an_exported_model(tmp_path, corpus):
    more = (
        "heal=boundary",
        "heal.steps=6",
        "heal.dropout=0.2",
        "prune=deepest",
        "stages=[pruned,healed]",
    )
    record = succeed(f"outputs={tmp_path}", *PICO, *corpus, *more)
    assert record["healed/validation/loss"] != record["pruned/validation/loss"]
    assert (record["folder"] / "model/config.json").exists() and record["seconds/teacher"] > 0
