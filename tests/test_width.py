"""Width pruning: groups, importance, schedule and selection; the sliced model equals the masked one."""

import copy
import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import depthcut
from depthcut.cut.plan import Plan
from depthcut.heal.width import criterion, schedule, selection
from depthcut.model.checkpoint import exported
from depthcut.model.decoder import layers as decoder_layers
from depthcut.model.decoder import lora_gradients
from depthcut.model.pico import Pico
from depthcut.model.surgery.width import groups, masks, slicing
from depthcut.model.surgery.width.widths import WIDTHS_FILE, Widths
from pico import FAMILIES, logits, pico, texts, written

ABLE = tuple(family for family in FAMILIES if family not in ("phi3", "gpt_neox"))
HEADS = [{}, {"num_key_value_heads": 4}, {"num_key_value_heads": 1}]  # grouped, one head each, one for all


def cut(model, heads: int, channels: int, layers: range | None = None) -> Widths:
    """Keep so many groups, different ones in each layer; keep all of layers that are not named."""
    whole = [
        {kind: each.count for kind, each in groups.layer_groups(layer).items()}
        for layer in decoder_layers.layer_list(model)
    ]
    chance, wanted = np.random.default_rng(0), {"heads": heads, "channels": channels}
    kept: list[Any] = []
    for number, counts in enumerate(whole):
        least = wanted if layers is None or number in layers else counts
        kept.append({kind: tuple(sorted(chance.permutation(n)[: least[kind]].tolist())) for kind, n in counts.items()})
    return Widths(tuple(whole), tuple(kept))


def adapted(model, rank: int = 4, alpha: float = 4, seed: int = 0) -> Any:
    """Add adapters to all linear layers, with a random B."""
    torch.manual_seed(seed)
    names = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and name != "lm_head"]
    with_adapters = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=names))  # pyright: ignore
    set_factors(with_adapters, b=lambda b: 0.05 * torch.randn_like(b))
    return with_adapters.eval()


def set_factors(model, **to: Any) -> None:
    """Set A or B of all adapters."""
    with torch.no_grad():
        for name, half in model.named_parameters():
            for each, value in to.items():
                half.copy_(value(half)) if f"lora_{each.upper()}" in name else None


def loss(model) -> torch.Tensor:
    """Compute the loss in the dtype of the weights; transformers computes it in float32."""
    log_p = model(texts()).logits[:, :-1].log_softmax(-1)
    return -log_p.gather(-1, texts()[:, 1:, None]).mean()


# Groups


