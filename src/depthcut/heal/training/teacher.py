"""The dense model as a teacher: its outputs for each row of the training text, cached on disk by content.

Rows are stored in blocks. A block is named by its teacher, the requested output and its tokens, so a longer run or
another cut reuses it; a block interrupted by a kill is computed again.

Legend: B sequences, T tokens, R rows of a block.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from depthcut.cut.plan import Plan
from depthcut.heal.training import document_mask
from depthcut.runtime import devices, ranks, store, verified
from depthcut.runtime.devices import GIB
from depthcut.runtime.errors import UserError
from depthcut.runtime.progress import track

if TYPE_CHECKING:
    from depthcut.heal import Workspace

FORMAT = 1
BLOCK_ROWS = 32
PASS_TOKENS = 8192
"""Tokens per forward pass of the teacher."""
OUTPUT_FILE = "said.safetensors"
log = logging.getLogger("depthcut")
TeacherOutputs = dict[str, Tensor]
"""Outputs of the teacher for some rows, by name: B x ..."""
TeacherFunction = Callable[[Tensor], TeacherOutputs]
"""Maps ids, B x T on the host, to outputs."""


def load_teacher(workspace: "Workspace", layers: int) -> nn.Module:
    """Load the first ``layers`` layers of the dense model, in the form of the run's models, next to the pruned model.

    Raises:
        UserError: if they do not fit.
    """
    dense, depth = workspace.dense, workspace.dense.depth
    check_teacher_memory(sum(workspace.dense.sizes("layer").weight_bytes[:layers]), workspace.device)
    plan = Plan(depth, tuple(range(layers, depth)))
    return dense.checkpoint.load(plan, quantise=dense.quantise, dtype=dense.dtype, device=workspace.device)


def check_teacher_memory(wanted: int, device: str) -> None:
    """Check that a teacher of this many bytes fits.

    Raises:
        UserError: if it does not.
    """
    free = devices.free_memory(device)
    if wanted > free:
        raise UserError(
            f"the teacher needs {wanted / GIB:.1f} GiB in addition to the pruned model, {free / GIB:.1f} GiB are "
            f"free on {device}: use model.quantise=nf4 or a larger device"
        )


@dataclass(frozen=True)
class CachedOutputs:
    """Cached outputs of a teacher for the rows of a text.

    Attributes:
        blocks: folders, of ``BLOCK_ROWS`` rows each.
    """

    blocks: list[Path]

    def __call__(self, rows_B: Tensor) -> TeacherOutputs:
        """Return the outputs for these rows, on the host."""
        found = [self.row(number) for number in rows_B.tolist()]
        return {name: torch.stack([each[name] for each in found]) for name in found[0]}

    def row(self, number: int) -> TeacherOutputs:
        """Return the outputs for one row: T x ..."""
        block, place = divmod(number, BLOCK_ROWS)
        with safe_open(self.blocks[block] / OUTPUT_FILE, "pt") as file:
            return {name: file.get_slice(name)[place] for name in file.keys()}  # noqa: SIM118  no mapping


def cache_teacher_outputs(
    workspace: "Workspace",
    asked: dict[str, Any],
    row_bytes: int,
    packing: document_mask.Packing,
    ready: Callable[[], TeacherFunction],
) -> CachedOutputs:
    """Cache the teacher's outputs for the rows of ``workspace.texts.train()`` not on disk; processes share the blocks.

    Args:
        workspace: has the text, the cache and the dense model.
        asked: the requested output, by content, as JSON.
        row_bytes: bytes per row on disk.
        packing: whether the teacher keeps the documents of a row apart, as the student does.
        ready: loads the teacher; called only if a block is missing.

    Raises:
        UserError: if the disk has too little space.
    """
    ids_NT = workspace.texts.train().ids
    parts = [ids_NT[start : start + BLOCK_ROWS] for start in range(0, len(ids_NT), BLOCK_ROWS)]
    about = {"format": FORMAT, "base": workspace.base, **asked}
    if packing != "crossed":
        about["packing"] = packing
    folders = [
        workspace.cache / "teacher" / store.content_digest({**about, "ids": token_fingerprint(part)}) for part in parts
    ]
    missing = [number for number, folder in enumerate(folders) if not verified.is_verified(folder)]
    if missing:
        rows = sum(len(parts[number]) for number in missing)
        check_disk_space(workspace.cache, row_bytes * rows)
        log.info("the teacher processes %d of %d rows: %.2f GiB on disk", rows, len(ids_NT), row_bytes * rows / GIB)
        with workspace.numbers.timed("teacher"):
            teach = ready()
            for number in track(own_blocks_first(missing), "teacher: blocks of rows", len(missing)):
                verified.cached_folder(folders[number], partial(write_block_outputs, teach, parts[number]))
    return CachedOutputs(folders)


def token_fingerprint(ids_RT: NDArray[np.int32]) -> list[Any]:
    """Return the content of a block's tokens as a fingerprint."""
    return [*ids_RT.shape, hashlib.sha256(np.ascontiguousarray(ids_RT, dtype="<i4").tobytes()).hexdigest()]


def own_blocks_first(missing: Sequence[int]) -> list[int]:
    """Return the order in which this process makes the blocks; other processes' come last, to be made or awaited."""
    return [
        number
        for turn in range(ranks.world_size())
        for number in missing[(ranks.global_rank() + turn) % ranks.world_size() :: ranks.world_size()]
    ]


def check_disk_space(folder: Path, wanted: int) -> None:
    """Check that the disk has enough space.

    Raises:
        UserError: if it does not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise UserError(
            f"heal.teacher=cached needs {wanted / GIB:.1f} GiB for the teacher's outputs, {folder} has "
            f"{free / GIB:.1f} GiB free: use heal.teacher=live, fewer tokens, or outputs= on a larger disk"
        )


def write_block_outputs(teach: TeacherFunction, ids_RT: NDArray[np.int32], folder: Path) -> None:
    """Run the teacher on a block, a few rows at a time, and write its outputs."""
    size = max(1, PASS_TOKENS // ids_RT.shape[1])
    read = [ids_RT[start : start + size] for start in range(0, len(ids_RT), size)]
    outputs = [teach(torch.from_numpy(each.astype(np.int64))) for each in read]
    save_file({name: torch.cat([each[name].cpu() for each in outputs]) for name in outputs[0]}, folder / OUTPUT_FILE)
