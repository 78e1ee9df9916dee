import numpy as np
import torch

from depthcut.data.text.tokens import Tokens
from depthcut.heal.training.batches import MicroBatchLoader


def tokens(rows: int = 10) -> Tokens:
    ids = np.arange(rows * 4, dtype=np.int32).reshape(rows, 4)
    return Tokens(ids=ids, lengths=np.full(rows, 4, np.int32), documents=np.array([], np.uint64), digest="x")


def rows(batches: MicroBatchLoader) -> list[int]:
    return [int(row[0]) // 4 for batch in batches for row in batch.ids_BT]


def test_micro_batch_does_not_change_the_order():
    whole = rows(MicroBatchLoader(tokens(), micro_batch=4, total=6, seed=1))
    assert whole == rows(MicroBatchLoader(tokens(), micro_batch=1, total=24, seed=1))
    assert whole == rows(MicroBatchLoader(tokens(), micro_batch=2, total=12, seed=1))


def test_each_epoch_shuffles_every_row_once():
    given = rows(MicroBatchLoader(tokens(), micro_batch=5, total=4, seed=0))
    assert sorted(given[:10]) == sorted(given[10:]) == list(range(10))
    assert given[:10] != given[10:]


def test_seed_decides_the_order():
    assert rows(MicroBatchLoader(tokens(), 2, 5, seed=0)) == rows(MicroBatchLoader(tokens(), 2, 5, seed=0))
    assert rows(MicroBatchLoader(tokens(), 2, 5, seed=0)) != rows(MicroBatchLoader(tokens(), 2, 5, seed=1))


def test_stream_resumes_mid_epoch():
    undisturbed = rows(MicroBatchLoader(tokens(), 2, 12, seed=3))
    first = MicroBatchLoader(tokens(), 2, 12, seed=3)
    stream = iter(first)
    before = [int(row[0]) // 4 for _ in range(7) for row in next(stream).ids_BT]
    second = MicroBatchLoader(tokens(), 2, 12, seed=3)
    second.load_state_dict(first.state_dict())
    assert before + rows(second) == undisturbed


def test_batches_are_int64_tensors():
    batch = next(iter(MicroBatchLoader(tokens(), 3, 1, seed=0)))
    assert batch.ids_BT.dtype == torch.int64 and batch.ids_BT.shape == (3, 4)
    assert [int(row[0]) // 4 for row in batch.ids_BT] == batch.rows_B.tolist()
