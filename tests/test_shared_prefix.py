"""Adapters above the cut: their layers, the depth of the backward pass, evaluation with a shared prefix."""

import copy
import json
import os
import signal
import time
from contextlib import contextmanager

import pytest
import torch

from adapting import adapted_layers, pruned, pruned_and_adapted
from comparing import assert_same_records, stable_records
from composing import composed
from depthcut.cut import subnetworks
from depthcut.cut.plan import Plan
from depthcut.eval.likelihood import tree_attention
from depthcut.heal.training import adapter_modules, fit
from depthcut.heal.training.memory_plan import Layout
from depthcut.heal.training.objective import next_token_loss
from depthcut.model.decoder import adapters as decoder_adapters
from depthcut.model.decoder import layers, shared_prefix
from depthcut.study import curve
from likelihoods import REQUESTS, alone
from pico import FAMILIES, pico, texts
from recipes import ABOVE, RECIPE, batch
from running import UNHEALED, run, start, text_files


@contextmanager
def passes(kind: str, training: bool = False):
    """Count, in this process, how often a module of this class runs in the given mode."""
    calls: list[int] = []

    def count(module, _):
        if type(module).__name__ == kind and module.training == training:
            calls.append(1)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
    yield calls
    handle.remove()


@pytest.mark.parametrize(
    ("plan", "above"),
    [
        (Plan(8, (2, 3)), {2, 3, 4, 5}),  # of 0-1, 4-7: what were 4-7
        (Plan(8, (1, 5)), {1, 2, 3, 4, 5}),
        (Plan(8, (0,)), set(range(7))),
        (Plan(8, (5, 6)), {5}),
        (Plan(8, (6, 7)), set()),
        (Plan(8, ()), set()),
        (Plan(8, (3, 6), "attention"), {3, 4, 5, 6, 7}),
        (Plan(8, (7,), "mlp"), {7}),
    ],
    ids=lambda value: value.words if isinstance(value, Plan) else "",
)
def test_above_starts_at_the_first_missing_unit(plan, above):
    left = len(plan.keep)
    assert set(ABOVE.reached(plan, left)) == above
    assert set(RECIPE.reached(plan, left)) == set(range(left))
    if above:
        assert adapted_layers(pruned_and_adapted(pico("llama", layers=8), plan, 0)) == above


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_healed_pass_equals_each_cut_alone(family, tmp_path):
    model = pico(family)
    plans = {"a": Plan(6, (1, 2)), "b": Plan(6, (3,)), "c": Plan(6, (3,)), "d": Plan(6, (4,))}
    apart = {name: pruned_and_adapted(model, plan, seed) for seed, (name, plan) in enumerate(plans.items())}
    for name, adapted in apart.items():
        adapted.save_pretrained(str(tmp_path / name), save_embedding_layers=False)
    before = {parameter.data_ptr() for parameter in model.parameters()}
    dense, ids = copy.deepcopy(model), texts()
    shared = decoder_adapters.attach_adapters(model, {name: (tmp_path / name, plan) for name, plan in plans.items()})
    assert {p.data_ptr() for name, p in shared.named_parameters() if "lora_" not in name} == before
    asked = [
        *(subnetworks.subnetwork_from_plan(plan, name) for name, plan in plans.items()),
        subnetworks.FULL,
        subnetworks.subnetwork_from_plan(plans["a"]),
    ]
    with torch.no_grad():
        way, ends = shared_prefix.run_subnetworks(shared, {"input_ids": ids, "use_cache": False}, asked)
        got = [way.logits(ends[cut]) for cut in asked]
        for name, logits in zip(apart, got, strict=False):
            torch.testing.assert_close(logits, apart[name](ids).logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got[4], dense(ids).logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got[5], pruned(dense, plans["a"])(ids).logits, rtol=1e-5, atol=1e-5)
    assert (got[1] - got[2]).abs().max() > 0.01, "two healings of one cut must differ"
    answers = tree_attention.log_likelihoods(shared, REQUESTS, asked, 2)
    for request in REQUESTS:
        for place, adapted in enumerate(apart.values()):
            assert answers[request][place][0] == pytest.approx(alone(adapted, request)[0], rel=1e-5)


