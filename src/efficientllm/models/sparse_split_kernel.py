"""Native sparse attention of one new token on a GPU: five kernels that read what is chosen.

`_keep` writes the token into its cache and renews the mean of its block; the split kernel
(`split_kernel.py`) attends to the means in parts; `_choose` ranks the blocks by what was
looked at; `_tiles` attends to chosen blocks and to the window, tile by tile, side by side;
and the parts of the three branches are put together under their gates (`merge_kernel.py`).

In Triton; imported only where Triton is. `sparse_cached.py` decides when it runs.

Legend: B sequences, K key/value heads, G query heads for each, S slots, N blocks, D head size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from efficientllm.models.attend_cached import PROGRAMS, chunk_of, empty_parts, rows_of
from efficientllm.models.chain_kernel import follow, links
from efficientllm.models.merge_kernel import MOST_NUMBERS, merge
from efficientllm.models.sparse_rows import MEANS
from efficientllm.models.sparse_rows_kernel import ranked
from efficientllm.models.split_kernel import (
    begin,
    fill_parts,
    load_rows,
    mix,
    nothing_yet,
    warps,
    write_part,
)


class _Parts(NamedTuple):
    """How many programs share the blocks that are chosen, and the window; tiles of each."""

    chosen: int
    window: int
    tiles: int


def attend_sparse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    cache: tuple[Tensor, Tensor, Tensor, Tensor],
    slot: Tensor,
    block: int,
    selected: int,
    window: int,
) -> Tensor:
    """q [B, K, G, D], the new k and v [B, K, D], gates [B, 3 K G] before their sigmoid -> as q.

    `cache` are keys and values [B, K, S, D] and their means [B, K, N, D]; the new token is
    written there, at `slot` [1].
    """
    q = q.contiguous()
    assert all(x.stride(-1) == 1 for x in (k, v, gates, *cache)), "numbers lie side by side"
    keys, values, block_k, block_v = cache
    batch, kv_heads, group, size = q.shape
    pairs, blocks, scale = batch * kv_heads, block_k.shape[2], size**-0.5
    _keep[(pairs, 2)](
        *(k, v, *cache, slot, k.stride(), v.stride(), keys.stride(), block_k.stride()),
        kv_heads=kv_heads,
        block=block,
        size=size,
        **links(),
    )
    chunk = chunk_of(pairs, blocks)
    compressed = -(-blocks // chunk)
    window, selected = min(window, keys.shape[2]), min(selected, blocks)
    room = max(2, MOST_NUMBERS // size - compressed)
    split = _split(pairs, selected, -(-window // block), room)
    found = empty_parts(q, compressed + split.chosen + split.window, size)
    fill_parts(found, q, block_k, block_v, slot, None, None, chunk, scale, tokens=block)
    chosen = _chosen(q, block_k, slot, found[1], chunk, block, selected, scale)
    _tiles[(pairs, split.chosen + split.window)](
        *(q, keys, values, slot, chosen, *found, keys.stride(), values.stride()),
        *(found[0].shape[2], compressed, split.chosen, selected, window, scale),
        kv_heads=kv_heads,
        group=group,
        rows=rows_of(group),
        tiles=split.tiles,
        block=block,
        size=size,
        num_warps=warps(rows_of(group), size),
        **links(),
    )
    ends = (compressed, compressed + split.chosen, found[0].shape[2])
    return merge(*found, gates, ends, q.dtype)


def _split(pairs: int, chosen: int, near: int, room: int) -> _Parts:
    """Tiles go one to a program until a GPU is full, then several, at most all of a branch.

    And so many that about `room` programs are enough: what they give is put together at once.
    """
    tiles = max(1, pairs * (chosen + near) // PROGRAMS, -(-(chosen + near) // room))
    tiles = min(tiles, max(chosen, near))
    return _Parts(-(-chosen // tiles), -(-near // tiles), tiles)


def _chosen(
    q: Tensor,
    block_k: Tensor,
    slot: Tensor,
    lse: Tensor,
    chunk: int,
    block: int,
    selected: int,
    scale: float,
) -> Tensor:
    """The numbers of the blocks that are read whole [B K, selected]; -1 where there are fewer.

    `lse` are those of the compressed branch, in parts of `chunk` blocks, and others after them.
    """
    batch, kv_heads, group, size = q.shape
    pairs, blocks = batch * kv_heads, triton.next_power_of_2(block_k.shape[2])
    shares = torch.empty((pairs, blocks), device=q.device, dtype=torch.float32)
    chosen = torch.empty((pairs, selected), device=q.device, dtype=torch.int32)
    _choose[(pairs,)](
        *(q, block_k, slot, lse, shares, chosen, block_k.stride()),
        *(lse.shape[2], chunk, selected, scale),
        kv_heads=kv_heads,
        group=group,
        rows=rows_of(group),
        block=block,
        means=MEANS,
        blocks=blocks,
        size=size,
        **links(),
    )
    return chosen


@triton.jit
def _keep(
    k,
    v,
    keys,
    values,
    block_k,
    block_v,
    slot,
    k_strides,
    v_strides,
    strides,
    block_strides,
    kv_heads: tl.constexpr,
    block: tl.constexpr,
    size: tl.constexpr,
    chained: tl.constexpr,
):
    """The key (or the value) of one (sequence, head): written down, and its block's mean."""
    follow(chained)
    which = tl.program_id(0).to(tl.int64)
    sequence, head, column = which // kv_heads, which % kv_heads, tl.arange(0, size)
    if tl.program_id(1) == 0:
        new = tl.load(k + sequence * k_strides[0] + head * k_strides[1] + column)
        line, mean = keys, block_k
    else:
        new = tl.load(v + sequence * v_strides[0] + head * v_strides[1] + column)
        line, mean = values, block_v
    at = tl.load(slot)
    own = at // block
    line += sequence * strides[0] + head * strides[1]
    mean += sequence * block_strides[0] + head * block_strides[1] + own * block_strides[2]
    # Means of unfinished blocks are wrong until the last token: they are not looked at. One
    # that hangs over the cache's end is never finished.
    index = own * block + tl.arange(0, block)
    before = load_rows(line + index[:, None] * strides[2], index < at, size).to(tl.float32)
    total = tl.sum(before, 0) + new.to(tl.float32)
    tl.store(line + at * strides[2] + column, new)
    tl.store(mean + column, (total / block).to(new.dtype))


