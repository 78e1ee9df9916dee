"""Replacements of dropped layers: fitted maps, merged layers, a trained layer; evaluated, saved and reloaded."""

import json
import re
import time

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from torch import nn
from transformers import AutoModelForCausalLM

import depthcut
import running
from comparing import assert_near
from composing import composed
from depthcut import algorithm
from depthcut.config import build
from depthcut.cut.plan import Plan
from depthcut.model.checkpoint import exported
from depthcut.model.decoder import layers, layerwise
from depthcut.model.decoder.linear import orient_weight
from depthcut.model.surgery import bridges
from depthcut.replace.fitting import least_squares
from depthcut.replace.fitting.least_squares import SufficientStatistics
from depthcut.study import digests, export
from depthcut.study.run import open_run
from gaps import DEPTH, edges, model_of, opened
from pico import logits, texts, written

FITTED = ("mean", "linear", "linear replace.map=diagonal", "linear replace.map=low_rank replace.rank=3")
IN_PLACE = ("linear replace.fuse=true", "merge", "layer replace.steps=3 replace.batch=2")
KINDS = ("qwen2", "gemma3")
REFUSED = ("gemma3", "linear replace.fuse=true")
PLAN = Plan(DEPTH, (2, 3))


def replaced(folder, model, words: str, plan: Plan = PLAN, *knobs: str):
    """Return the run, and the cut model with its gaps filled."""
    here = opened(folder, model, *f"replace={words}".split(), *knobs)
    here.experiment.replace.prepare(here)
    return here, here.experiment.replace(here.dense.load(plan), plan, here)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tmp_path_factory.mktemp("llama"), model_of("llama")


@pytest.mark.parametrize("family", ["llama", "gemma3", "opt", "phi"])
def test_mean_bridge_adds_the_mean_update(family, tmp_path):
    model, plan = model_of(family), Plan(DEPTH, (0, 2, 3, 5))
    here, filled = replaced(tmp_path, model, "mean", plan, "prune.keep_last=0")
    seen = edges(model, here)
    fill = bridges.extract_bridges(filled, plan)
    for start, stop in ((0, 1), (2, 4), (5, 6)):
        wanted = (seen[stop] - seen[start]).mean(0)
        np.testing.assert_allclose(fill.tensors[f"{start}.bias"].numpy(), wanted, rtol=1e-3, atol=1e-4)
    way = layerwise.start_forward(model, {"input_ids": texts(), "attention_mask": None, "use_cache": False})
    with torch.no_grad():  # the dense model's layers, and the vectors in between
        h = way.h_BTD + fill.tensors["0.bias"]
        h = way.step(1, h) + fill.tensors["2.bias"]
        h = way.step(4, h) + fill.tensors["5.bias"]
        assert_near(logits(filled), way.logits(h))


def lengthened(z: np.ndarray, ridge: float) -> np.ndarray:
    """Append rows that turn plain least squares into ridge regression."""
    return np.concatenate([z, np.diag(np.sqrt(ridge * (z**2).sum(0)))])


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["full", "diagonal", "orthogonal", "low_rank rank"])
def test_maps_from_statistics_equal_maps_from_states(llama, kind, ridge):
    folder, model = llama
    words = f"linear replace.ridge={ridge} replace.map={kind.split()[0]}"
    here, filled = replaced(folder, model, words + (" replace.rank=5" if "rank" in kind else ""))
    seen, parts = edges(model, here), bridges.extract_bridges(filled, PLAN).by_layer()[2]
    z = lengthened(seen[2], ridge)
    r = np.concatenate([seen[4] - seen[2], np.zeros((len(z) - len(seen[2]), 64))])
    got = least_squares.map_matrix(parts).double().numpy()
    if kind == "full":
        wanted = np.linalg.lstsq(z, r, rcond=None)[0]
    elif kind == "diagonal":
        wanted = np.diag([np.linalg.lstsq(z[:, [k]], r[:, k], rcond=None)[0].item() for k in range(64)])
    elif kind == "orthogonal":
        wanted = orthogonal_procrustes(z, z + r)[0] - np.eye(64)
        np.testing.assert_allclose((got + np.eye(64)) @ (got + np.eye(64)).T, np.eye(64), atol=1e-5)
    else:
        whole = np.linalg.lstsq(z, r, rcond=None)[0]
        _, _, vh = np.linalg.svd(z @ whole)
        wanted = whole @ vh[:5].T @ vh[:5]
        assert np.linalg.matrix_rank(got, tol=1e-4) == 5
    np.testing.assert_allclose(got, wanted, rtol=1e-2, atol=1e-3)
    assert_near(logits(filled), through(model, parts))