@pytest.mark.parametrize("heads", HEADS)
def test_query_heads_go_with_their_keys_and_values(heads):
    model = pico("llama", **heads)
    found = groups.layer_groups(decoder_layers.layer_list(model)[0])
    count = heads.get("num_key_value_heads", 2)
    assert found["heads"].count == count and found["channels"].count == 128
    linears: Any = found["heads"].linears(decoder_layers.layer_list(model)[0])
    rows = [(linear.weight.shape[axis] // count, axis) for linear, axis in linears]
    assert rows == [(16 * 4 // count, 0), (16, 0), (16, 0), (16 * 4 // count, 1)]


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("gpt_neox", "GPTNeoXLayer stores its weights in other matrices than q_proj"),
        ("phi3", "stores its weights in other matrices"),
        ("olmo2", "Olmo2Attention.q_norm.weight spans its heads"),
    ],
)
def test_unprunable_layers_are_refused(family, why):
    with pytest.raises(ValueError, match=why):
        groups.layer_groups(decoder_layers.layer_list(pico(family))[0])


# Masks


def test_empty_mask_changes_no_bit():
    model = pico("llama")
    before = logits(model)
    stack = list(decoder_layers.layer_list(model))
    places: Any = {
        (n, kind): each for n, layer in enumerate(stack) for kind, each in groups.layer_groups(layer).items()
    }
    gates = masks.Masks(stack, places)
    assert torch.equal(logits(model), before)
    gates.keep({(2, "heads"): (1,)})
    assert not torch.equal(logits(model), before)
    gates.unmask()
    assert torch.equal(logits(model), before)
    gates.keep({(2, "heads"): (1,)})
    gates.remove()
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("heads", HEADS[:2])
def test_masking_zero_groups_changes_no_bit(heads):
    """A KV group whose values are zeros, a channel whose up-projection is."""
    model = pico("llama", **heads)
    layer: Any = decoder_layers.layer_list(model)[3]
    with torch.no_grad():
        layer.self_attn.v_proj.weight[16:32] = 0
        layer.mlp.up_proj.weight[[5, 77]] = 0
    before = logits(model)
    count = groups.layer_groups(layer)["heads"].count
    widths = cut(model, count, 128)
    gone = {"heads": {1}, "channels": {5, 77}}
    stay = {kind: tuple(g for g in groups if g not in gone[kind]) for kind, groups in widths.kept[3].items()}
    kept: Any = (*widths.kept[:3], stay, *widths.kept[4:])
    masks.mask_model(model, Widths(widths.original, kept))
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("kind", ["heads", "channels"])
def test_mask_gradient_equals_that_of_the_weights(kind, heads):
    """d loss / d mask_g = sum over the group's columns of W dL/dW, by finite differences (Phi is all float64)."""
    model = pico("phi", layers=2, **heads).double()
    layer: Any = decoder_layers.layer_list(model)[1]
    known = groups.layer_groups(layer)[kind]
    writer: Any = known.output_module(layer)
    loss(model).backward()
    slopes = (writer.weight * writer.weight.grad).sum(0).view(known.count, -1).sum(1).tolist()
    gate = masks.Masks([layer], {(0, kind): known}).gates[0, kind]
    gate.mask_I = gate.mask_I.double()

    def at(group: int, value: float) -> float:
        gate.mask_I.view(known.count, -1)[group] = value
        with torch.no_grad():
            found = loss(model).item()
        gate.mask_I.fill_(1)
        return found

    for group in range(min(known.count, 4)):
        assert (at(group, 1 + 1e-5) - at(group, 1 - 1e-5)) / 2e-5 == pytest.approx(slopes[group], rel=1e-4, abs=1e-9)


def test_no_gradient_reaches_a_masked_group():
    model = pico("llama")
    widths = cut(model, 1, 100)
    masks.mask_model(model, widths)
    loss(model).backward()
    layer: Any = decoder_layers.layer_list(model)[0]
    gone = next(iter({0, 1} - set(widths.kept[0]["heads"])))
    for part, size in (("q_proj", 32), ("k_proj", 16), ("v_proj", 16)):
        grad = getattr(layer.self_attn, part).weight.grad
        assert grad[gone * size : (gone + 1) * size].abs().max() == 0 < grad.abs().max()


def test_compiled_layer_sees_mask_changes_without_recompiling():
    from torch._dynamo.testing import CompileCounter

    model = pico("llama", layers=2)
    stack, counter = list(decoder_layers.layer_list(model)), CompileCounter()
    places: Any = {
        (n, kind): each for n, layer in enumerate(stack) for kind, each in groups.layer_groups(layer).items()
    }
    gates = masks.Masks(stack, places)
    for layer in stack:
        vars(layer)["forward"] = torch.compile(layer.forward, dynamic=False, backend=counter)
    whole, before = logits(model), counter.frame_count
    gates.keep({(0, "heads"): (1,), (1, "channels"): range(10)})
    masked = logits(model)
    assert counter.frame_count == before > 0 and not torch.equal(masked, whole)
    for layer in stack:
        del vars(layer)["forward"]
    torch.testing.assert_close(logits(model), masked)


# The criterion


def test_equation_10_on_a_matrix_by_hand():
    w, a, b = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[1.0, 0]]), torch.tensor([[0.0], [1]])
    grad_a, grad_b = torch.tensor([[0.0, 1]]), torch.tensor([[1.0], [0]])
    assert lora_gradients.weight_importance(w, a, b, grad_a, grad_b).tolist() == [[1, 4], [0, 16]]


def test_equation_10_is_the_change_of_a_step():
    """dB A + B dA - dB dA = BA - (B - dB)(A - dA): the change written out, weight by weight."""
    chance = np.random.default_rng(0)
    w, a, b, da, db = (chance.standard_normal(shape) for shape in ((5, 7), (2, 7), (5, 2), (2, 7), (5, 2)))
    wanted = np.empty((5, 7))
    for i, j in itertools.product(range(5), range(7)):
        now, then = b[i] @ a[:, j], (b[i] - db[i]) @ (a[:, j] - da[:, j])
        wanted[i, j] = ((now - then) * (w[i, j] + now)) ** 2
    got = lora_gradients.weight_importance(*(torch.from_numpy(each) for each in (w, a, b, da, db)))
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-9)


