"""The tiles of a band of keys, against torch's own look at every pair of tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from efficientllm.models.band import TILE, band

CPU = torch.device("cpu")

BANDS = [
    (0, None),
    (0, 1),
    (0, 2),
    (0, 100),
    (0, TILE - 1),
    (0, TILE),
    (0, TILE + 1),
    (0, 2 * TILE - 1),
    (0, 2 * TILE),
    (0, 300),
    (0, 10_000),
    (1, None),
    (TILE - 1, None),
    (TILE, None),
    (TILE, 3 * TILE),
    (TILE, TILE + 1),
    (200, 205),
    (300, 700),
]


def of_torch(length: int, nearest: int, window: int | None) -> BlockMask:
    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        visible = q - k >= nearest
        return visible if window is None else visible & (q - k < window)

    return create_block_mask(seen, None, None, length, length, device=CPU)


def pairs(counts: Tensor | None, lists: Tensor | None) -> set[tuple[int, int]]:
    """(row, listed) of all that is counted."""
    assert counts is not None
    assert lists is not None
    assert counts.dtype == lists.dtype == torch.int32
    n = lists.shape[-1]
    assert counts.shape == (1, 1, n)
    assert lists.shape == (1, 1, n, n)
    assert int(lists.min()) >= 0
    assert int(lists.max()) < n
    found: set[tuple[int, int]] = set()
    for row in range(n):
        listed = lists[0, 0, row, : counts[0, 0, row]].tolist()
        assert listed == sorted(set(listed))
        found |= {(row, one) for one in listed}
    return found


def turned(found: set[tuple[int, int]]) -> set[tuple[int, int]]:
    return {(b, a) for a, b in found}


@pytest.mark.parametrize("length", [1, 127, 128, 129, 512, 896, 1000])
@pytest.mark.parametrize(("nearest", "window"), BANDS)
def test_the_tiles_are_those_of_every_pair(length: int, nearest: int, window: int | None) -> None:
    ours, theirs = band(length, nearest, window, CPU), of_torch(length, nearest, window)
    assert ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    assert ours.seq_lengths == theirs.seq_lengths
    full = pairs(ours.full_kv_num_blocks, ours.full_kv_indices)
    part = pairs(ours.kv_num_blocks, ours.kv_indices)
    assert full == pairs(theirs.full_kv_num_blocks, theirs.full_kv_indices)
    # A ragged last tile may be listed where its missing tokens would have seen something.
    surplus = part - pairs(theirs.kv_num_blocks, theirs.kv_indices)
    assert pairs(theirs.kv_num_blocks, theirs.kv_indices) <= part
    assert all(row == length // TILE for row, _ in surplus)
    assert not part & full
    assert turned(pairs(ours.q_num_blocks, ours.q_indices)) == part
    assert turned(pairs(ours.full_q_num_blocks, ours.full_q_indices)) == full


def test_compiled_attention_goes_by_the_tiles() -> None:
    """Without a compiler FlexAttention looks at tokens only; compiled it walks the lists."""
    length, low, high = 1000, 128, 400  # near tiles, whole ones, far ones, and a ragged last one

    def far(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flex_attention(q, k, v, block_mask=band(length, low, high, q.device))
        assert isinstance(out, Tensor)
        return out

    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, length, 16)
    back = torch.arange(length)[:, None] - torch.arange(length)
    scores = (q @ k.mT / 4).masked_fill((back < low) | (back >= high), -torch.inf)
    out = torch.compile(far, fullgraph=True, dynamic=False)(q, k, v)
    # The first queries see nothing, and get nothing.
    torch.testing.assert_close(out, scores.softmax(-1).nan_to_num(0) @ v)


def test_a_compiled_layer_holds_no_pair_of_tokens() -> None:
    """Dynamo traces the making of a mask into every layer: nothing there may grow with T x T."""
    length = 4096
    sizes: list[int] = []

    def look(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        fakes = (node.meta.get("example_value") for node in graph.graph.nodes)
        sizes.extend(fake.numel() for fake in fakes if isinstance(fake, Tensor))
        return graph

    def layer(q: Tensor) -> Tensor:
        out = flex_attention(q, q, q, block_mask=band(length, 0, 256, q.device))
        assert isinstance(out, Tensor)
        return out

    torch.compile(layer, backend=look, fullgraph=True)(torch.randn(1, 1, length, 16))
    assert sizes
    assert max(sizes) <= length * 16