def through(model, parts) -> torch.Tensor:
    """Run the dense model by hand, with the map instead of layers 2 and 3."""
    way = layerwise.start_forward(model, {"input_ids": texts(), "attention_mask": None, "use_cache": False})
    with torch.no_grad():
        h = way.step(1, way.step(0, way.h_BTD))
        return way.logits(way.step(5, way.step(4, h + h @ least_squares.map_matrix(parts))))


def test_no_rank_limited_map_beats_the_reduced_one():
    chance = torch.Generator().manual_seed(0)
    z = torch.randn(200, 6, generator=chance, dtype=torch.float64) @ torch.randn(6, 6, generator=chance).double()
    r = torch.randn(200, 6, generator=chance, dtype=torch.float64)
    sums = SufficientStatistics.of_width(z)
    for rows in (slice(0, 70), slice(70, 200)):
        sums.add(z[rows], r[rows])
    left, right = (
        least_squares.fit_map(sums, "low_rank", 0.0, 2)[name].clone().requires_grad_() for name in ("left", "right")
    )
    best = (z @ left @ right - r).square().sum()
    assert sums.unexplained((left @ right).detach()) == pytest.approx((best / r.square().sum()).item())
    assert max(g.abs().max() for g in torch.autograd.grad(best, [left, right])) < 1e-8 * best
    for _ in range(200):
        other = (left + 0.1 * torch.randn(left.shape, generator=chance)) @ (
            right + 0.1 * torch.randn(2, 6, generator=chance)
        )
        assert (z @ other - r).square().sum() > best


def test_strong_ridge_approaches_the_plain_cut(llama):
    folder, model = llama
    here, filled = replaced(folder, model, "linear replace.ridge=1e9")
    assert_near(logits(filled), logits(here.dense.load(PLAN)))


def test_constant_and_duplicate_features_give_finite_maps():
    z = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = torch.cat([z, torch.zeros(50, 1), z[:, :1]], dim=1)
    sums = SufficientStatistics.of_width(z)
    sums.add(z, z @ torch.arange(25.0).double().view(5, 5))
    for kind in ("full", "diagonal"):
        found = least_squares.map_matrix(least_squares.fit_map(sums, kind, 0.0, None))
        assert found.isfinite().all() and found[3].abs().max() == 0
    assert sums.unexplained(least_squares.fit_full_matrix(sums, 0.0)) < 1e-9


def test_linear_layers_are_restored_exactly(tmp_path):
    """Each token attends to itself alone, norms only scale, MLPs output zero: the layers are matrices."""
    model = model_of("mistral", sliding_window=1, rms_norm_eps=1e10)
    with torch.no_grad():
        for layer in layers.layer_list(model):
            layer.mlp.down_proj.weight.zero_()
            layer.input_layernorm.weight.mul_(1e5)
        model.model.norm.weight.mul_(1e5)
    here, filled = replaced(tmp_path, model, "linear replace.ridge=0")
    assert (logits(here.dense.load(PLAN)) - logits(model)).abs().max() > 1
    assert_near(logits(filled), logits(model))


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox", "gpt2"])
def test_fused_map_equals_replacemes(family, tmp_path):
    """T = (M^T M)^-1 M^T (Y - X + M), W_down <- T^T W_down, with M as hooks see it."""
    model, plan = model_of(family), Plan(DEPTH, (2, 4))
    here, filled = replaced(tmp_path, model, "linear replace.fuse=true replace.ridge=0", plan)
    name = {"llama": "mlp.down_proj", "opt": "fc2", "gpt_neox": "mlp.dense_4h_to_h", "gpt2": "mlp.c_proj"}[family]
    for start, stop in ((2, 3), (4, 5)):
        seen, outputs = [], []
        writer = layers.layer_list(model)[start - 1].get_submodule(name)
        handle = writer.register_forward_hook(
            lambda _, __, out, outputs=outputs: outputs.append(out.reshape(-1, 64).numpy())
        )
        seen = edges(model, here)
        handle.remove()
        m = np.concatenate(outputs).astype(float)
        t = np.linalg.solve(m.T @ m, m.T @ (seen[stop] - seen[start] + m))
        got = layers.layer_list(filled)[plan.keep.index(start - 1)].get_submodule(name)
        new, old = (orient_weight(each, each.weight.detach()).double().numpy() for each in (got, writer))
        np.testing.assert_allclose(new, t.T @ old, rtol=0.02, atol=5e-3)
        if writer.bias is not None:
            np.testing.assert_allclose(
                got.bias.numpy(), t.T @ writer.bias.detach().double().numpy(), rtol=0.02, atol=5e-3
            )