def by_hand(linear: Any, axis: int, count: int) -> np.ndarray:
    """Sum equation 10 over groups for one adapted layer, weight by weight, in float64."""
    scale = linear.scaling["default"]
    a, b = linear.lora_A["default"].weight, linear.lora_B["default"].weight
    w, a_, b_, da, db = (
        t.detach().double().numpy()
        for t in (lora_gradients.dequantised_weight(linear.base_layer), a, b, a.grad, b.grad)
    )
    change = scale * (b_ @ a_ - (b_ - db) @ (a_ - da))
    each = (change * (w + scale * b_ @ a_)) ** 2
    return np.stack([part.sum() for part in np.split(each, count, axis)])


@pytest.mark.parametrize("heads", HEADS)
def test_group_importance_sums_over_its_matrices(heads, monkeypatch):
    model = adapted(pico("llama", layers=2, **heads), alpha=12)
    loss(model).backward()
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "lora" not in name)
    layer = decoder_layers.layer_list(model)[1]
    for known in groups.layer_groups(layer).values():
        parts = [by_hand(linear, axis, known.count) for linear, axis in known.linears(layer)]
        wanted = sum(part / np.linalg.norm(part) for part in parts)
        for strip in (2**24, 200):  # all rows at once, and three rows of 64 at a time
            monkeypatch.setattr(criterion, "STRIP_WEIGHTS", strip)
            got = criterion.group_importance(layer, known)
            assert got.dtype == torch.float64
            np.testing.assert_allclose(got.numpy(), wanted, rtol=2e-3)


def taylor(layer, known: groups.WidthGroups) -> torch.Tensor:
    """Compute the exact criterion from plain weights and their gradients, each matrix normalised."""
    total = torch.zeros(known.count, dtype=torch.float64)
    for linear, axis in known.linears(layer):
        each: Any = (linear.weight * linear.weight.grad).square().detach()  # pyright: ignore
        sums = each.sum(1 - axis).view(known.count, -1).sum(1)
        total += sums / sums.norm()
    return total


