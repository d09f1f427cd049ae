"""The gradients of attention to the means of blocks, against autograd through every score."""

from __future__ import annotations

import pytest
import torch

from efficientllm.catalog.shape import Sparse
from efficientllm.models.sparse_reference import means_of
from tests.models.kernels import DEVICE, GPU, agree, drawn, masked_gradients, with_triton

ON_CARD = [
    (2, 32, 2, 2405, 16, 64, 700),
    (1, 16, 1, 16384, 64, 128, 300),
    (1, 128, 1, 300, 16, 128, 64),
]
INTERPRETED = [
    (1, 16, 1, 101, 4, 16, 20),  # parts that begin after the first mean and before it
    (2, 8, 2, 45, 4, 16, 16),  # eight queries at once, two rows, two key/value heads
    (1, 64, 1, 21, 16, 16, 1000),  # one query at once, one mean to be seen: nothing to choose
    (1, 12, 2, 33, 4, 16, 8),  # groups that are no power of two
    (1, 32, 1, 12, 4, 16, 3),  # half a query at once
    (1, 2, 2, 15, 16, 16, 1000),  # none to be seen
]


@with_triton
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "length", "block", "size", "part"),
    ON_CARD if GPU else INTERPRETED,
)
def test_the_kernels_give_what_autograd_gives(
    batch: int,
    heads: int,
    kv_heads: int,
    length: int,
    block: int,
    size: int,
    part: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In several parts, with more means than one program takes and a last block unfinished."""
    from efficientllm.models import sparse_means_kernel

    if not GPU:
        monkeypatch.setattr(sparse_means_kernel, "MEANS", 4)
        monkeypatch.setattr(sparse_means_kernel, "TOGETHER", 16 if heads == 32 else 64)
    monkeypatch.setattr(sparse_means_kernel, "LEAST_PART", part)
    monkeypatch.setattr(sparse_means_kernel, "PROGRAMS", 1 << 30)
    q, down = (drawn(batch, length, heads, size, seed=seed) for seed in (1, 2))
    k, v = (drawn(batch, kv_heads, length, size, seed=seed) for seed in (3, 4))
    means = means_of(k, v, Sparse(block=block, selected=1, window=1))
    flat = [x.transpose(1, 2).contiguous() for x in means]
    behind = (torch.arange(length, device=DEVICE) + 1) // block
    seen = torch.arange(flat[0].shape[1], device=DEVICE) < behind[:, None]
    exact, out, lse = masked_gradients(q, *flat, down, seen)
    found = sparse_means_kernel.means_gradients(q, *flat, out.to(q.dtype), lse, down, block)
    assert [x.dtype for x in found] == [q.dtype] * 3
    for one, right in zip(found, exact, strict=True):
        assert one.shape == right.shape
        if right.any():
            agree(one, right)
        else:
            assert one.abs().max() < 1e-6, "nobody has a choice between means"


@with_triton
def test_parts_are_as_many_as_keep_a_card_busy_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    from efficientllm.models import sparse_means_kernel

    launched: list[tuple[int, ...]] = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> object:
            return lambda *_, **__: launched.append(grid)

    monkeypatch.setattr(sparse_means_kernel, "_queries", Kernel())
    monkeypatch.setattr(sparse_means_kernel, "_means", Kernel())
    for batch, length in ((8, 4096), (2, 16384), (1, 65536), (8, 65536), (1, 64)):
        q = torch.empty(batch, length, 16, 64)
        means = torch.empty(batch, -(-length // 64), 1, 64)
        sparse_means_kernel.means_gradients(q, means, means, q, q[..., 0].contiguous(), q, 64)
    assert launched[1::2] == [(1, 16, 8), (4, 64, 2), (16, 66, 1), (16, 9, 8), (1, 1, 1)]