def test_laco_by_hand(llama):
    folder, model = llama
    plan = Plan(DEPTH, (1, 3, 4))
    _, merged = replaced(folder, model, "merge", plan)
    dense = [layer.state_dict() for layer in layers.layer_list(model)]
    new = [layer.state_dict() for layer in layers.layer_list(merged)]
    for name in dense[0]:
        assert_near(new[0][name], dense[1][name])  # 0 + (1 - 0)
        assert_near(new[1][name], dense[3][name] + dense[4][name] - dense[2][name])  # 2 + (3 - 2) + (4 - 2)
        assert torch.equal(new[2][name], dense[5][name])
    assert not torch.allclose(new[1]["mlp.up_proj.weight"], dense[4]["mlp.up_proj.weight"], atol=0.1)  # the notebooks'


def test_notebook_merge_is_last_layer_with_first_norms(llama):
    folder, model = llama
    plan = Plan(DEPTH, (1, 3, 4))
    here, merged = replaced(folder, model, "merge replace.formula=notebook", plan)
    dense = [layer.state_dict() for layer in layers.layer_list(model)]
    new = [layer.state_dict() for layer in layers.layer_list(merged)]
    for name, first in dense[0].items():
        assert_near(new[0][name], dense[1][name] if first.ndim > 1 else first)
        assert_near(new[1][name], dense[4 if first.ndim > 1 else 2][name])
    paper = opened(folder, model, "replace=merge")
    assert digests.pruned_digest(here, plan) != digests.pruned_digest(paper, plan) and here.digest != paper.digest
    assert paper.experiment.replace.reads(paper) is None and "formula" not in digests.method_fields(
        paper.experiment.replace
    )


def test_layer_is_trained_on_error_after_the_gap(llama):
    """Two steps, against the plain loop: hooks, one document at a time, torch's AdamW by its paper's formula."""
    folder, model = llama
    words = "layer replace.steps=2 replace.batch=3 replace.lr=1e-2 replace.lr_end=0 replace.weight_decay=0.1"
    here, filled = replaced(folder, model, words)
    assert len(layers.layer_list(filled)) == filled.config.num_hidden_layers == DEPTH - 1
    text = here.texts.part("train", 6)
    student = {n: p.detach().double().clone() for n, p in layers.layer_list(model)[2].named_parameters()}
    first, second = ({n: torch.zeros_like(p) for n, p in student.items()} for _ in range(2))
    for step, lr in ((1, 1e-2), (2, 5e-3)):
        rows = text.ids[3 * (step - 1) : 3 * step]
        gradient = gradients(model, student, torch.from_numpy(rows.astype(np.int64)))
        for name, g in gradient.items():
            student[name] *= 1 - lr * 0.1
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.95 * second[name] + 0.05 * g**2
            change = first[name] / (1 - 0.9**step) / ((second[name] / (1 - 0.95**step)).sqrt() + 1e-8)
            student[name] -= lr * change
    got = layers.layer_list(filled)[2].state_dict()
    for name, wanted in student.items():
        moved = (wanted - layers.layer_list(model)[2].state_dict()[name]).abs().max()
        assert (got[name] - wanted).abs().max() < 0.05 * moved, name


def gradients(model, student, ids) -> dict[str, torch.Tensor]:
    exact = AutoModelForCausalLM.from_config(model.config, dtype=torch.float64)
    exact.load_state_dict(model.state_dict())
    states = exact.model(ids, output_hidden_states=True).hidden_states
    layer = exact.model.layers[2]
    layer.load_state_dict(student)
    place = exact.model.rotary_emb(states[2], torch.arange(ids.shape[1])[None])
    out = layer(states[2].detach(), position_embeddings=place)
    error = (out - states[4].detach()).square().mean()
    return dict(
        zip(student, torch.autograd.grad(error, [dict(layer.named_parameters())[n] for n in student]), strict=True)
    )


