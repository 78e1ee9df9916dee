"""FlexiGPT: dropped layers share a kept layer's weights and have separate adapters and norms."""

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig

import depthcut
from adapting import train_briefly
from comparing import assert_near
from depthcut import algorithm
from depthcut.cut.plan import Plan
from depthcut.heal.training import adapter_modules
from depthcut.model.checkpoint import exported
from depthcut.model.decoder import layers
from depthcut.model.decoder.inputs import token_losses
from depthcut.model.decoder.quantisation import LoadConfig
from depthcut.model.surgery import gaps, inserted, shared
from depthcut.model.surgery.filling import Filling
from depthcut.replace.fitting import low_rank, weight_distance
from depthcut.replace.shared import Shared
from depthcut.study import export
from gaps import DEPTH, model_of, opened
from pico import CACHE, logits, texts, written

PLAN = Plan(DEPTH, (1, 2, 4))
FAMILIES = ("llama", "qwen2", "qwen3", "phi", "opt", "gpt_neox", "gpt2")


def filled(folder, model, *knobs: str, plan: Plan = PLAN):
    here = opened(folder, model, "replace=shared", "replace.rank=64", "heal=none", *knobs)
    return here, here.experiment.replace(here.dense.load(plan), plan, here)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tmp_path_factory.mktemp("llama"), model_of("llama")


def rebuilt(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, vh = np.linalg.svd(matrix.astype(float), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (12, 12)])
@pytest.mark.parametrize("rank", [3, 7, 50])
def test_distance_and_approximation_equal_whole_svds(shape, rank):
    chance = np.random.default_rng(0)
    one, other = (chance.normal(size=shape) @ np.diag(0.8 ** np.arange(shape[1])) for _ in range(2))
    pairs = [low_rank.truncated_svd(torch.from_numpy(each).float(), rank) for each in (one, other)]
    for pair, each in zip(pairs, (one, other), strict=True):
        np.testing.assert_allclose(pair.product.numpy(), rebuilt(each, rank), atol=1e-4)
        np.testing.assert_allclose((pair.right @ pair.right.T).numpy(), np.eye(min(rank, *shape)), atol=1e-4)
    difference = rebuilt(one, rank) - rebuilt(other, rank)
    wanted = np.linalg.norm(difference - rebuilt(difference, rank))  # eq. 2
    assert low_rank.truncation_error(*pairs, rank) ** 0.5 == pytest.approx(wanted, rel=1e-4, abs=1e-3)


def test_known_distances():
    """Of rank r matrices r + r directions apart, the r weaker ones are left; of equal ones nothing."""
    one, other = torch.diag(torch.tensor([9.0, 8, 0, 0, 0])), torch.diag(torch.tensor([0.0, 0, 7, 6, 0]))
    pairs = [low_rank.truncated_svd(each, 2) for each in (one, other)]
    assert low_rank.truncation_error(*pairs, 2) == pytest.approx(7**2 + 6**2, rel=1e-5)
    assert low_rank.truncation_error(pairs[0], pairs[0], 2) < 1e-8
    assert low_rank.truncated_svd(torch.zeros(3, 4), 2).product.abs().max() == 0


def test_bases_equal_brute_force_search(llama):
    """Eq. 5 over all seven matrices, by whole SVDs; and the base of a layer with an equal one is that one."""
    folder, model = llama
    here = opened(folder, model, "replace=shared")
    found = weight_distance.layer_distances(here, 4)
    weights = [
        {n: p.detach().numpy() for n, p in each.named_parameters() if p.ndim == 2} for each in layers.layer_list(model)
    ]
    for i, j in ((0, 1), (2, 5), (4, 3)):
        squares = []
        for name, matrix in weights[i].items():
            difference = rebuilt(matrix, 4) - rebuilt(weights[j][name], 4)
            squares.append(np.linalg.norm(difference - rebuilt(difference, 4)) ** 2)
        assert len(squares) == 7
        assert found[i][j] == found[j][i] == pytest.approx(np.sum(squares) ** 0.5, rel=1e-4)
    assert [found[i][i] for i in range(DEPTH)] == [0] * DEPTH
    bases = weight_distance.nearest_layers(PLAN, found)
    assert bases == {i: min((0, 3, 5), key=lambda j: found[i][j]) for i in (1, 2, 4)}


