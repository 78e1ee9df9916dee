"""Answers of many cuts with shared contexts, against each answer of each cut alone."""

import pytest

from depthcut.cut import subnetworks
from depthcut.eval.likelihood import packed_requests, tree_attention
from depthcut.model.decoder import layers, sublayers
from likelihoods import CONTEXTS, FOLLOWS, REQUESTS, alone
from pico import FAMILIES, pico


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_log_likelihoods_equal_each_cut_alone(family, batch):
    model, drops = pico(family), [(), (1, 2), (4,), (0, 3, 4), (1, 2, 3, 4)]
    got = tree_attention.log_likelihoods(model, REQUESTS, subnetworks.subnetworks_without(drops, "layer"), batch)
    for place, drop in enumerate(drops):
        with layers.bypass_layers(model, drop):
            for request in REQUESTS:
                value, likeliest = alone(model, request)
                assert got[request][place][0] == pytest.approx(value, rel=1e-5)
                assert got[request][place][1] == likeliest


@pytest.mark.parametrize("unit", ["attention", "mlp"])
def test_sublayer_cuts(unit):
    model, drops = pico("llama"), [(0, 2), (5,)]
    got = tree_attention.log_likelihoods(model, REQUESTS, subnetworks.subnetworks_without(drops, unit), 4)
    for place, drop in enumerate(drops):
        with sublayers.bypass_units(model, drop, unit):
            for request in REQUESTS:
                assert got[request][place][0] == pytest.approx(alone(model, request)[0], rel=1e-5)


@pytest.mark.parametrize(("family", "tree"), [("llama", True), ("gpt_neox", True), ("mistral", False)])
def test_shared_context_is_read_once_if_supported(family, tree):
    """Mistral's window of 6 is shorter than the rows."""
    sheets = list(packed_requests.pack_requests(pico(family), REQUESTS, 8))
    rows = sum(len(sheet.given["input_ids"]) for sheet in sheets)
    assert rows == (3 if tree else len(REQUESTS))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("opt", {}),
        ("gpt2", {}),
        ("gpt_bigcode", {}),
        ("gpt_neo", {"attention_types": [[["global", "local"], 3]], "window_size": 12}),
        ("gptj", {"rotary_dim": 8}),
        ("mpt", {}),
    ],
)
def test_rows_longer_than_the_positions(family, changes):
    """All branches of a row together are longer than a table of 16 positions; none alone is."""
    model = pico(family, max_position_embeddings=16, **changes)
    context = tuple(range(3, 15))
    requests = [*REQUESTS, *((context, (first, first + 1, first + 2, first + 3)) for first in (20, 30, 40))]
    drops = [(), (1, 2)]
    got = tree_attention.log_likelihoods(model, requests, subnetworks.subnetworks_without(drops, "layer"), 8)
    for place, drop in enumerate(drops):
        with layers.bypass_layers(model, drop):
            for request in requests:
                assert got[request][place][0] == pytest.approx(alone(model, request)[0], rel=1e-5)


def test_single_token_answers_need_no_tree():
    (sheet,) = packed_requests.pack_requests(pico("mistral"), [(CONTEXTS[1], follow) for follow in FOLLOWS[1]], 8)
    assert sheet.row_BP.shape == (1, 1) and len(sheet.token_S) == 3
    assert sheet.given["attention_mask"] is None and "position_ids" not in sheet.given


def test_models_without_tree_attention_are_detected():
    model = pico("llama")
    assert packed_requests.supports_tree_attention(model, 20)
    own = model.forward

    def deaf(*args, **more):  # computes positions itself
        return own(*args, **{key: value for key, value in more.items() if key != "position_ids"})

    model.forward = deaf
    assert not packed_requests.supports_tree_attention(model, 20)