def test_layer_before_zero_layers_learns_nothing(tmp_path):
    model = model_of("llama")
    with torch.no_grad():
        for part in (layers.layer_list(model)[3].self_attn.o_proj, layers.layer_list(model)[3].mlp.down_proj):
            part.weight.zero_()
    _, filled = replaced(tmp_path, model, "layer replace.steps=2 replace.batch=2 replace.weight_decay=0")
    assert_near(logits(filled), logits(model))


def test_training_lowers_the_error(llama, caplog):
    caplog.set_level("INFO", "depthcut")
    replaced(*llama, "layer replace.steps=60 replace.batch=4 replace.lr=1e-2")
    (line,) = [line for line in caplog.messages if "squared error" in line]
    first, last = (float(each) for each in re.findall(r"([\d.e+-]+) in the (?:first batch|last)", line))
    assert last < 0.85 * first


def test_diverged_training_writes_no_layer(llama):
    words = "layer replace.steps=20 replace.batch=2 replace.lr=1e15 replace.save_every=1"
    with pytest.raises(ValueError, match=r"^diverged: replace=layer has a non-finite loss at step \d+; use a lower"):
        replaced(*llama, words)
    here = opened(*llama, *f"replace={words}".split())
    assert not (here.cache / "replacements" / digests.pruned_digest(here, PLAN)).exists()


@pytest.mark.slow
def test_killed_training_resumes_bit_identically(tmp_path, caplog):
    """In a process of its own that is killed; another one resumes, and its file equals that of an uninterrupted run."""
    text = ("data=files", *running.text_files(tmp_path), "data.train.length=64", "data.validation.length=64")
    layer = ("replace=layer", "replace.steps=60", "replace.save_every=2", "prune=deepest", "prune.layers=3")
    asked = ("heal=none", "export=none", "eval=[loss]", "stages=[pruned]", "data.validation.sequences=4")
    words = ("model=pico", *text, *layer, *asked)
    process = running.start(f"outputs={tmp_path}/killed", *words)
    while not (found := list(tmp_path.glob("killed/cache/replacements/*.ckpt"))):
        assert process.poll() is None and not time.sleep(0.005)
    process.kill()
    process.communicate()
    assert found[0].exists() and not found[0].with_suffix("").exists()

    caplog.set_level("INFO", "depthcut")
    made = []
    for name in ("killed", "undisturbed"):
        here = open_run(build.build_experiment(composed(f"outputs={tmp_path}/{name}", *words)))
        algorithm.run_experiment(here.experiment, here)
        made.append((here.cache / "replacements" / found[0].stem / "replacement.safetensors").read_bytes())
    (line,) = [line for line in caplog.messages if "resumes at step" in line]
    assert 0 < int(line.partition("step ")[2].partition(":")[0]) < 60
    assert made[0] == made[1] and not found[0].exists()
    known = [line for line in caplog.messages if line.startswith("replacement layers")]
    assert known[0] == known[1]


@pytest.mark.parametrize(
    ("family", "words"), [(f, w) for f in KINDS for w in (*FITTED, *IN_PLACE) if (f, w) != REFUSED]
)
def test_filled_model_saves_and_loads(family, words, tmp_path):
    model, plan = model_of(family), Plan(DEPTH, (1, 2, 4)) if "layer" not in words else Plan(DEPTH, (1, 2))
    here, filled = replaced(tmp_path, model, words, plan)
    assert (logits(filled) - logits(here.dense.load(plan))).abs().max() > 0.01
    assert torch.equal(written(filled, use_cache=True), written(filled, use_cache=False))
    wanted = logits(filled)
    way = layerwise.start_forward(filled, {"input_ids": texts(), "attention_mask": None, "use_cache": False})
    with torch.no_grad():
        h = way.h_BTD
        for index in range(len(way.stack)):
            h = way.step(index, h)
        assert torch.equal(way.logits(h), wanted)
    exported.write_exported(filled, plan, tmp_path / "out")
    assert torch.equal(logits(filled), wanted), "it is left as it was"
    again = depthcut.load(tmp_path / "out", dtype="float32")
    assert torch.equal(logits(again), wanted)
    assert torch.equal(written(again, use_cache=True), written(filled, use_cache=True))
    if words in FITTED:
        with pytest.raises(ValueError, match="depthcut"):
            AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    else:
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), wanted)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_streamed_fit_equals_in_memory_fit(family, tmp_path):
    model, plan = model_of(family), Plan(DEPTH, (1, 2, 5))
    for words in ("mean", "linear", "linear replace.fuse=true"):
        if (family, words) != REFUSED:
            found = []
            for stream in ("never", "always"):
                here = opened(tmp_path, model, *f"replace={words} prune.keep_last=0 stream={stream}".split())
                found.append(here.experiment.replace.made(here.dense.load(plan), plan, here).tensors)
            assert here.dense._stream is None
            assert found[0].keys() == found[1].keys()
            for name, tensor in found[0].items():
                torch.testing.assert_close(found[1][name], tensor, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="trains against the dense model, which must be in memory"):
        replaced(tmp_path, model, "layer stream=always")


