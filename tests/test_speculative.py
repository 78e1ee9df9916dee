"""Self-speculative decoding: the draft is the model without its shared layers; acceptance and speed-up."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import depthcut
from adapting import adapted_everywhere
from composing import composed
from depthcut import algorithm
from depthcut.config import build
from depthcut.cut import subnetworks
from depthcut.cut.plan import Plan
from depthcut.eval.speculative import Speculative
from depthcut.model.checkpoint import exported as checkpoint_exported
from depthcut.model.decoder import layers as decoder_layers
from depthcut.model.decoder.merging import merged_model
from depthcut.runtime.errors import UserError
from depthcut.study.run import open_run
from gaps import DEPTH, model_of, opened
from pico import logits, texts
from running import text_files

PLAN = Plan(DEPTH, (1, 4))
FAMILIES = ("llama", "qwen2", "qwen3", "phi", "opt", "gpt_neox")
KNOBS: dict[str, Any] = {"prompts": 2, "length": 8, "tokens": 12, "draft": 3, "runs": 2}


def shared(folder, model, *knobs: str, gain: float = 0.4):
    """Return a run, and a model with two shared layers that change its output."""
    more = ("heal=none", "replace.rank=4", f"replace.gain={gain}", "prune.keep_last=0", "device=cpu")
    here = opened(folder, model, "replace=shared", *more, *knobs)
    return here, here.experiment.replace(here.dense.load(PLAN), PLAN, here)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return shared(tmp_path_factory.mktemp("llama"), model_of("llama"))


def tensors(model: nn.Module) -> set[int]:
    return {each.data_ptr() for each in [*model.parameters(), *model.buffers()] if each.numel()}


@pytest.mark.parametrize("family", FAMILIES)
def test_draft_is_the_cut_model_on_shared_weights(family, tmp_path):
    here, whole = shared(tmp_path, model_of(family))
    before, layers = logits(whole), list(decoder_layers.layer_list(whole))
    drafts = depthcut.draft(whole)
    assert torch.equal(logits(drafts), logits(here.dense.load(PLAN)))
    assert tensors(drafts) < tensors(whole)
    assert (len(decoder_layers.layer_list(drafts)), drafts.config.num_hidden_layers) == (4, 4)
    assert torch.equal(logits(whole), before)
    assert list(decoder_layers.layer_list(whole)) == layers and whole.config.num_hidden_layers == DEPTH


@pytest.mark.parametrize("family", ["llama", "qwen2", "opt"])
def test_speculative_output_equals_plain_generation(family, tmp_path):
    require_assistants(family)
    whole = shared(tmp_path, model_of(family))[1]
    given: dict[str, Any] = {"do_sample": False, "max_new_tokens": 20}
    for row in texts(2, 12):
        ids = row[None]
        alone = whole.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **given)
        for tokens in (1, 4):
            drafts = depthcut.draft(whole, tokens)
            helped = whole.generate(input_ids=ids, attention_mask=torch.ones_like(ids), assistant_model=drafts, **given)
            assert torch.equal(helped, alone)


def require_assistants(family):
    """Skip where transformers has no assistants for this family, as with the sliding windows of 5.17."""
    model, ids = model_of(family), texts(1, 12)
    assistant = copy.deepcopy(model)
    nn.init.normal_(assistant.get_input_embeddings().weight, std=0.5)  # its tokens are rejected and removed
    assistant.generation_config.update(num_assistant_tokens=4, assistant_confidence_threshold=0.0)
    try:
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, assistant_model=assistant)
    except RuntimeError as error:
        pytest.skip(f"transformers {transformers.__version__}: {error}")


def test_extended_and_loaded_models_have_drafts(tmp_path):
    model = model_of("llama")
    knobs = ("replace=extend", "replace.start=1", "replace.stop=4", "replace.rank=4", "prune=deepest", "prune.layers=0")
    here = opened(tmp_path, model, *knobs, "replace.gain=0.4", "heal=none")
    whole = here.experiment.replace(here.dense.load(), Plan(DEPTH, ()), here)
    assert (logits(whole) - logits(model)).abs().max() > 0.1
    assert torch.equal(logits(depthcut.draft(whole)), logits(model))
    checkpoint_exported.write_exported(whole, Plan(DEPTH, ()), tmp_path / "out")
    again = depthcut.load(tmp_path / "out", dtype="float32")
    assert torch.equal(logits(depthcut.draft(again)), logits(model))


@pytest.mark.parametrize("quantise", ["nf4", "int8"])
def test_quantised_weights_are_shared_as_they_are(quantise, tmp_path):
    knobs = (f"model.quantise={quantise}", "model.dtype=bfloat16")
    here, whole = shared(tmp_path, model_of("llama"), *knobs)
    logits(whole)  # int8 reorders its weights in the first pass
    drafts = depthcut.draft(whole)
    assert tensors(drafts) < tensors(whole)
    names = [
        f"{decoder_layers.layer_prefix(drafts)}.1.mlp.up_proj",
        f"{decoder_layers.layer_prefix(whole)}.2.mlp.up_proj",
    ]
    one, other = (vars(each.get_submodule(name)) for each, name in zip((drafts, whole), names, strict=True))
    name = "quant_state" if quantise == "nf4" else "state"
    assert one[name] is other[name]
    assert torch.equal(logits(drafts), logits(here.dense.load(PLAN)))


def test_model_without_shared_layers_has_no_draft():
    with pytest.raises(ValueError, match="this model has no shared layers"):
        depthcut.draft(model_of("llama"))


@torch.no_grad()
def by_hand(whole: Any, drafts: Any, ids: torch.Tensor, tokens: int, draft: int, end: int) -> tuple[int, int, int]:
    """Decode speculatively without a cache or the token ``end``; return tokens accepted, tokens drafted, drafts."""

    def likeliest(model: Any, given: torch.Tensor, first: int) -> torch.Tensor:
        logits_TV = model(given).logits[0, first:]
        logits_TV[:, end] = -torch.inf
        return logits_TV.argmax(-1)

    accepted = drafted = times = 0
    stop = ids.shape[1] + tokens
    while ids.shape[1] < stop:
        start, guess = ids.shape[1], ids
        count = min(draft, stop - start - 1)
        for _ in range(count):
            guess = torch.cat([guess, likeliest(drafts, guess, -1)[None]], 1)
        told = likeliest(whole, guess, start - 1)
        right = 0
        while right < count and guess[0, start + right] == told[right]:
            right += 1
        ids = torch.cat([guess[:, : start + right], told[right][None, None]], 1)
        accepted, drafted, times = accepted + right, drafted + count, times + (count > 0)
    return accepted, drafted, times


def test_acceptance_equals_a_loop_by_hand(llama):
    here, whole = llama
    method = Speculative(**KNOBS)
    drafts, end = depthcut.draft(whole, 3), here.tokenizer.eos_token_id
    wanted = [by_hand(whole, drafts, ids, 12, 3, end) for ids in method.begun(here)]
    (got,) = method(whole, here)
    shares = [accepted / drafted for accepted, drafted, _ in wanted]
    each = [accepted / times for accepted, _, times in wanted]
    assert 0 < np.mean(shares) < 1, "else nothing is told apart"
    assert got["speculative/acceptance"] == pytest.approx(np.mean(shares))
    assert got["speculative/accepted_per_draft"] == pytest.approx(np.mean(each))
    assert got["speculative/acceptance_stderr"] == pytest.approx(np.std(shares, ddof=1) / 2**0.5)
    assert got["speculative/same"] == 1 and got["speculative/same_stderr"] == 0


def test_identical_draft_is_fully_accepted(tmp_path):
    """14 tokens are three drafts of three and one more token each, then a draft of one and one more."""
    here, whole = shared(tmp_path, model_of("llama"), gain=1e-9)
    (got,) = Speculative(**KNOBS | {"tokens": 14})(whole, here)
    assert (got["speculative/acceptance"], got["speculative/accepted_per_draft"]) == (1, 10 / 4)


def test_both_modes_alternate_over_all_prompts(llama):
    here, whole = llama
    lengths: list[int] = []

    def note(_: Any, __: Any, given: dict[str, Any]) -> None:
        lengths.append(given["input_ids"].shape[1])

    handle = whole.register_forward_pre_hook(note, with_kwargs=True)
    (got,) = Speculative(**KNOBS)(whole, here)
    handle.remove()
    alone = [8, *[1] * 11] * 2  # each prompt, then token by token
    places = [at for at in range(len(lengths) - 23) if lengths[at : at + 24] == alone]
    assert len(places) == 2, "the timed runs; what is counted goes prompt by prompt"
    assert min(places[1] - places[0], len(lengths) - places[1]) > 24, "behind each comes one with drafts"
    plain, rate = (got[f"speculative/{name}tokens_per_second"] for name in ("plain_", ""))
    errors = [got[f"speculative/{name}tokens_per_second_stderr"] for name in ("plain_", "")]
    assert got["speculative/speedup"] == pytest.approx(rate / plain) and plain > 0
    wanted = rate / plain * np.hypot(errors[0] / plain, errors[1] / rate)
    assert got["speculative/speedup_stderr"] == pytest.approx(wanted)


def test_dense_models_and_cuts_give_no_number(llama):
    here, _ = llama
    assert Speculative(**KNOBS)(here.dense.load(), here) == [{}]
    assert Speculative(**KNOBS)(here.dense.load(), here, [subnetworks.FULL]) is None


@pytest.mark.filterwarnings("ignore")  # peft looks for a base model's card
def test_healed_model_is_measured_as_exported_and_unchanged(tmp_path):
    torch.manual_seed(0)
    here, whole = shared(tmp_path, model_of("llama"))
    model = adapted_everywhere(whole)
    exported = copy.deepcopy(model).merge_and_unload()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    with merged_model(model) as plain:
        assert torch.equal(logits(plain), logits(exported))
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    drafted: list[nn.Module] = []
    handle = whole.register_forward_pre_hook(lambda module, _: drafted.append(module))
    assert Speculative(**KNOBS)(model, here)
    handle.remove()
    assert drafted, "it is this model that writes, and no copy"
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("replace", ["none", "mean"])
def test_run_without_shared_layers_is_refused_before_loading(replace, tmp_path):
    words = ("model=pico", "eval=[speculative]", f"replace={replace}", *text_files(tmp_path))
    said = f"eval=speculative drafts with .*: it needs replace=shared or replace=extend, got replace={replace}"
    with pytest.raises(UserError, match=said):
        build.build_experiment(composed(f"outputs={tmp_path}/outputs", "data=files", *words))


def test_too_little_text_is_reported(llama):
    with pytest.raises(
        ValueError, match=r"needs 2 prompts of 4000 tokens; data.validation has 0. Lower eval.speculative.prompts"
    ):
        Speculative(**KNOBS | {"length": 4000}).prepare(llama[0])


@pytest.mark.filterwarnings("ignore")  # Lightning warns of workers, of its own dependencies
def test_run_records_acceptance_where_layers_are_shared(tmp_path):
    small = ("model=pico", "data=files", "heal.steps=2", "heal.warmup=1", "heal.batch=2", "model.heal.length=32")
    knobs = [f"eval.speculative.{key}={value}" for key, value in KNOBS.items()]
    words = ("replace=shared", "prune=deepest", "replace.rank=2", "eval=[speculative]", "export=none", *knobs)
    x = build.build_experiment(composed(f"outputs={tmp_path}/outputs", *small, *words, *text_files(tmp_path)))
    here = open_run(x)
    algorithm.run_experiment(x, here)
    found = {name.partition("/")[0] for name in here.numbers if "/speculative/acceptance" in name}
    assert found == {"pruned", "healed"}
    assert here.numbers["healed/speculative/speedup"] > 0
