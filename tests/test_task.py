"""Task scores of layers, against lm-eval's scores of the same questions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builders import subject
from depthcut.data import questions
from depthcut.eval.harness import Harness
from depthcut.metric.task import Task, question_batches
from depthcut.model.decoder import layers
from depthcut.model.pico import Pico, byte_tokenizer
from depthcut.runtime.errors import UserError
from depthcut.study import tokenizer_checks
from pico import pico

SIZE: Any = {"tasks": ["capitals"], "items": 12, "batch": 5}


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Any:
    heal: Any = {"rank": 4, "lr": 1e-2, "length": 8}
    model = Pico(layers=4, hidden=64, heads=2, seed=0, quantise="none", dtype="float32", separator=None, heal=heal)
    checkpoint = model.open(tmp_path_factory.mktemp("cache"))
    found = subject(checkpoint.load(None, quantise="none", dtype="float32", device="cpu"))
    found.tokenizer = checkpoint.tokenizer
    found.cache = Path(__file__).parents[1] / "outputs/cache"
    return found


def by_lm_eval(here: Any, items: list[dict[str, Any]]) -> tuple[list[list[float]], list[int]]:
    """Return the log-likelihood of every choice from lm-eval's evaluator."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=here.dense.whole(), tokenizer=here.tokenizer, batch_size=1, device="cpu")
    requests = [
        Instance("loglikelihood", {}, (item["prompt"], f" {choice}"), 0) for item in items for choice in item["choices"]
    ]
    values = iter(lm.loglikelihood(requests, disable_tqdm=True))
    return [[next(values)[0] for _ in item["choices"]] for item in items], [item["answer"] for item in items]


@pytest.mark.parametrize("by", ["accuracy", "likelihood"])
def test_score_equals_lm_eval_without_each_layer(here, by):
    items = questions.load_questions("capitals", here.cache)[-12:]
    got = Task(**SIZE, by=by)(here)
    for layer in range(4):
        with layers.bypass_layers(here.dense.whole(), [layer]):
            likelihoods, right = by_lm_eval(here, items)
        if by == "accuracy":
            wanted = [float(np.argmax(row) != answer) for row, answer in zip(likelihoods, right, strict=True)]
        else:
            wanted = [-row[answer] for row, answer in zip(likelihoods, right, strict=True)]
        assert got.layers[layer] == pytest.approx(np.mean(wanted), rel=1e-4)
        assert got.layers_stderr[layer] == pytest.approx(np.std(wanted, ddof=1) / 12**0.5, rel=1e-3)


def test_too_long_questions_lose_their_beginning(here):
    pairs = [("The capital of France is a city called", " Paris"), ("It is", " Rome")]
    (whole,), (row,) = (list(question_batches(byte_tokenizer(), pairs, 2, longest)) for longest in (None, 16))
    assert row.ids_BT.shape == (2, 16)
    assert row.ids_BT[0].equal(whole.ids_BT[0, -16:]) and row.ids_BT[1, :10].equal(whole.ids_BT[1, :10])
    for before, after in zip(whole.targets_BT, row.targets_BT, strict=True):
        assert before[before >= 0].equal(after[after >= 0])
    model = pico("opt", vocab_size=258, ffn_dim=128, word_embed_proj_dim=64, max_position_embeddings=32)
    short = subject(model)
    short.tokenizer, short.cache = byte_tokenizer(), here.cache
    assert len(Task(**SIZE, by="accuracy")(short).layers) == 6


def test_search_reads_the_first_questions(here):
    metric = Task(**SIZE, by="likelihood")
    few = metric.without(here, [(1,), ()], "layer", samples=3)
    items = questions.load_questions("capitals", here.cache)[-12:-9]
    likelihoods, right = by_lm_eval(here, items)
    assert few[1] == pytest.approx(np.mean([-row[a] for row, a in zip(likelihoods, right, strict=True)]), rel=1e-4)
    assert few[0] != few[1]


def test_questions_of_several_sizes_are_separated():
    """Two questions, of 2 and 3 choices; the second sub-network gets the second one wrong."""
    sums_KN = torch.tensor([[1.0, 2.0, 5.0, 3.0, 4.0], [1.0, 2.0, 2.0, 3.0, 4.0]])
    metric = Task(**SIZE, by="accuracy")
    value_K, stderr_K = metric.value(sums_KN, torch.ones(5), [2, 3], [0, 1])
    assert value_K.tolist() == [0, 0.5] and stderr_K.tolist() == pytest.approx([0, 0.5])
    value_K, _ = metric.value(sums_KN, torch.tensor([1.0, 1, 3, 3, 3]), [2, 3], [0, 1])
    assert value_K.tolist() == [0, 0.75]


def test_choosing_and_measuring_questions_are_disjoint(here):
    there = len(questions.load_questions("capitals", here.cache))
    metric = Task(tasks=["capitals"], items=48, by="accuracy", batch=5)
    apart = Harness(tasks=["topics", "capitals"], limit=there - 48, include_path=None, batch=1)
    tokenizer_checks.check_questions(metric, [apart], here.cache)
    for limit in (there - 47, None):
        both = Harness(tasks=["capitals"], limit=limit, include_path=None, batch=1)
        with pytest.raises(UserError, match=f"set eval.harness.limit to {there - 48} or less, or metric.tasks"):
            tokenizer_checks.check_questions(metric, [both], here.cache)


def test_invalid_questions_are_refused(here):
    with pytest.raises(ValueError, match=r"metric\.tasks: no local set 'mmlu'; available: capitals, topics"):
        Task(tasks=["mmlu"], items=4, by="accuracy", batch=5)
    with pytest.raises(ValueError, match=r"metric\.items must be at most 197 for capitals, got 999"):
        Task(tasks=["capitals"], items=999, by="accuracy", batch=5).prepare(here, "layer")
