import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from depthcut.data.text.parts import GivenText
from depthcut.data.text.tokens import Tokens
from depthcut.eval.harness import Harness
from depthcut.eval.likelihood.lm_eval import flat_results
from depthcut.eval.loss import Loss
from depthcut.study.standalone import Standalone
from pico import pico


def text(lengths: tuple[int, ...]) -> Any:
    ids = np.random.default_rng(0).integers(3, 100, (len(lengths), max(lengths)), dtype=np.int32)
    tokens = Tokens(ids=ids, lengths=np.array(lengths, dtype=np.int32), documents=np.array([], np.uint64), digest="x")
    return Standalone(texts=GivenText(tokens)), tokens


@pytest.mark.parametrize("batch", [1, 3])
def test_loss_is_the_mean_over_unpadded_tokens(batch):
    model = pico("llama")
    bench, tokens = text((12, 7, 12, 4))
    (got,) = Loss(batch=batch)(model, bench)
    sums, counts = [], []
    for ids, length in zip(tokens.ids, tokens.lengths, strict=True):
        row = torch.from_numpy(ids[None, :length].astype(np.int64))
        with torch.no_grad():
            log_p = model(row).logits.log_softmax(-1)[0]
        sums.append(-sum(log_p[t, row[0, t + 1]].item() for t in range(length - 1)))
        counts.append(int(length) - 1)
    loss = sum(sums) / sum(counts)
    assert got["validation/loss"] == pytest.approx(loss, abs=1e-5)
    assert got["validation/perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert got["validation/loss_over_log_v"] == pytest.approx(loss / math.log(128), abs=1e-5)
    means = np.array(sums) / np.array(counts)
    assert (got["validation/items"], got["validation/tokens"]) == (4, 31)
    assert got["validation/loss_stderr"] == pytest.approx(means.std(ddof=1) / 2, abs=1e-5)


def test_sequence_without_predictions_is_excluded_from_stderr():
    model = pico("llama")
    (got,) = Loss(batch=2)(model, text((12, 7, 1))[0])
    assert got["validation/loss_stderr"] > 0 and got["validation/tokens"] == 17


def test_uninformed_model_has_loss_log_v():
    model = pico("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert Loss(batch=2)(model, text((9, 9))[0])[0]["validation/loss_over_log_v"] == pytest.approx(1, abs=1e-6)


def test_non_finite_loss_has_no_key():
    model = pico("llama")
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    counts = {"validation/items": 2, "validation/tokens": 16}
    assert Loss(batch=2)(model, text((9, 9))[0]) == [{"validation/loss_finite": 0, **counts}]


def test_lm_eval_results_become_flat_names():
    results = {
        "arc": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 4, "f1,strict": float("nan")},
        "gsm": {"exact_match,flexible": 0.25, "exact_match_stderr,flexible": "N/A"},
    }
    assert flat_results(results) == {"arc/acc": 0.5, "arc/acc_stderr": 0.1, "gsm/exact_match@flexible": 0.25}


def test_each_task_is_a_separate_part():
    harness = Harness(tasks=["capitals", "mmlu@5"], limit=3, include_path=None, batch=4)
    assert [part.tasks for part in harness.parts()] == [["capitals"], ["mmlu@5"]]
    assert all(part.limit == 3 for part in harness.parts())


@pytest.mark.parametrize("task", ["", "@5", "mmlu@five", "capitals@1"])
def test_invalid_task_is_refused(task):
    with pytest.raises(ValueError, match=r"eval\.tasks"):
        Harness(tasks=[task], limit=None, include_path=None, batch=1)


CACHE = Path(__file__).parents[1] / "outputs" / "cache"


def test_harness_agrees_with_hand_computed_log_likelihoods():
    """Through lm-eval's own evaluator, on real questions, against sums over the model's own log-softmax."""
    from depthcut.data import questions
    from depthcut.model.pico import byte_tokenizer

    tokenizer = byte_tokenizer()
    model = pico("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    bench = Standalone(tokenizer=tokenizer, separator="<|endoftext|>", cache=CACHE)
    (got,) = Harness(tasks=["capitals"], limit=12, include_path=None, batch=5)(model, bench)
    right = 0
    for item in questions.load_questions("capitals", CACHE)[:12]:
        scores = [log_likelihood(model, tokenizer, item["prompt"], " " + choice.strip()) for choice in item["choices"]]
        right += int(np.argmax(scores) == item["answer"])
    assert got["capitals/acc"] == pytest.approx(right / 12)
    assert got["capitals/acc_stderr"] > 0 and got["capitals/items"] == 12
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    (got,) = Harness(tasks=["capitals"], limit=12, include_path=None, batch=5)(model, bench)
    assert got == {"capitals/likelihood_finite": 0, "capitals/items": 12}


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_neox"])
def test_answers_match_lm_evals_own_model(family):
    """Also where a text is longer than the model: it is cropped from the left."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from depthcut.data import questions
    from depthcut.eval import FULL_ONLY
    from depthcut.eval.likelihood import lm_eval
    from depthcut.model.pico import byte_tokenizer

    tokenizer = byte_tokenizer()
    model = pico(family, vocab_size=len(tokenizer), max_position_embeddings=48)
    bench = Standalone(tokenizer=tokenizer)
    pairs = [
        (item["prompt"], " " + choice)
        for item in questions.load_questions("topics", CACHE)[:6]
        for choice in item["choices"]
    ]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in [("", "Alone."), *pairs]]
    ours = lm_eval.wrap_model(model, bench, 3, FULL_ONLY).loglikelihood(requests, disable_tqdm=True)
    own = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, device="cpu")
    theirs = own.loglikelihood(requests, disable_tqdm=True)
    assert max(len(tokenizer(prompt + choice).input_ids) for prompt, choice in pairs) > 49
    assert [each[0] for each in ours] == pytest.approx([each[0] for each in theirs], rel=1e-5)
    assert [each[1] for each in ours] == [each[1] for each in theirs]


def log_likelihood(model, tokenizer, context: str, continuation: str) -> float:
    before, whole = tokenizer(context).input_ids, tokenizer(context + continuation).input_ids
    with torch.no_grad():
        log_p = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(log_p[t - 1, whole[t]].item() for t in range(len(before), len(whole)))
