"""Native sparse attention of whole rows on a GPU, for prefill: two kernels, no gradients.

`_look` attends to the means of whole blocks, some queries at once because they look at the
same ones, and adds up what each block was looked at. `_read` takes, for each query, the
blocks that were looked at most one after the other, attends to them, and puts the three
branches together under their gates.

Training runs the kernels of flash-linear-attention (`sparse_kernels.py`), which have
gradients. Launched from Python they took a 0.5B model 24 ms for a prompt of 4,096 tokens
alone, and 12 for it as one of 32.

In Triton; imported only where Triton is. Legend: as in `sparse_split_kernel.py`, with T
positions instead of S slots and H = K G heads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from efficientllm.models.attend_cached import rows_of
from efficientllm.models.sparse_rows import MEANS, TOGETHER
from efficientllm.models.split_kernel import load_rows, mix, warps

SHARES_BYTES = 64 << 20
"""What the shares of blocks may take: of so many queries at a time."""


def attend_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    means: tuple[Tensor, Tensor],
    near: Tensor,
    gates: Tensor,
    block: int,
    selected: int,
) -> Tensor:
    """q and `near` (the window's output) [B, H, T, D], k and v [B, K, T, D] -> as q.

    `means` are those of keys and values [B, K, N, D], `gates` [B, T, 3 H] before their
    sigmoid. H / K must be a power of two. What comes back is laid out as [B, T, H, D], as the
    product after it reads it.
    """
    assert all(x.stride(-1) == 1 for x in (q, k, v, near, *means)), (
        "numbers of a head lie side by side"
    )
    batch, heads, length, size = q.shape
    kv_heads, blocks = k.shape[1], means[0].shape[2]
    pairs, group, scale = batch * kv_heads, heads // kv_heads, size**-0.5
    gates = gates.contiguous()
    out = q.new_empty((batch, length, heads, size)).transpose(1, 2)
    queries = max(1, TOGETHER // group)
    fitting = max(1, SHARES_BYTES // (4 * pairs * blocks) // queries) * queries
    chunk = min(fitting, length)
    shares = torch.empty((pairs, chunk, blocks), device=q.device, dtype=torch.float32)
    fixed = {"kv_heads": kv_heads, "group": group, "block": block, "size": size}
    for first in range(0, length, chunk):
        last = min(first + chunk, length)
        _look[(triton.cdiv(last - first, queries), pairs)](
            *(q, *means, out, shares, q.stride(), means[0].stride(), means[1].stride()),
            *(out.stride(), first, last, chunk, blocks, scale),
            **fixed,
            queries=queries,
            means=MEANS,
            num_stages=2,
            num_warps=warps(queries * group, size),
        )
        _read[(last - first, pairs)](
            *(q, k, v, near, gates, out, shares, q.stride(), k.stride(), v.stride()),
            *(near.stride(), out.stride(), first, chunk, blocks, length, selected, scale),
            **fixed,
            rows=rows_of(group),
            numbers=triton.next_power_of_2(blocks),
            num_warps=warps(rows_of(group), size),
        )
    return out


@triton.jit
def _look(
    q,
    block_k,
    block_v,
    out,
    shares,
    q_strides,
    k_strides,
    v_strides,
    out_strides,
    first,
    last,
    chunk,
    blocks,
    scale,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    queries: tl.constexpr,
    block: tl.constexpr,
    means: tl.constexpr,
    size: tl.constexpr,
):
    """The compressed branch of some queries of one (sequence, key/value head)."""
    tile, which = tl.program_id(0), tl.program_id(1).to(tl.int64)
    sequence, kv_head = which // kv_heads, which % kv_heads
    row = tl.arange(0, queries * group)
    at, head = first + tile * queries + row // group, kv_head * group + row % group
    real, whole = at < last, (at + 1) // block
    query = load_rows(_lines(q, q_strides, sequence, head, at)[:, None], real, size)
    block_k += sequence * k_strides[0] + kv_head * k_strides[1]
    block_v += sequence * v_strides[0] + kv_head * v_strides[1]
    end = tl.minimum(first + (tile + 1) * queries, last) // block  # whole ones of the last query
    # Finite: of rows without a whole block nothing is taken from minus infinity.
    most = tl.full((queries * group,), -1e30, tl.float32)
    total = tl.zeros((queries * group,), tl.float32)
    mixed = tl.zeros((queries * group, size), tl.float32)
    for start in range(0, end, means):
        index = start + tl.arange(0, means)
        keys = load_rows(block_k + index[:, None].to(tl.int64) * k_strides[2], index < end, size)
        values = load_rows(block_v + index[:, None].to(tl.int64) * v_strides[2], index < end, size)
        scores = tl.dot(query, tl.trans(keys)) * scale
        scores = tl.where(index[None, :] < whole[:, None], scores, float("-inf"))
        most, total, mixed = mix(scores, values, most, total, mixed)
    some = tl.where(total == 0.0, 1.0, total)
    place = _lines(out, out_strides, sequence, head, at)[:, None] + tl.arange(0, size)[None, :]
    tl.store(place, (mixed / some[:, None]).to(out.dtype.element_ty), mask=real[:, None])
    sums = most + tl.log(some)
    asked = tile * queries + tl.arange(0, queries)
    shares += (which * chunk + asked[:, None]) * blocks
    for start in range(0, end, means):
        index = start + tl.arange(0, means)
        keys = load_rows(block_k + index[:, None].to(tl.int64) * k_strides[2], index < end, size)
        scores = tl.dot(query, tl.trans(keys)) * scale
        scores = tl.where(index[None, :] < whole[:, None], scores, float("-inf"))
        weights = tl.exp(scores - sums[:, None])
        looked = tl.sum(tl.reshape(weights, (queries, group, means)), 1)
        inside = (first + asked < last)[:, None] & (index < end)[None, :]
        tl.store(shares + index[None, :], looked, mask=inside)


@triton.jit
def _read(
    q,
    k,
    v,
    near,
    gates,
    out,
    shares,
    q_strides,
    k_strides,
    v_strides,
    near_strides,
    out_strides,
    first,
    chunk,
    blocks,
    length,
    selected,
    scale,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    block: tl.constexpr,
    size: tl.constexpr,
    rows: tl.constexpr,
    numbers: tl.constexpr,
):
    """The selected branch of one query of one (sequence, key/value head), and all three's sum."""
    asked, which = tl.program_id(0), tl.program_id(1).to(tl.int64)
    sequence, kv_head = which // kv_heads, which % kv_heads
    row, column, at = tl.arange(0, rows), tl.arange(0, size), first + asked
    real, head = row < group, kv_head * group + row
    query = load_rows(_lines(q, q_strides, sequence, head, at)[:, None], real, size)
    k += sequence * k_strides[0] + kv_head * k_strides[1]
    v += sequence * v_strides[0] + kv_head * v_strides[1]
    share = ranked(shares + (which * chunk + asked) * blocks, at, block, numbers)
    number = tl.arange(0, numbers)
    most = tl.full((rows,), -1e30, tl.float32)
    total = tl.zeros((rows,), tl.float32)
    mixed = tl.zeros((rows, size), tl.float32)
    for _ in range(selected):
        best, chosen = tl.max(share, 0, return_indices=True)
        if best >= 0.0:  # else there are no more blocks up to its own
            index = chosen * block + tl.arange(0, block)
            seen = index <= at
            keys = load_rows(k + index[:, None].to(tl.int64) * k_strides[2], seen, size)
            values = load_rows(v + index[:, None].to(tl.int64) * v_strides[2], seen, size)
            scores = tl.dot(query, tl.trans(keys)) * scale
            scores = tl.where(seen[None, :], scores, float("-inf"))
            most, total, mixed = mix(scores, values, most, total, mixed)
        share = tl.where(number == chosen, -1.0, share)
    heads: tl.constexpr = kv_heads * group
    gate = gates + (sequence * length + at) * 3 * heads + head
    line = _lines(out, out_strides, sequence, head, at)[:, None] + column[None, :]
    beside = _lines(near, near_strides, sequence, head, at)[:, None] + column[None, :]
    result = _open(gate, real) * tl.load(line, mask=real[:, None], other=0.0).to(tl.float32)
    result += _open(gate + heads, real) * (mixed / total[:, None])
    window = tl.load(beside, mask=real[:, None], other=0.0).to(tl.float32)
    result += _open(gate + 2 * heads, real) * window
    tl.store(line, result.to(out.dtype.element_ty), mask=real[:, None])


@triton.jit
def ranked(shares, at, block: tl.constexpr, numbers: tl.constexpr):
    """Shares of blocks for the query at `at`, as `chosen_blocks` ranks them; -1 after its own."""
    number, own = tl.arange(0, numbers), at // block
    share = tl.load(shares + number, mask=number < (at + 1) // block, other=0.0)
    share = tl.where(number == 0, 1e30, share)
    share = tl.where(number == own - 1, 2e30, share)
    share = tl.where(number == own, 3e30, share)
    return tl.where(number > own, -1.0, share)


@triton.jit
def _lines(x, strides, sequence, head, at):
    """Where heads at positions begin."""
    return x + sequence * strides[0] + head * strides[1] + at.to(tl.int64) * strides[2]


@triton.jit
def _open(gates, real):
    """How far gates are open, a column."""
    return tl.sigmoid(tl.load(gates, mask=real, other=0.0).to(tl.float32))[:, None]
