"""The gradients of attention to chosen blocks, against autograd through every score."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.models.kernels import DEVICE, GPU, agree, drawn, masked_gradients, with_triton

ON_CARD = [
    (2, 32, 2, 2405, 16, 64, 8, 100),
    (1, 16, 1, 4100, 64, 128, 16, 256),
    (1, 128, 1, 300, 16, 128, 4, 64),
]
INTERPRETED = [
    (2, 8, 2, 29, 4, 16, 3, 5),  # parts that are no whole number of tiles; two pairs of two rows
    (1, 4, 2, 70, 32, 16, 2, 7),  # blocks whose shares several programs add
    (1, 16, 1, 61, 8, 16, 5, 1000),  # one part a block, and a last block unfinished
    (1, 64, 1, 20, 4, 16, 8, 3),  # more to choose than there is
    (1, 14, 2, 18, 4, 16, 3, 4),  # groups that are no power of two
    (1, 128, 1, 9, 4, 16, 2, 4),  # half a query at once
]


def drawn_choices(batch: int, length: int, kv_heads: int, block: int, selected: int) -> Tensor:
    """The first block and one's own, others at random, some later than one's own and some none."""
    blocks = -(-length // block)
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(batch, length, kv_heads, blocks, generator=generator)
    own = (torch.arange(length) // block)[:, None, None].expand(batch, -1, kv_heads, 1)
    order[..., 0] = 2.0
    order.scatter_(-1, own, 3.0)
    chosen = order.topk(min(selected, blocks), dim=-1).indices
    chosen[..., 2:][chosen[..., 2:] % 5 == 3] = -1
    missing = torch.full((*chosen.shape[:3], max(0, selected - blocks)), -1)
    return torch.cat((chosen, missing), dim=-1).to(DEVICE, torch.int32).contiguous()


@with_triton
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "length", "block", "size", "selected", "part"),
    ON_CARD if GPU else INTERPRETED,
)
def test_the_kernels_give_what_autograd_gives(
    batch: int,
    heads: int,
    kv_heads: int,
    length: int,
    block: int,
    size: int,
    selected: int,
    part: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With blocks that many chose, in several parts, and blocks that nobody did."""
    from efficientllm.models import sparse_chosen_kernel

    monkeypatch.setattr(sparse_chosen_kernel, "LEAST_PART", part)
    monkeypatch.setattr(sparse_chosen_kernel, "PARTS", 1 << 30)
    q, down = (drawn(batch, length, heads, size, seed=seed) for seed in (1, 2))
    k, v = (drawn(batch, length, kv_heads, size, seed=seed) for seed in (3, 4))
    chosen = drawn_choices(batch, length, kv_heads, block, selected)
    key = torch.arange(length, device=DEVICE)
    picked = (chosen.unsqueeze(-1) == key // block).any(3).transpose(1, 2)
    seen = (picked & (key <= key[:, None])).unsqueeze(2)
    exact, out, lse = masked_gradients(q, k, v, down, seen)
    before = drawn(*q.shape, seed=5)
    dq = before.clone()
    found = sparse_chosen_kernel.chosen_gradients(
        q, k, v, out.to(q.dtype), lse, down, chosen, block, dq
    )
    exact = (exact[0] + before.float(), *exact[1:])
    for one, right in zip((dq, *found), exact, strict=True):
        assert (one.shape, one.dtype) == (right.shape, q.dtype)
        agree(one, right)


@with_triton
def test_choices_are_sorted_by_block_and_cut_into_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from efficientllm.models import sparse_chosen_kernel

    monkeypatch.setattr(sparse_chosen_kernel, "LEAST_PART", 2)
    chosen = torch.tensor([[0, -1], [0, 1], [1, 0], [2, 0], [0, 2]], dtype=torch.int32)
    found = sparse_chosen_kernel.choices_of(chosen.view(1, 5, 1, 2), 2, 3)
    assert found.part == 2
    assert found.begins.tolist() == [0, 5, 6, 7], "that 1 chose the block after its own is nothing"
    assert found.queries[:7].tolist() == [0, 1, 2, 3, 4, 2, 4]
    assert found.parts.tolist() == [0, 3, 4, 5]
    assert found.owners.tolist() == [0, 0, 0, 1, 2, 3, 3, 3]


@with_triton
@pytest.mark.parametrize(("batch", "length"), [(8, 4096), (2, 16384), (1, 65536)])
def test_what_parts_write_down_stays_small(batch: int, length: int) -> None:
    from efficientllm.models.sparse_chosen_kernel import choices_of

    chosen = torch.zeros((batch, length, 1, 16), dtype=torch.int32)
    found = choices_of(chosen, 64, length // 64)
    assert found.parts[-1] <= len(found.owners)
    assert len(found.owners) * 2 * 64 * 64 * 4 < 180e6, "bytes at a head size of 64"