def test_gradients_equal_finite_differences():
    """Of weights, and of both adapter matrices after some training."""
    for model in (pico("phi", layers=2).double(), adapted(pico("phi", layers=2)).double()):
        loss(model).backward()
        found = {name: p for name, p in model.named_parameters() if p.grad is not None and "layers.1" in name}
        assert len(found) >= 9
        for weight in found.values():
            at = tuple(size // 2 for size in weight.shape)
            moved = []
            for step in (1e-5, -2e-5, 1e-5):
                with torch.no_grad():
                    weight[at] += step
                    moved.append(loss(model).item())
            slope = (moved[0] - moved[1]) / 2e-5
            assert slope == pytest.approx(weight.grad[at].item(), rel=1e-3, abs=1e-7)


def test_full_view_adapters_give_exact_taylor():
    """With B = 0 and A^T A = 1 the gradient is the weights' own."""
    plain = pico("llama", layers=2).double()
    model = adapted(copy.deepcopy(plain), rank=128, alpha=128).double()
    set_factors(model, b=torch.zeros_like, a=lambda a: torch.linalg.qr(torch.randn_like(a))[0])
    loss(plain).backward()
    loss(model).backward()
    for own, layer in zip(decoder_layers.layer_list(plain), decoder_layers.layer_list(model), strict=True):
        for known in groups.layer_groups(layer).values():
            torch.testing.assert_close(
                criterion.group_importance(layer, known), taylor(own, known), rtol=1e-4, atol=1e-7
            )


def test_zero_head_and_channel_have_zero_importance():
    """Their output is multiplied by zeros: no gradient reaches them, and the zeros contribute nothing themselves."""
    model = pico("llama", layers=2)
    layer: Any = decoder_layers.layer_list(model)[0]
    with torch.no_grad():
        layer.self_attn.o_proj.weight[:, 32:] = 0
        layer.mlp.down_proj.weight[:, 9] = 0
    model = adapted(model)
    set_factors(model, b=torch.zeros_like)
    loss(model).backward()
    layer = decoder_layers.layer_list(model)[0]
    for kind, dead in (("heads", 1), ("channels", 9)):
        worth = criterion.group_importance(layer, groups.layer_groups(layer)[kind]).tolist()
        assert worth[dead] == 0 and all(value > 0 for group, value in enumerate(worth) if group != dead)


@pytest.mark.parametrize("quantise", ["nf4", "int8"])
def test_quantised_base_uses_its_dequantised_weights(quantise, tmp_path):
    heal: Any = {"rank": 4, "lr": 1e-2, "length": 8}
    source = Pico(layers=2, hidden=64, heads=2, seed=0, quantise="none", dtype="float32", separator=None, heal=heal)
    model = source.open(tmp_path).load(None, quantise=quantise, dtype="float32", device="cpu")
    model = adapted(model)
    loss(model).backward()
    layer = decoder_layers.layer_list(model)[1]
    for known in groups.layer_groups(layer).values():
        parts = [by_hand(linear, axis, known.count) for linear, axis in known.linears(layer)]
        wanted = sum(part / np.linalg.norm(part) for part in parts)
        np.testing.assert_allclose(criterion.group_importance(layer, known).numpy(), wanted, rtol=1e-3)


def test_moving_average_skips_non_finite_values():
    averages = criterion.MovingAverage(0.9)
    averages.update({"x": torch.tensor([1.0, 2], dtype=torch.float64)})
    averages.update({"x": torch.tensor([float("nan"), 5], dtype=torch.float64)})
    averages.update({"x": torch.tensor([3.0, 0], dtype=torch.float64)})
    assert averages.values["x"].tolist() == pytest.approx([0.9 * 0.1 + 0.3, 0.9 * 0.2])
    assert averages.skipped == 1


# When, and which


def test_schedule_is_flat_cubic_flat():
    shares = [schedule.share_at_step(step, 100, 0.4) for step in range(1, 101)]
    assert shares[:10] == [0] * 10 and shares[89:] == [0.4] * 11
    assert shares[49] == pytest.approx(0.4 * (1 - 0.5**3)) and shares[29] == pytest.approx(0.4 * (1 - 0.75**3))
    assert shares == sorted(shares)
    assert [step for step in range(1, 101) if schedule.updates_masks(step, 100, 20)] == [20, 40, 60, 80, 90]
    for steps in range(1, 40):
        last = [step for step in range(1, steps + 1) if schedule.updates_masks(step, steps, 3)][-1]
        assert last == schedule.ramp_end(steps) and schedule.share_at_step(last, steps, 0.3) == 0.3


def values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_uniform_takes_as_many_of_each_layer():
    first, second, heads = (0, "channels"), (1, "channels"), (1, "heads")
    worth: Any = {first: values(4, 1, 3, 2), second: values(40, 10, 30, 20), heads: values(1, 0, 2)}
    assert selection.select_groups(worth, 0.5, "uniform") == {first: (0, 2), second: (0, 2), heads: (0, 2)}
    assert selection.select_groups(worth, 0.0, "uniform")[heads] == (0, 1, 2)
    assert selection.select_groups(worth, 0.99, "uniform") == {first: (0,), second: (0,), heads: (2,)}
    assert len(selection.select_groups({first: torch.ones(10)}, 0.3, "uniform")[first]) == 7


def test_global_takes_least_important_and_empties_no_layer():
    first, second, heads = (3, "channels"), (5, "channels"), (5, "heads")
    worth: Any = {first: values(1, 2, 3, 4), second: values(5, 6, 7, 0.5), heads: values(0, 9)}
    assert selection.select_groups(worth, 0.5, "global") == {first: (3,), second: (0, 1, 2), heads: (1,)}
    assert selection.select_groups(worth, 0.75, "global")[first] == (3,)


# The narrower model


@pytest.mark.parametrize("family", ABLE)
def test_sliced_model_equals_the_masked_one(family):
    model = pico(family)
    whole = logits(model)
    widths = cut(model, 1, 90)
    gates = masks.mask_model(model, widths)
    masked = logits(model)
    gates.remove()
    slicing.narrow_model(model, widths)
    torch.testing.assert_close(logits(model), masked, rtol=1e-4, atol=1e-4)
    assert (masked - whole).abs().max() > 0.1


@pytest.mark.parametrize("heads", HEADS[:2])
def test_adapters_are_sliced_with_their_matrices(heads):
    model = adapted(pico("llama", **heads), alpha=9)
    widths = cut(model, 1, 77, range(1, 5))
    gates = masks.mask_model(model, widths)
    masked = logits(model)
    gates.remove()
    slicing.narrow_model(model, widths)
    torch.testing.assert_close(logits(model), masked, rtol=1e-4, atol=1e-4)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), masked, rtol=1e-4, atol=1e-4)
    attention: Any = decoder_layers.layer_list(merged)[1].get_submodule("self_attn")
    assert attention.k_proj.weight.shape == (16, 64) and attention.o_proj.weight.shape[0] == 64
    assert decoder_layers.layer_list(merged)[0].get_parameter("mlp.down_proj.weight").shape == (64, 128)
    assert decoder_layers.layer_list(merged)[1].get_parameter("mlp.down_proj.weight").shape == (64, 77)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "phi"])
