"""Documents that share a row are trained as if each were alone."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from adapting import adapted
from composing import composed
from depthcut.config import build
from depthcut.data.text.parts import GivenText
from depthcut.data.text.tokens import Tokens
from depthcut.heal.training import boundary, distill, document_mask, fit, topk_teacher
from depthcut.heal.training.batches import MicroBatch, MicroBatchLoader
from depthcut.heal.training.memory_plan import Layout
from depthcut.heal.training.objective import next_token_loss
from depthcut.model.checkpoint.files import ModelFolder
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.study import digests
from depthcut.study.standalone import Standalone
from pico import FAMILIES, pico
from recipes import RECIPE, distill_recipe

END, LENGTH = 2, 20
SEPARATE = dataclasses.replace(RECIPE, packing="separate")


def text(*lengths: list[int]) -> Tokens:
    """Build one row per list of document lengths; the last document may be cut off."""
    chance = np.random.default_rng(0)
    rows = [np.concatenate([[*chance.integers(3, 128, n - 1), END] for n in row])[:LENGTH] for row in lengths]
    return Tokens(np.array(rows, np.int32), np.full(len(rows), LENGTH, np.int32), np.array([], np.uint64), "x", END)


PACKED = text([7, 13], [1, 4, 1, 15], [25], [9, 6, 12])


def packed(micro: int = 4, tokens: Tokens = PACKED) -> list[MicroBatch]:
    return list(MicroBatchLoader(tokens, micro, 4 // micro, seed=0, apart=4))


def documents(batch: MicroBatch) -> list[torch.Tensor]:
    """Split the rows after each separator, token by token."""
    found: list[list[int]] = []
    for row in batch.ids_BT.tolist():
        begins = True
        for token in row:
            found += [[]] if begins else []
            found[-1].append(token)
            begins = token == END
    return [torch.tensor(each)[None] for each in found]


def gradients(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_where_documents_begin():
    ids = torch.tensor([[5, 5, 2, 5, 5, 5], [2, 2, 5, 5, 2, 5]])
    assert document_mask.document_positions(ids, END).tolist() == [[0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 2, 0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_row_equals_its_documents_one_by_one(family):
    """The same loss and the same gradients."""
    model, (batch,) = pico(family, layers=2), packed()
    document_mask.check_document_masking(model)
    parts = [model(ids).logits[0, :-1] for ids in documents(batch)]
    logits, wanted = torch.cat(parts), torch.cat([ids[0, 1:] for ids in documents(batch)])
    alone = F.cross_entropy(logits, wanted)
    together = next_token_loss(model, batch)
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)
    assert together.item() != pytest.approx(
        next_token_loss(model, MicroBatch(batch.ids_BT, batch.rows_B)).item(), rel=1e-3
    )
    found, expected = gradients(model, together), gradients(model, alone)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_single_document_row_trains_bit_identically(family):
    model, (batch,) = pico(family, layers=2), packed(tokens=text([25], [25], [20], [25]))
    losses = next_token_loss(model, batch), next_token_loss(model, MicroBatch(batch.ids_BT, batch.rows_B))
    assert torch.equal(*losses)
    found, expected = (gradients(model, loss) for loss in losses)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_mean_is_over_the_steps_predictions():
    """For any micro-batch."""
    model = pico("llama", layers=2)
    whole, ones = (torch.stack([next_token_loss(model, each) for each in packed(micro)]) for micro in (4, 1))
    assert len(ones) == 4 and ones.mean().item() == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.filterwarnings("ignore")  # Lightning has some for every run
def test_run_keeps_documents_apart(tmp_path):
    """The loss of the first step is that of its documents, and the micro-batch does not change the run."""
    whole, ones = (run(tmp_path / str(micro), micro) for micro in (2, 1))
    (first, _) = MicroBatchLoader(PACKED, 2, 2, seed=0, apart=2)
    assert whole[0] == pytest.approx(next_token_loss(adapted(torch.float32), first).item(), abs=1e-4)
    assert ones == pytest.approx(whole, abs=1e-4)


def run(folder: Path, micro: int) -> list[float]:
    """Return the losses of two steps."""
    fit.fit_model(
        adapted(torch.float32),
        dataclasses.replace(SEPARATE, batch=2, micro_batch=micro, steps=2, length=LENGTH),
        Standalone(texts=GivenText(PACKED), folder=folder),
    )
    return [float(row.split(",")[3]) for row in (folder / "heal.csv").read_text().splitlines()[1:]]


def test_recomputed_layers_and_lean_lora_keep_documents_apart():
    model, (batch,) = adapted(torch.float32), packed()
    wanted = gradients(model, next_token_loss(model, batch))
    with fit.applied_layout(model, Layout(4, 2, False)):
        found = gradients(model, next_token_loss(model, batch))
    assert wanted and all((found[name] - wanted[name]).norm() < 1e-5 * wanted[name].norm() + 1e-9 for name in wanted)


@pytest.mark.slow
def test_compiled_layers_keep_documents_apart():
    """In a process of its own: the compiler imports distutils, after which setuptools warns at each search for pip."""
    call = [sys.executable, "-c", "import test_packing; test_packing.compile_layers()"]
    done = subprocess.run(call, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def compile_layers() -> None:
    model, (batch,) = adapted(torch.float32), packed()
    wanted = gradients(model, next_token_loss(model, batch))
    with fit.applied_layout(model, Layout(4, 0, True)):
        found = gradients(model, next_token_loss(model, batch))
    assert all((found[name] - wanted[name]).norm() < 1e-4 * wanted[name].norm() for name in wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", [False, True])
def test_documents_are_kept_apart_on_a_gpu(compiled):
    model, (batch,) = adapted(torch.float32), packed()
    wanted = gradients(model, next_token_loss(model, batch))
    model.cuda()
    with fit.applied_layout(model, Layout(4, 2, compiled)):
        found = gradients(model, next_token_loss(model, batch.on(torch.device("cuda"))))
    assert wanted and all((found[name].cpu() - wanted[name]).norm() < 1e-3 * wanted[name].norm() for name in wanted)


def test_teacher_reads_documents_apart():
    """Summed over the documents, each by itself, and divided by the number of predictions."""
    model, dense, (batch,) = pico("llama", layers=2), pico("llama", layers=3, seed=1), packed()
    heal = distill_recipe(mix=0.5)
    goal = distill.distill_objective(topk_teacher.live_topk_teacher(dense, heal), heal)
    alone = [MicroBatch(ids, torch.zeros(1)) for ids in documents(batch) if ids.shape[1] > 1]
    total = sum(goal(model, each).item() * (each.ids_BT.shape[1] - 1) for each in alone)
    assert goal(model, batch).item() == pytest.approx(total / batch.targets, rel=1e-4)


def test_boundary_loss_equals_documents_one_by_one():
    model, dense, (batch,) = pico("llama", layers=2), pico("llama", layers=3, seed=1), packed()
    goal = boundary.boundary_objective(boundary.live_state_teacher(dense, 2), 1, "relative")
    alone = [MicroBatch(ids, torch.zeros(1)) for ids in documents(batch)]
    total = sum(goal(model, each).item() * each.ids_BT.shape[1] for each in alone)
    assert goal(model, batch).item() == pytest.approx(total / batch.ids_BT.numel(), rel=1e-4)


@dataclasses.dataclass
class OnlyFiles:
    """A model of which only the files are read."""

    files: ModelFolder

    @property
    def checkpoint(self) -> "OnlyFiles":
        return self


def workspace_of(described: dict[str, Any], folder: Path) -> Standalone:
    """Return a workspace whose model has only a config.json."""
    (folder / "config.json").write_text(json.dumps(described))
    return Standalone(dense=OnlyFiles(ModelFolder(folder, HashCache(folder / "hashes.json"))))


def test_packing_is_in_the_digest_where_used(tmp_path):
    def knobs(*more: str) -> Any:
        return build.build_experiment(composed("model=pico", "heal=full", *more)).heal

    here = workspace_of({"model_type": "llama"}, tmp_path)
    crossed, separate = knobs(), knobs("heal.packing=separate")
    assert digests.method_fields(crossed) == digests.method_fields(separate)
    assert crossed.content(here) is None and separate.content(here) == {"packing": "separate"}


@pytest.mark.parametrize(
    "described",
    [
        {"model_type": "qwen3_next", "layer_types": ["full_attention", "linear_attention"]},
        {"model_type": "mamba", "state_size": 16},
        {"model_type": "inkling_mm", "text_config": {"layer_types": ["full_attention"], "conv_kernel_size": 4}},
    ],
)
def test_recurrent_layers_are_refused_from_the_config(described, tmp_path):
    here = workspace_of(described, tmp_path)
    with pytest.raises(ValueError, match=f"separate: {described['model_type']} has layers that carry state"):
        SEPARATE.content(here)


def test_model_without_document_masks_is_refused():
    bloom = pico("bloom", layers=2, n_head=4)
    with pytest.raises(ValueError, match="layer 0 of bloom cannot separate documents; use heal"):
        document_mask.check_document_masking(bloom)