@pytest.mark.parametrize("unit", ["attention", "mlp"])
def test_shared_healed_pass_of_sublayer_cuts(unit, tmp_path):
    model, ids = pico("llama"), texts()
    plans = {"a": Plan(6, (1, 4), unit), "b": Plan(6, (3,), unit)}
    apart = {name: pruned_and_adapted(model, plan, seed) for seed, (name, plan) in enumerate(plans.items())}
    for name, adapted in apart.items():
        adapted.save_pretrained(str(tmp_path / name), save_embedding_layers=False)
    shared = decoder_adapters.attach_adapters(model, {name: (tmp_path / name, plan) for name, plan in plans.items()})
    with torch.no_grad(), passes("LlamaRMSNorm") as calls:
        asked = [subnetworks.subnetwork_from_plan(plan, name) for name, plan in plans.items()]
        way, ends = shared_prefix.run_subnetworks(shared, {"input_ids": ids, "use_cache": False}, asked)
    assert len(calls) == 2 * (3 + 5 + 3), "two norms a layer; 0-2 of the dense model, 1-5 and 3-5 with adapters"
    with torch.no_grad():
        for name, cut in zip(apart, asked, strict=True):
            torch.testing.assert_close(way.logits(ends[cut]), apart[name](ids).logits, rtol=1e-5, atol=1e-5)