@triton.jit
def _choose(
    q,
    block_k,
    slot,
    lse,
    shares,
    chosen,
    strides,
    parts,
    chunk,
    selected,
    scale,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
    means: tl.constexpr,
    blocks: tl.constexpr,
    size: tl.constexpr,
    chained: tl.constexpr,
):
    """Blocks of one (sequence, key/value head) in the order of `chosen_blocks`."""
    follow(chained)
    which = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, rows)
    real = row < group
    query = load_rows(q + (which * group + row[:, None]) * size, real, size)
    at = tl.load(slot).to(tl.int32)
    whole = (at + 1) // block
    lines = lse + which * parts * group + row
    most = tl.load(lines, mask=real, other=0.0)
    total = tl.full((rows,), 1.0, tl.float32)
    for part in range(1, tl.cdiv(whole, chunk)):
        score = tl.load(lines + part * group, mask=real, other=0.0)
        higher = tl.maximum(most, score)
        total = total * tl.exp(most - higher) + tl.exp(score - higher)
        most = higher
    sums = most + tl.log(total)
    block_k = begin(block_k, strides, which, kv_heads)
    shares += which * blocks
    for start in range(0, whole, means):
        index = start + tl.arange(0, means)
        seen = index < whole
        keys = load_rows(block_k + index[:, None].to(tl.int64) * strides[2], seen, size)
        weights = tl.exp(tl.dot(query, tl.trans(keys)) * scale - sums[:, None])
        weights = tl.where(real[:, None], weights, 0.0)  # padding would add to every block
        tl.store(shares + index, tl.sum(weights, 0), mask=seen)
    tl.debug_barrier()  # what some threads wrote, others read
    number = tl.arange(0, blocks)
    share = ranked(shares, at, block, blocks)
    for place in range(selected):
        best, best_number = tl.max(share, 0, return_indices=True)
        tl.store(chosen + which * selected + place, tl.where(best < 0.0, -1, best_number))
        share = tl.where(number == best_number, -1.0, share)


@triton.jit
def _tiles(
    q,
    k,
    v,
    slot,
    chosen,
    out,
    lse,
    k_strides,
    v_strides,
    parts,
    before,
    chosen_parts,
    selected,
    window,
    scale,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    rows: tl.constexpr,
    tiles: tl.constexpr,
    block: tl.constexpr,
    size: tl.constexpr,
    chained: tl.constexpr,
):
    """Some chosen blocks, or some of the window's, of one (sequence, key/value head)."""
    follow(chained)
    which, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = tl.arange(0, rows)
    real = row < group
    query = load_rows(q + (which * group + row[:, None]) * size, real, size)
    k = begin(k, k_strides, which, kv_heads)
    v = begin(v, v_strides, which, kv_heads)
    at = tl.load(slot).to(tl.int32)
    most, total, mixed = nothing_yet(rows, size)
    for i in range(tiles):
        if part < chosen_parts:
            tile = part * tiles + i
            listed = tl.load(chosen + which * selected + tile, mask=tile < selected, other=-1)
            first = listed * block
        else:
            first = at - window + 1 + ((part - chosen_parts) * tiles + i) * block
        if (first > -block) & (first <= at):  # else there is nothing of it
            index = first + tl.arange(0, block)
            seen = (index >= 0) & (index <= at)
            keys = load_rows(k + index[:, None].to(tl.int64) * k_strides[2], seen, size)
            values = load_rows(v + index[:, None].to(tl.int64) * v_strides[2], seen, size)
            scores = tl.dot(query, tl.trans(keys)) * scale
            scores = tl.where(seen[None, :], scores, float("-inf"))
            most, total, mixed = mix(scores, values, most, total, mixed)
    line = (which * parts + before + part) * group + row
    write_part(out, lse, line, real, most, total, mixed)