@pytest.mark.parametrize("words", [*FITTED[:2], *IN_PLACE])
def test_replacement_is_fitted_once_without_side_effects(llama, words):
    folder, model = llama
    here = opened(folder, model, *f"replace={words}".split(), "data.calibration.sequences=50")
    cut = here.dense.load(PLAN)
    before, reads = logits(cut), here.checkpoint.bytes_read
    here.experiment.replace.made(cut, PLAN, here)
    assert torch.equal(logits(cut), before) and here.checkpoint.bytes_read > reads
    first = here.experiment.replace(cut, PLAN, here)
    again, reads = here.dense.load(PLAN), here.checkpoint.bytes_read
    here.experiment.replace(again, PLAN, here)
    assert here.checkpoint.bytes_read == reads, "what is on file is not fitted again"
    assert torch.equal(logits(first), logits(again))


def test_names_cover_replacement_data_and_options(llama):
    folder, model = llama
    names = {
        (here.digest, here.subject("pruned"))
        for knobs in (
            ["replace=none"],
            ["replace=mean"],
            ["replace=linear"],
            ["replace=linear", "replace.ridge=0.5"],
            ["replace=linear", "data.calibration.sequences=40"],
        )
        for here in [planned(opened(folder, model, *knobs, "prune=deepest"))]
    }
    assert len({digest for digest, _ in names}) == len({subject for _, subject in names}) == 5
    slow, fast = (planned(opened(folder, model, "replace=mean", f"replace.batch={n}")) for n in (1, 2))
    assert slow.digest == fast.digest


def planned(here):
    here.plan = PLAN
    return here


@pytest.mark.parametrize("words", ["mean", "linear", "linear replace.fuse=true", "merge", "layer replace.steps=2"])
def test_on_a_four_bit_base(words, llama):
    folder, model = llama
    here, filled = replaced(folder, model, words, PLAN, "model.quantise=nf4", "model.dtype=bfloat16", "heal=none")
    assert filled.is_loaded_in_4bit
    linear = [part for part in layers.layer_list(filled).modules() if isinstance(part, nn.Linear)]
    assert all(type(part).__name__ == "Linear4bit" for part in linear)
    assert all(part.weight.dtype == torch.uint8 for part in linear)
    exact = replaced(folder, model, words)[1]
    gap = (logits(here.dense.load(PLAN)) - logits(exact)).norm()
    assert (logits(filled) - logits(exact)).norm() < gap
    before = logits(filled)
    assert (logits(export.dequantise_model(filled)) - before).norm() < 0.02 * before.norm()