def test_adapters_of_cuts_fit_quantised_layers(tmp_path):
    from depthcut.model.pico import Pico

    heal = {"rank": 4, "lr": 1e-2, "length": 8}
    source = Pico(layers=6, hidden=64, heads=2, seed=0, quantise="nf4", dtype="float32", separator=None, heal=heal)
    source = source.open(tmp_path / "cache")
    plans, ids = {"a": Plan(6, (1, 2)), "b": Plan(6, (3, 4))}, texts()
    settings = {"quantise": "nf4", "dtype": "float32", "device": "cpu"}
    apart = {}
    for seed, (name, plan) in enumerate(plans.items()):
        torch.manual_seed(seed)
        apart[name] = adapter_modules.add_adapters(source.load(plan, **settings), ABOVE, plan).eval()
        with torch.no_grad():
            for key, parameter in apart[name].named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.1)
        apart[name].save_pretrained(str(tmp_path / name), save_embedding_layers=False)
    model = source.load(None, **settings)
    shared = decoder_adapters.attach_adapters(model, {name: (tmp_path / name, plan) for name, plan in plans.items()})
    with torch.no_grad():
        asked = [subnetworks.subnetwork_from_plan(plan, name) for name, plan in plans.items()]
        way, ends = shared_prefix.run_subnetworks(shared, {"input_ids": ids, "use_cache": False}, asked)
        for name, cut in zip(apart, asked, strict=True):
            torch.testing.assert_close(way.logits(ends[cut]), apart[name](ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recompute", [0, 2, 3])
def test_backward_pass_stops_at_the_cut(recompute):
    plan, ids = Plan(8, (3, 4)), texts()
    adapted = pruned_and_adapted(pico("llama", layers=8), plan, 0)
    wanted = gradients(adapted, ids)
    adapted.train()
    streams: list[tuple[int, bool]] = []
    for number, layer in enumerate(layers.layer_list(adapted)):
        layer.mlp.register_forward_pre_hook(lambda _, h, number=number: streams.append((number, h[0].requires_grad)))
    with fit.applied_layout(adapted, Layout(2, recompute, False)):
        got = gradients(adapted, ids)
    forward, again = streams[:6], streams[6:]
    assert forward == [(0, False), (1, False), (2, False), (3, True), (4, True), (5, True)]
    assert [number for number, _ in again] == {0: [], 2: [4, 3], 3: [5, 4, 3]}[recompute]
    assert got.keys() == wanted.keys() and len(got) == 2 * 7 * 3
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, wanted[name])
        assert gradient.abs().max() > 0


def gradients(adapted, ids) -> dict[str, torch.Tensor]:
    adapted.zero_grad()
    next_token_loss(adapted, batch(ids)).backward()
    return {name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None}


HEAL = ("heal.steps=4", "heal.warmup=1", "heal.batch=4", "heal.micro_batch=2", "heal.layers=after_cut", "export=none")


def test_healed_sweep_records_equal_separate_runs(tmp_path):
    tasks = ("eval=[loss,harness]", "eval.tasks=[capitals]", "eval.limit=8")
    sweep = ("-m", "model=pico", "data=files", *text_files(tmp_path), *tasks, *HEAL)
    sweep = (*sweep, "prune.frac=0,0.25,0.5", "heal.rank=4,8")
    by_itself = run(f"outputs={tmp_path}/alone", *sweep)
    shared = run(f"outputs={tmp_path}/shared", *sweep, "hydra/launcher=curve")
    assert (by_itself.returncode, shared.returncode) == (0, 0), shared.stderr
    assert "loss: healed, 6 in one pass" in shared.stderr
    one, other = stable_records(tmp_path / "alone"), stable_records(tmp_path / "shared")
    assert_same_records(one, other)
    assert len(one) == 6
    for record in one.values():
        nothing = record["fraction"] == 0
        assert (record["healed/validation/loss"] == record["pruned/validation/loss"]) == nothing
    assert by_itself.stderr.count("so nothing is healed") == 2


def test_layer_passes_are_shared(tmp_path):
    """Four batches of text; of 8 layers the cuts 5-6, 3-6 and 1-6 go."""
    corpus = (*UNHEALED, *text_files(tmp_path), "data.validation.sequences=16", "eval.loss.batch=4", *HEAL)
    points = [composed(*corpus, f"outputs={tmp_path}/outputs", "prune=deepest", f"prune.layers={n}") for n in (2, 4, 6)]
    with passes("LlamaMLP") as calls:
        assert curve.share_passes(points) == set()
    unhealed, healed = 8 + 3 * 1, 5 + 3 * 1
    assert len(calls) == 4 * (unhealed + healed)
    with passes("LlamaMLP") as calls:
        assert curve.share_passes(points) == set()
    assert calls == []


def test_points_are_measured_on_their_own_texts(tmp_path):
    """Points that have their base in common, and several validation texts."""
    corpus = (*UNHEALED, *text_files(tmp_path), "heal=none", "export=none", "prune=deepest", "prune.layers=2")

    def evaluations(name: str, *sweeps: tuple[int, ...]) -> dict[str, dict]:
        points = [f"outputs={tmp_path}/{name}", *corpus]
        for sweep in sweeps:
            assert curve.share_passes([composed(*points, f"data.validation.sequences={n}") for n in sweep]) == set()
        found = tmp_path.glob(f"{name}/cache/evaluations/*/value.json")
        return {path.parent.name: json.loads(path.read_text()) for path in found}

    together, apart = evaluations("together", (8, 12)), evaluations("apart", (8,), (12,))
    assert together == apart and len(apart) == 4


def test_unhealable_point_fails_once_others_continue(tmp_path):
    """No attention is left above the cut for the adapters to sit on."""
    sweep = (*UNHEALED, *text_files(tmp_path), *HEAL, "prune=deepest", "prune.unit=attention", "prune.keep_last=0")
    sweep = ("-m", f"outputs={tmp_path}/outputs", *sweep, "prune.layers=2,4", "heal.modules=attention,ffn")
    done = run(*sweep, "hydra/launcher=curve")
    assert done.returncode == 1
    assert "2 of 4 points done, 2 failed, 0 remaining" in done.stderr.splitlines()[-1], done.stderr
    logs = [path.read_text() for path in tmp_path.glob("outputs/main/*/run.log")]
    assert sorted(text.count("stopped by an error") for text in logs) == [0, 0, 1, 1]
    assert len(stable_records(tmp_path / "outputs")) == 2


@pytest.mark.slow
def test_kill_during_healing_loses_nothing(tmp_path):
    corpus, settings = text_files(tmp_path), ("prune=deepest", "prune.layers=2,4", "heal.steps=12", "heal.save_every=1")
    sweep = ("-m", *UNHEALED, *corpus, *HEAL, *settings, "hydra/launcher=curve")
    assert run(*sweep, f"outputs={tmp_path}/whole").returncode == 0
    process = start(*sweep, f"outputs={tmp_path}/killed")
    while not (list(tmp_path.glob("killed/main/*/adapter")) and list(tmp_path.glob("killed/main/*/heal/last.ckpt"))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (first,) = tmp_path.glob("killed/main/*/adapter/adapter_model.safetensors")
    stamp = first.stat().st_mtime_ns
    done = run(*sweep, f"outputs={tmp_path}/killed")
    assert done.returncode == 0 and "healing resumes at step" in done.stderr
    assert first.stat().st_mtime_ns == stamp
    assert_same_records(stable_records(tmp_path / "whole"), stable_records(tmp_path / "killed"))
