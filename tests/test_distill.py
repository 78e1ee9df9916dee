"""heal=distill: its loss against other computations, cached and live teachers, whole runs."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributions import Categorical, kl_divergence

from composing import composed
from depthcut.config import build
from depthcut.cut.plan import Plan
from depthcut.heal.training import adapter_modules, distill, objective, teacher, topk_teacher
from depthcut.heal.training.batches import MicroBatch
from depthcut.heal.training.fit import applied_layout
from depthcut.heal.training.memory_plan import Layout
from depthcut.runtime import store
from depthcut.runtime.strict import method_fields
from depthcut.study import preflight, runlog
from depthcut.study.run import Run, open_run
from pico import FAMILIES, pico, randomise_lora_b, slope, texts
from recipes import distill_recipe
from running import PICO, UNHEALED, kill_in_healing, run, succeed, text_files

SHORT = ("heal.steps=6", "heal.warmup=1", "heal.batch=4", "heal.micro_batch=2", "export=none")
CUT = Plan(8, (4, 5))


def student(family: str = "llama", seed: int = 0) -> Any:
    """Return a pruned model with random adapters."""
    torch.manual_seed(seed)
    adapted = adapter_modules.add_adapters(
        pico(family, layers=3, seed=7), distill_recipe(rank=4, alpha=4.0), Plan(4, (2,))
    ).eval()
    return randomise_lora_b(adapted)


def batch() -> MicroBatch:
    ids = texts(3, 12)
    return MicroBatch(ids, torch.arange(len(ids)))


def gradient(loss: torch.Tensor, model: Any) -> torch.Tensor:
    trained = [each for each in model.parameters() if each.requires_grad]
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, trained)])


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("k", [1, 5, 39, 40])
def test_divergence_equals_kl_over_explicit_classes(k):
    chance = np.random.default_rng(0)
    z, t = 3 * chance.normal(size=(2, 7, 40))
    p, q = softmax(t), softmax(z)
    order = np.argsort(-p, -1)[:, :k]
    wanted = []
    for row in range(7):
        inside = set(order[row].tolist())
        classes = [(p[row, i], q[row, i]) for i in inside]
        if k < 40:
            classes.append(tuple(sum(each[row, i] for i in range(40) if i not in inside) for each in (p, q)))
        wanted.append(sum(a * math.log(a / b) for a, b in classes))
    log_p_NC = np.log(
        np.concatenate(
            [np.take_along_axis(p, order, -1), 1 - np.take_along_axis(p, order, -1).sum(-1, keepdims=True)], -1
        )[:, : k + (k < 40)]
    )
    given = (torch.tensor(z), torch.tensor(order), torch.tensor(log_p_NC))
    got = distill.topk_divergence(given[0].float(), given[1], given[2].float())
    np.testing.assert_allclose(got.numpy(), wanted, rtol=2e-4)
    whole = kl_divergence(Categorical(logits=torch.tensor(t)), Categorical(logits=torch.tensor(z)))
    if k == 40:
        torch.testing.assert_close(got, whole.float(), rtol=1e-5, atol=1e-5)
    else:
        assert (got < whole + 1e-6).all()


def test_tiny_remaining_probability_is_not_ignored():
    """1 - q(S) is 0 in float32 here."""
    z_NV = torch.full((1, 8), -25.0)
    z_NV[0, 0] = 0.0
    z_NV.requires_grad_()
    ids_NK, log_p_NC = torch.tensor([[0]]), torch.tensor([[0.5, 0.5]]).log()
    got = distill.topk_divergence(z_NV, ids_NK, log_p_NC)
    wanted = -math.log(2) + 0.5 * (25 - math.log(7))  # q(S) is 1, q(other) is 7 exp(-25)
    assert got.item() == pytest.approx(wanted, rel=1e-5)
    got.backward()
    torch.testing.assert_close(z_NV.grad, torch.tensor([[0.5] + [-0.5 / 7] * 7]))


def test_identical_teacher_gives_zero_loss_and_gradient():
    z_NV = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)).requires_grad_()
    log_p_NV = z_NV.detach().log_softmax(-1)
    log_p_NK, ids_NK = log_p_NV.topk(9)
    log_p_NC = torch.cat([log_p_NK, topk_teacher.remaining_log_prob(log_p_NV, ids_NK)], -1)
    loss = distill.topk_divergence(z_NV, ids_NK, log_p_NC).sum()
    assert abs(loss.item()) < 1e-5
    assert torch.autograd.grad(loss, z_NV)[0].abs().max() < 1e-6
    model = student()
    whole = distill.distill_objective(
        topk_teacher.live_topk_teacher(model, distill_recipe(mix=1.0)), distill_recipe(mix=1.0)
    )(model, batch())
    text = objective.next_token_loss(model, batch())
    assert abs(whole.item()) < 1e-5
    assert gradient(whole, model).norm() < 1e-3 * gradient(text, model).norm()  # the teacher is in half precision


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
@pytest.mark.parametrize(("mix", "temperature"), [(1.0, 1.0), (0.3, 2.5)])
def test_loss_equals_the_formula_on_all_logits(family, mix, temperature):
    heal, dense, model, some = (
        distill_recipe(mix=mix, temperature=temperature),
        pico(family, layers=4),
        student(family),
        batch(),
    )
    got = distill.distill_objective(topk_teacher.live_topk_teacher(dense, heal), heal)(model, some).item()
    with torch.no_grad():
        z, t = (each(some.ids_BT).logits[:, :-1].double().flatten(0, 1).numpy() for each in (model, dense))
    p, q = softmax(t / temperature), softmax(z / temperature)
    total = 0.0
    for row, answer in enumerate(some.ids_BT[:, 1:].flatten().tolist()):
        best = np.argsort(-p[row])[:16]
        a, b = np.append(p[row, best], 1 - p[row, best].sum()), np.append(q[row, best], 1 - q[row, best].sum())
        total += mix * temperature**2 * float((a * np.log(a / b)).sum()) - (1 - mix) * math.log(softmax(z[row])[answer])
    assert got == pytest.approx(total / 33, rel=1e-3)


def test_gradient_equals_finite_differences():
    heal, model, some = distill_recipe(mix=0.5, temperature=2.0), student(), batch()
    loss = distill.distill_objective(topk_teacher.live_topk_teacher(pico("llama", layers=4), heal), heal)
    towards = gradient(loss(model, some), model)
    assert slope(lambda: loss(model, some), model, towards) == pytest.approx(towards.norm().item(), rel=1e-2)


def test_chunked_logits_give_the_same_gradient(monkeypatch):
    heal, dense, model, some = distill_recipe(mix=0.5), pico("llama", layers=4), student(), batch()
    wanted = gradient(distill.distill_objective(topk_teacher.live_topk_teacher(dense, heal), heal)(model, some), model)
    made: list[int] = []
    for each in (dense, objective.base_model(model)):
        each.lm_head.register_forward_hook(lambda _, __, logits: made.append(logits.shape[-2]))
    monkeypatch.setattr(objective, "CHUNK_BYTES", 5 * 4 * 128)
    got = gradient(distill.distill_objective(topk_teacher.live_topk_teacher(dense, heal), heal)(model, some), model)
    assert sorted(made) == [3, 3, *[5] * 12]  # 33 positions, of the student and of the teacher
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_layers_give_the_same_gradient(family):
    heal, dense, some = distill_recipe(), pico(family, layers=4), batch()
    loss = distill.distill_objective(topk_teacher.live_topk_teacher(dense, heal), heal)
    model = student(family)
    wanted = gradient(loss(model, some), model)
    with applied_layout(model, Layout(3, 2, False)):
        torch.testing.assert_close(gradient(loss(model, some), model), wanted, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[str, ...]:
    return text_files(tmp_path_factory.mktemp("text"))


def opened(*overrides: str) -> Run:
    return open_run(build.build_experiment(composed(*UNHEALED, *SHORT, *overrides)))


def healed(here: Run, plan: Plan = CUT) -> dict[str, torch.Tensor]:
    """Heal and return the trained adapters."""
    plan = here.decide(plan)
    with runlog.quiet_libraries():
        here.experiment.heal(here.dense.load(plan), plan, here)
    return load_file(here.folder / "adapter" / adapter_modules.ADAPTER_FILE)


def losses(here: Run) -> list[float]:
    rows = (here.folder / "heal.csv").read_text().splitlines()
    return [float(row.split(",")[3]) for row in rows[1:]]


@pytest.mark.parametrize("more", [(), ("heal.temperature=2.0", "heal.mix=1.0", "heal.top_k=256")])
def test_cached_and_live_teachers_train_the_same_weights(tmp_path, corpus, more):
    points = [
        opened(*corpus, "heal=distill", f"outputs={tmp_path}/{way}", f"heal.teacher={way}", *more)
        for way in ("cached", "live")
    ]
    one, other = (healed(here) for here in points)
    assert points[0].digest == points[1].digest
    assert (tmp_path / "cached/cache/teacher").exists() and not (tmp_path / "live/cache/teacher").exists()
    assert one.keys() == other.keys() and max(t.abs().max() for n, t in one.items() if "lora_B" in n) > 1e-3
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("quantise", ["none", "nf4", "int8"])
def test_training_lowers_the_loss_on_every_base(tmp_path, corpus, quantise):
    here = opened(
        *corpus,
        "heal=distill",
        f"outputs={tmp_path}",
        f"model.quantise={quantise}",
        "model.hidden=64",
        "heal.mix=1.0",
        "heal.steps=12",
    )
    healed(here)
    assert losses(here)[-1] < 0.9 * losses(here)[0]


def test_teacher_cache_is_by_content(tmp_path, corpus):
    """Of a longer run only the rows that are new are read; another cut reads none, another temperature or top_k all."""

    def blocks(*more: str) -> set[str]:
        here = opened(*corpus, "heal=distill", f"outputs={tmp_path}", "heal.batch=16", *more)
        topk_teacher.cached_topk_teacher(here, here.experiment.heal)  # pyright: ignore
        return {path.parent.name for path in tmp_path.glob("cache/teacher/*/*.safetensors")}

    first = blocks("heal.steps=4")
    assert len(first) == 2  # 64 rows
    assert blocks("heal.steps=4", "prune.layers=3", "heal.mix=0.1", "seed=5") == first
    assert len(blocks("heal.steps=6") - first) == 1
    assert len(blocks("heal.steps=4", "heal.temperature=2.0")) == len(blocks("heal.steps=4", "heal.top_k=8")) - 2 == 5


def test_cached_rows_match_the_teacher_and_predicted_size(tmp_path, corpus):
    here = opened(*corpus, "heal=distill", f"outputs={tmp_path}", "heal.steps=10", "heal.top_k=9")
    heal: Any = here.experiment.heal
    teach, dense = topk_teacher.cached_topk_teacher(here, heal), here.dense.whole()
    text = here.texts.train()
    rows_B = torch.tensor([38, 3, 33])
    ids_BT = torch.from_numpy(text.ids[rows_B.numpy()].astype(np.int64))
    ids_NK, log_p_NC = teach(MicroBatch(ids_BT, rows_B))(torch.arange(3 * 63))
    with torch.no_grad():
        log_p_NV = dense(ids_BT).logits[:, :-1].log_softmax(-1).flatten(0, 1)
    torch.testing.assert_close(log_p_NC[:, :-1].float(), log_p_NV.gather(1, ids_NK), rtol=1e-3, atol=1e-4)
    assert (ids_NK[:, 0] == log_p_NV.argmax(-1)).all()
    whole = torch.cat([log_p_NC[:, :-1].float().exp(), log_p_NC[:, -1:].float().exp()], -1).sum(-1)
    torch.testing.assert_close(whole, torch.ones(189), rtol=1e-3, atol=0)
    sizes = [path.stat().st_size for path in tmp_path.glob("cache/teacher/*/*.safetensors")]
    promised = 40 * 63 * (4 * 9 + 2)
    assert len(sizes) == 2 and promised <= sum(sizes) < promised + 1000


def test_interrupted_teacher_cache_resumes(tmp_path, corpus):
    here = opened(*corpus, f"outputs={tmp_path}", "heal=distill", "heal.steps=24")  # three blocks of rows
    read: list[int] = []

    def ready(blocks: int) -> Any:
        def says(ids_BT: torch.Tensor) -> dict[str, torch.Tensor]:
            if len(read) == blocks:
                raise KeyboardInterrupt
            read.append(len(ids_BT))
            return {"sum": ids_BT.sum(-1)}

        return lambda: says

    with pytest.raises(KeyboardInterrupt):
        teacher.cache_teacher_outputs(here, {"asked": "sum"}, 8, "crossed", ready(2))
    read.clear()
    said = teacher.cache_teacher_outputs(here, {"asked": "sum"}, 8, "crossed", ready(1))
    assert read == [32]
    assert said(torch.tensor([70, 0, 95]))["sum"].tolist() == here.texts.train().ids[[70, 0, 95]].sum(-1).tolist()
    (said.blocks[1] / teacher.OUTPUT_FILE).write_bytes(b"damaged")
    read.clear()
    assert teacher.cache_teacher_outputs(
        here, {"asked": "sum"}, 8, "crossed", ready(1)
    ).blocks == said.blocks and read == [32]


def test_full_disk_is_refused_before_loading_the_teacher(tmp_path, corpus):
    here = opened(*corpus, f"outputs={tmp_path}", "heal=distill")

    def ready() -> Any:
        raise AssertionError

    with pytest.raises(ValueError, match=r"heal\.teacher=cached needs \d+\.\d GiB .* free: use heal\.teacher=live"):
        teacher.cache_teacher_outputs(here, {"asked": "x"}, 2**60, "crossed", ready)


def test_teacher_loads_only_the_needed_layers(tmp_path, corpus):
    here = opened(*corpus, f"outputs={tmp_path}", "heal=distill")
    assert len(teacher.load_teacher(here, 3).model.layers) == 3  # pyright: ignore


def test_teacher_that_does_not_fit_is_refused():
    with pytest.raises(
        ValueError, match=r"the teacher needs \d+\.\d GiB in addition to the pruned model, .* free on cpu: use"
    ):
        teacher.check_teacher_memory(2**60, "cpu")


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("heal.mix=0", "heal.mix"),
        ("heal.top_k=0", "heal.top_k"),
        ("heal.temperature=0", "heal.temperature"),
        ("heal.teacher=none", "heal.teacher"),
    ],
)
def test_invalid_option_is_one_line(more, line):
    with pytest.raises(ValueError, match=line) as told:
        build.build_experiment(composed("model=pico", "heal=distill", more))
    assert "\n" not in str(told.value)


def test_top_k_above_the_vocabulary_is_refused(tmp_path, corpus):
    here = opened(*corpus, f"outputs={tmp_path}", "heal=distill", "heal.top_k=100000")
    with pytest.raises(ValueError, match=r"heal\.top_k must be at most \d+, the model's vocabulary, got 100000"):
        preflight.prepare_run(here)


def test_digest_covers_only_settings_that_change_numbers():
    def name(*more: str) -> str:
        x: Any = build.build_experiment(composed("model=pico", "heal=distill", *more))
        return store.content_digest(method_fields(x.heal))

    assert name() == name("heal.teacher=live") == name("heal.micro_batch=1")
    assert len({name(), name("heal.mix=0.4"), name("heal.top_k=65"), name("heal.temperature=1.5")}) == 4


def test_killed_run_ends_with_the_same_better_model(tmp_path, corpus):
    more = (
        "heal=distill",
        "heal.steps=12",
        "heal.save_every=2",
        "heal.dropout=0.2",
        "export=none",
        "prune=deepest",
        "stages=[pruned,healed]",
    )
    arguments = (*PICO, *corpus, *more)
    undisturbed = succeed(f"outputs={tmp_path / 'a'}", *arguments)
    assert undisturbed["healed/validation/loss"] < undisturbed["pruned/validation/loss"]
    assert undisturbed["seconds/teacher"] > 0
    kill_in_healing(tmp_path / "b", *arguments)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("b/cache/teacher/*/*")}
    resumed = run(f"outputs={tmp_path / 'b'}", *arguments)
    assert resumed.returncode == 0 and "healing resumes at step" in resumed.stderr and "teacher:" not in resumed.stderr
    assert stamps and all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")


def weights_of(outputs: Path) -> bytes:
    return next(outputs.glob(f"main/*/adapter/{adapter_modules.ADAPTER_FILE}")).read_bytes()