def test_uniform_widths_load_in_plain_transformers(family, tmp_path):
    model = pico(family)
    widths = cut(model, 1, 50)
    slicing.narrow_model(model, widths)
    exported.write_exported(model, Plan(6, ()), tmp_path, widths)
    described = json.loads((tmp_path / "config.json").read_text())
    assert (described["head_dim"], described["num_key_value_heads"], described["intermediate_size"]) == (16, 1, 50)
    plainly = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for read in (plainly, depthcut.load(tmp_path, dtype="float32")):
        torch.testing.assert_close(logits(read), logits(model), rtol=1e-5, atol=1e-5)
    assert torch.equal(written(model, use_cache=True), written(model, use_cache=False))


@pytest.mark.parametrize(
    ("family", "layers", "unit", "drop"),
    [
        ("llama", range(1, 5), "layer", ()),
        ("qwen2", range(1, 5), "layer", ()),
        ("gemma2", range(1, 5), "layer", ()),
        ("opt", None, "layer", ()),  # its config has no head width
        ("llama", range(5), "mlp", (1, 2)),
    ],
)
def test_differing_widths_load_in_depthcut(family, layers, unit, drop, tmp_path):
    from depthcut.model.decoder import sublayers

    model, plan = pico(family), Plan(6, drop, unit)
    if drop:
        sublayers.remove_sublayers(model, plan)
    before = model.config.to_dict()
    widths = cut(model, 1, 50, layers)
    slicing.narrow_model(model, widths)
    assert model.config.to_dict() == before
    exported.write_exported(model, plan, tmp_path, widths)
    with pytest.raises(ValueError, match="depthcut"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    read = depthcut.load(tmp_path, dtype="float32")
    torch.testing.assert_close(logits(read), logits(model), rtol=1e-5, atol=1e-5)
    assert torch.equal(written(read, use_cache=True), written(model, use_cache=False))
    assert sum(p.numel() for p in read.parameters()) == sum(p.numel() for p in model.parameters())
    assert Widths.read(tmp_path / WIDTHS_FILE) == widths


def test_indivisible_head_count_needs_depthcut(tmp_path):
    """Llama's config refuses three heads of a width of 64."""
    model = pico("llama", num_key_value_heads=4)
    widths = cut(model, 3, 128)
    slicing.narrow_model(model, widths)
    exported.write_exported(model, Plan(6, ()), tmp_path, widths)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "depthcut"
    torch.testing.assert_close(logits(depthcut.load(tmp_path, dtype="float32")), logits(model))


def test_files_that_mismatch_the_widths_are_refused(tmp_path):
    model = pico("llama")
    widths = cut(model, 1, 50, range(1, 5))
    slicing.narrow_model(model, widths)
    exported.write_exported(model, Plan(6, ()), tmp_path, widths)
    cut(pico("llama"), 1, 51, range(1, 5)).write(tmp_path / WIDTHS_FILE)
    with pytest.raises(ValueError, match=r"contain model.layers.1.mlp.down_proj.weight of the width"):
        depthcut.load(tmp_path)
    for text in ('{"format": 2}', "half a fi", '{"format": 1, "layers": [{"heads": {"of": 2, "keep": [2]}}]}'):
        (tmp_path / WIDTHS_FILE).write_text(text)
        with pytest.raises(ValueError, match=r"width.json is not a description of widths .*; export the model again"):
            depthcut.load(tmp_path)