def test_unsuitable_cuts_are_refused_before_loading(llama):
    for words, knobs, message in (
        ("linear", ["prune.unit=attention"], r"replace=linear replaces whole layers, got prune.unit=attention"),
        ("merge", ["prune.frac=0"], r"replace=merge has no gap to fill: nothing is cut"),
        ("layer", ["prune.layers=1"], r"replace=layer replaces several layers by one, but one is cut"),
        ("linear", ["replace.rank=3"], r"replace.map=full has no rank: use replace.rank=null"),
        ("linear", ["replace.map=low_rank"], r"replace.map=low_rank needs replace.rank"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(*llama, f"replace={words}", *knobs)


@pytest.mark.parametrize(
    ("words", "drop", "message"),
    [
        ("merge", (0, 1), "layer 0 has none: use prune.keep_first=1"),
        ("linear replace.fuse=true", (0,), "layer 0 has none: use prune.keep_first=1 or replace.fuse=false"),
        ("layer", (1, 3, 4), "layer 1 is cut alone"),
        ("linear replace.map=low_rank replace.rank=65", (1,), "replace.rank must be at most 64"),
        ("linear data.calibration.sequences=1", (1,), "needs at least 64 tokens"),
    ],
)
def test_unfillable_gaps_are_refused(words, drop, message, llama):
    with pytest.raises(ValueError, match=message):
        replaced(*llama, words, Plan(DEPTH, drop))


@pytest.mark.parametrize("words", ["mean", "linear replace.map=diagonal"])
def test_non_finite_states_give_no_map(words, tmp_path):
    model = model_of("llama")
    layers.layer_list(model)[2].mlp.down_proj.weight.data.fill_(float("inf"))
    with pytest.raises(ValueError, match="none of the calibration tokens produced finite hidden states"):
        replaced(tmp_path, model, words)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_map_before_an_output_norm_is_refused(family, tmp_path):
    with pytest.raises(ValueError, match=r"normalises its MLP's output before adding it; use replace.fuse=false"):
        replaced(tmp_path, model_of(family), "linear replace.fuse=true")


def test_saved_config_describes_the_replacement(llama, tmp_path):
    _, filled = replaced(*llama, "mean")
    exported.write_exported(filled, PLAN, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["base"]["num_hidden_layers"]) == ("depthcut", 4)
    assert Plan.from_dict(config["plan"]).drop == PLAN.drop
    described = json.loads((tmp_path / "replacement.json").read_text())
    assert described == {"format": 1, "kind": "bridges", "more": {}}


def test_unknown_format_or_damaged_replacement_is_refused(llama, tmp_path):
    _, filled = replaced(*llama, "mean")
    exported.write_exported(filled, PLAN, tmp_path)
    described = json.loads((tmp_path / "replacement.json").read_text())
    (tmp_path / "replacement.json").write_text(json.dumps({**described, "format": 99}))
    with pytest.raises(ValueError, match="expected format 1, got 99"):
        depthcut.load(tmp_path)
    (tmp_path / "replacement.safetensors").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"the replacement in .* is damaged"):
        depthcut.load(tmp_path)


HEALED = ("heal=lora", "heal.steps=2", "heal.warmup=1", "heal.batch=2", "heal.micro_batch=2", "heal.length=32")


@pytest.mark.filterwarnings("ignore")  # Lightning warns of SLURM, of workers, of its own dependencies
@pytest.mark.parametrize(
    ("words", "heal"),
    [
        ("mean", HEALED),
        ("shared replace.rank=4 replace.gain=0.5", HEALED),
        ("linear replace.fuse=true", HEALED),
        ("layer replace.steps=2 replace.batch=2", HEALED),
        ("shared replace.rank=4 replace.gain=0.5", ("heal=none",)),
    ],
)
def test_whole_run_measures_heals_and_exports(llama, words, heal, tmp_path):
    """The exported model has the loss that was measured last; without the replacement it has another."""
    folder, model = llama
    knobs = ("prune=deepest", "prune.layers=2", f"name={tmp_path.name}", *heal)
    here = opened(folder, model, *f"replace={words}".split(), *knobs)
    algorithm.run_experiment(here.experiment, here)
    stage = "healed" if heal is HEALED else "pruned"
    again = depthcut.load(here.folder / "model", dtype="float32")
    (found,) = next(iter(here.experiment.eval.values()))(again, here)
    assert found["validation/loss"] == pytest.approx(here.numbers[f"{stage}/validation/loss"], rel=1e-5)
    bare = opened(folder, model, "replace=none", *knobs[:3], "heal=none", "export=none")
    algorithm.run_experiment(bare.experiment, bare)
    assert abs(bare.numbers["pruned/validation/loss"] - here.numbers["pruned/validation/loss"]) > 1e-3
    assert f"In the gaps: `{words.split()[0]}`." in (here.folder / "model" / "README.md").read_text()
    assert here.numbers["bytes/weights"] == sum(p.nbytes for p in again.parameters())