def test_identical_layer_becomes_the_base_read_once(tmp_path):
    model = model_of("llama")
    layers.layer_list(model)[4].load_state_dict(layers.layer_list(model)[5].state_dict())
    _, whole = filled(tmp_path, model, "replace.gain=null", "replace.rank=2", plan=Plan(DEPTH, (4,)))
    assert shared.extract_shared_layers(whole).options["bases"] == {"4": 5}
    assert_near(logits(whole), logits(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_full_rank_without_norm_equals_dense_model(family, tmp_path):
    model = model_of(family)
    _, whole = filled(tmp_path, model, "replace.gain=null", "replace.rank=128")
    assert_near(logits(whole), logits(model))
    assert torch.equal(written(whole, use_cache=True), written(model, use_cache=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_adapters_weights_are_the_bases(family, tmp_path):
    """In the dropped layer's position, with its own norms and biases."""
    model = model_of(family)
    _, whole = filled(tmp_path, model, "replace.gain=null")
    for part in whole.modules():
        if isinstance(part, shared.LowRankDelta):
            part.left.data.zero_()
    stack = layers.layer_list(model)
    for number, base in shared.extract_shared_layers(whole).options["bases"].items():
        for name, parameter in stack[int(number)].named_parameters():
            if parameter.ndim == 2:
                parameter.data.copy_(stack[base].get_parameter(name))
    assert_near(logits(whole), logits(model))


@pytest.mark.parametrize("rank", [1, 5])
def test_adapters_begin_as_svd_of_the_difference(llama, rank):
    folder, model = llama
    _, whole = filled(folder, model, f"replace.rank={rank}")
    fill = shared.extract_shared_layers(whole)
    for number, base in fill.options["bases"].items():
        for name in weight_distance.shareable_linears(layers.layer_list(model)[0]):
            mine, theirs = (layers.layer_list(model)[i].get_parameter(f"{name}.weight") for i in (int(number), base))
            left, right = (fill.tensors[f"{number}.{name}.own_delta.{side}"] for side in ("left", "right"))
            difference = (mine - theirs).detach().numpy()
            np.testing.assert_allclose((left @ right).numpy(), rebuilt(difference, rank), atol=1e-3)
            u, s, _ = np.linalg.svd(difference)
            np.testing.assert_allclose(left.norm(dim=0).numpy(), s[:rank], rtol=1e-3)  # A = U S, B = V^T
            assert left.shape == (len(u), rank)


@pytest.mark.parametrize("family", FAMILIES)
def test_output_norm_matches_the_paper(family, tmp_path):
    """With a small gain it nearly removes the layer."""
    model = model_of(family)
    here, whole = filled(tmp_path, model, "replace.gain=1e-6")
    assert_near(logits(whole), logits(here.dense.load(PLAN)))
    norms = {name: part for name, part in whole.named_modules() if isinstance(part, shared.OutputNorm)}
    assert len(norms) == 2 * len(PLAN.drop)
    norm = next(iter(norms.values()))
    norm.gain.data.uniform_(-1, 1)
    h = 5 * torch.randn(2, 3, 64, dtype=torch.float64) + 1
    wanted = (h - h.mean(-1, keepdim=True)) / h.std(-1, keepdim=True, correction=0) * norm.gain  # eq. 6
    torch.testing.assert_close(norm(h.float()).double(), wanted, rtol=1e-4, atol=1e-4)


def test_parameter_counts_match_the_paper():
    """9 of 32 layers of Llama-2-7B at rank 256: 179.9 M in adapters, 3.66 % of what is left; nothing is in memory."""
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, vocab_size=32000)
    plan = Plan(32, tuple(range(21, 30)))
    whole = layers.meta_model(config)
    with torch.device("meta"):
        empty = layers.layer_list(whole)
        like = {name: torch.empty(p.shape) for name, p in empty[0].named_parameters()}
        own = Shared(rank=256, gain=0.01).own(like, like, empty[0])
    more = {"bases": {str(i): 20 for i in plan.drop}, **inserted.dense_config_entry(config)}
    left = layers.meta_model(layers.trimmed_config(config, plan.drop))
    before = sum(p.numel() for p in left.parameters())
    fill = Filling("shared", {f"{i}.{n}": t for i in plan.drop for n, t in own.items()}, more)
    shared.insert_shared_layers(left, fill, LoadConfig("none", torch.float32, "meta"))
    deltas = [part for part in left.modules() if isinstance(part, shared.LowRankDelta)]
    adapters = sum(p.numel() for delta in deltas for p in delta.parameters())
    assert len(deltas) == 63
    assert (adapters, f"{adapters / 1e6:.1f}M", f"{100 * adapters / before:.2f} %") == (179896320, "179.9M", "3.66 %")
    added = sum(p.numel() for p in left.parameters()) - before
    assert added == adapters + 9 * 4 * 4096  # two output norms and the two norms in front, a layer


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
@pytest.mark.parametrize("plan", [PLAN, Plan(DEPTH, (0, 5))])
def test_saved_loaded_and_generated_with_a_cache(family, plan, tmp_path):
    model = model_of(family)
    here, whole = filled(tmp_path, model, "replace.rank=4", "replace.gain=0.5", "prune.keep_last=0", plan=plan)
    wanted = logits(whole)
    assert (wanted - logits(here.dense.load(plan))).abs().max() > 0.1
    assert torch.equal(written(whole, use_cache=True), written(whole, use_cache=False))
    with torch.no_grad():  # token by token
        cache, steps = None, []
        for token in texts().T:
            out = whole(token[:, None], **{CACHE: cache}, use_cache=True)
            cache, steps = out[CACHE], [*steps, out.logits]
    assert_near(torch.cat(steps, 1), wanted)
    assert len(cache.layers) == DEPTH
    exported.write_exported(whole, plan, tmp_path / "out")
    assert torch.equal(logits(whole), wanted), "it is left as it was"
    again = depthcut.load(tmp_path / "out", dtype="float32")
    assert torch.equal(logits(again), wanted)
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in whole.parameters())
    plain = AutoModelForCausalLM.from_config(layers.trimmed_config(model.config, plan.drop))
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        shapes = [tuple(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118  it is no dictionary
    assert sorted(shapes) == sorted(tuple(p.shape) for p in plain.parameters()), "beside it is the plain cut model"


def adapted(model) -> PeftModel:
    """Add adapters as ``depthcut.heal.training.adapters`` does."""
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    torch.manual_seed(0)
    where: Any = {"target_modules": names, "layers_to_transform": [*range(DEPTH)], "layers_pattern": "layers"}
    config = LoraConfig(r=4, lora_alpha=4, task_type="CAUSAL_LM", **where, **gaps.lora_config_kwargs(model))
    found = get_peft_model(model, config)
    assert isinstance(found, PeftModel)
    return found


@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_healing_trains_adapters_and_own_weights_only(llama, quantise, tmp_path):
    """The export equals what was trained."""
    knobs = ("replace.rank=4", "replace.gain=0.5", f"model.quantise={quantise}")
    whole = filled(*llama, *knobs)[1]
    before = logits(whole)
    healed = adapted(whole)
    assert torch.equal(logits(healed), before)
    trained = train_briefly(healed)
    own = {name for name in trained if "own_delta" in name or "own_norm" in name}
    assert len(own) == 3 * (7 * 2 + 2) and len(trained - own) == 3 * 7 * 2
    assert all("lora_" in name for name in trained - own)
    after = logits(healed)
    healed.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    again = adapted(filled(*llama, *knobs)[1])
    adapter_modules.load_adapters(again, tmp_path / "adapter")
    assert torch.equal(logits(again), after)
    merged = PeftModel.from_pretrained(export.dequantise_model(filled(*llama, *knobs)[1]), str(tmp_path / "adapter"))
    merged = merged.merge_and_unload()
    torch.testing.assert_close(logits(merged), after, rtol=0.02, atol=0.05 if quantise == "nf4" else 1e-3)
    exported.write_exported(merged, PLAN, tmp_path / "out")
    assert torch.equal(logits(depthcut.load(tmp_path / "out", dtype="float32")), logits(merged))


@pytest.mark.filterwarnings("ignore")  # Lightning warns of SLURM, of workers, of its own dependencies
@pytest.mark.parametrize("words", ["shared replace.rank=4 replace.gain=null", "linear replace.fuse=true"])
def test_exported_gpt2_has_the_recorded_loss(words, tmp_path):
    """GPT-2 stores its linear layers transposed."""
    steps = ("heal=lora", "heal.steps=3", "heal.warmup=0", "heal.batch=2", "model.heal.lr=1e-2", "prune.layers=2")
    here = opened(tmp_path, model_of("gpt2"), *f"replace={words}".split(), *steps)
    algorithm.run_experiment(here.experiment, here)
    model = depthcut.load(here.folder / "model", dtype="float32")
    ids_BT, mask_BT = next(here.texts.part("validation").batches(8))
    with torch.no_grad():
        losses_BT = token_losses(model(ids_BT, attention_mask=mask_BT).logits[:, :-1], ids_BT[:, 1:])
    found = (losses_BT * mask_BT[:, 1:]).sum() / mask_BT[:, 1:].sum()
    assert found.item() == pytest.approx(here.numbers["healed/validation/loss"], abs=1e-4)
    assert abs(here.numbers["healed/validation/loss"] - here.numbers["pruned/validation/loss"]) > 0.01


def test_four_bit_sharing_uses_the_quantised_base(llama):
    folder, model = llama
    knobs = ("model.quantise=nf4", "model.dtype=bfloat16")
    _, whole = filled(folder, model, "replace.gain=null", "replace.rank=128", *knobs)
    exact = logits(model)
    error = (logits(whole) - exact).norm() / exact.norm()
    here = opened(folder, model, "heal=none", *knobs)
    dense = (logits(here.dense.load()) - exact).norm() / exact.norm()
    assert error < 1.5 * dense
    before = logits(whole)
    assert (logits(export.dequantise_model(whole)) - before).norm() < 0.02 * before.norm()


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_gain_before_a_models_own_norm_is_refused(family, tmp_path):
    model = model_of(family)
    with pytest.raises(
        ValueError, match=r"normalises its sublayers' outputs before adding them; use replace.gain=null"
    ):
        filled(tmp_path, model)
    _, whole = filled(tmp_path, model, "replace.gain=null", "replace.rank=128")
    assert_near(logits(whole), logits(model))


def test_layers_with_other_than_linear_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Qwen3MoeDecoderLayer has mlp\.\S+; use another replacement"):
        filled(tmp_path, model_of("qwen3_moe"), "replace.gain=null")
