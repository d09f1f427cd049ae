"""Attention to the means of whole blocks on a GPU: NSA's compressed branch, and who looked where.

Some queries at once, because they look at the same means. The softmax's sums are known only
at the end, so what each block was looked at is added up in a second pass over the means.

In Triton; imported only where Triton is. Legend: as in `sparse.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from efficientllm.models.sparse_rows import MEANS, TOGETHER
from efficientllm.models.split_kernel import load_rows, mix, warps

SHARES_BYTES = 64 << 20
"""What the shares of blocks may take: of so many queries at a time."""


def looks(
    q: Tensor, means: tuple[Tensor, Tensor], out: Tensor, lse: Tensor | None, block: int
) -> Iterator[tuple[int, int, Tensor]]:
    """Attend to means, into `out` and `lse`, some queries after the others.

    q and out [B, H, T, D] and the means [B, K, N, D] of any strides but for a head's numbers,
    `lse` [B, T, H] contiguous. Tells which queries (first, one past the last), and how much
    they looked at each block [B K, queries at once, N], summed over the heads of a group.
    """
    batch, heads, length, size = q.shape
    kv_heads, blocks = means[0].shape[1:3]
    pairs, group = batch * kv_heads, heads // kv_heads
    padded = triton.next_power_of_2(group)
    queries = max(1, TOGETHER // padded)
    fitting = max(1, SHARES_BYTES // (4 * pairs * blocks) // queries) * queries
    chunk = min(fitting, length)
    shares = torch.empty((pairs, chunk, blocks), device=q.device, dtype=torch.float32)
    for first in range(0, length, chunk):
        last = min(first + chunk, length)
        _look[(triton.cdiv(last - first, queries), pairs)](
            *(q, *means, out, lse, shares, q.stride(), means[0].stride(), means[1].stride()),
            *(out.stride(), first, last, chunk, blocks, length, size**-0.5),
            kv_heads=kv_heads,
            group=group,
            padded=padded,
            queries=queries,
            block=block,
            means=MEANS,
            size=size,
            num_stages=2,
            num_warps=warps(queries * padded, size),
        )
        yield first, last, shares


@triton.jit
def _look(
    q,
    block_k,
    block_v,
    out,
    lse,
    shares,
    q_strides,
    k_strides,
    v_strides,
    out_strides,
    first,
    last,
    chunk,
    blocks,
    length,
    scale,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    padded: tl.constexpr,
    queries: tl.constexpr,
    block: tl.constexpr,
    means: tl.constexpr,
    size: tl.constexpr,
):
    """The compressed branch of some queries of one (sequence, key/value head)."""
    tile, which = tl.program_id(0), tl.program_id(1).to(tl.int64)
    sequence, kv_head = which // kv_heads, which % kv_heads
    row = tl.arange(0, queries * padded)
    at, head = first + tile * queries + row // padded, kv_head * group + row % padded
    real = (at < last) & (row % padded < group)
    whole = tl.where(real, (at + 1) // block, 0)
    query = load_rows(lines(q, q_strides, sequence, head, at)[:, None], real, size)
    block_k += sequence * k_strides[0] + kv_head * k_strides[1]
    block_v += sequence * v_strides[0] + kv_head * v_strides[1]
    end = tl.minimum(first + (tile + 1) * queries, last) // block  # whole ones of the last query
    # Finite: of rows without a whole block nothing is taken from minus infinity.
    most = tl.full((queries * padded,), -1e30, tl.float32)
    total = tl.zeros((queries * padded,), tl.float32)
    mixed = tl.zeros((queries * padded, size), tl.float32)
    for start in range(0, end, means):
        index = start + tl.arange(0, means)
        values = load_rows(block_v + index[:, None].to(tl.int64) * v_strides[2], index < end, size)
        scores = _scores(query, block_k, k_strides[2], index, end, whole) * scale
        most, total, mixed = mix(scores, values, most, total, mixed)
    some = tl.where(total == 0.0, 1.0, total)
    place = lines(out, out_strides, sequence, head, at)[:, None] + tl.arange(0, size)[None, :]
    tl.store(place, (mixed / some[:, None]).to(out.dtype.element_ty), mask=real[:, None])
    sums = most + tl.log(some)
    if lse is not None:
        tl.store(lse + places(sequence, at, head, length, kv_heads * group), sums, mask=real)
    asked = tile * queries + tl.arange(0, queries)
    shares += (which * chunk + asked[:, None]) * blocks
    real = first + asked < last
    _add_up(query, block_k, k_strides[2], whole, end, sums, scale, shares, real, means)


@triton.jit
def _add_up(query, block_k, step, whole, end, sums, scale, shares, real, means: tl.constexpr):
    """What each block was looked at, over the heads of a query: a line of `shares` for each."""
    queries: tl.constexpr = shares.shape[0]
    padded: tl.constexpr = query.shape[0] // queries
    for start in range(0, end, means):
        index = start + tl.arange(0, means)
        scores = _scores(query, block_k, step, index, end, whole) * scale
        weights = tl.exp(scores - sums[:, None])
        looked = tl.sum(tl.reshape(weights, (queries, padded, means)), 1)
        tl.store(shares + index[None, :], looked, mask=real[:, None] & (index < end)[None, :])


@triton.jit
def _scores(query, block_k, step, index, end, whole):
    """Products with the means at `index`; minus infinity for what is not behind a query."""
    size: tl.constexpr = query.shape[1]
    keys = load_rows(block_k + index[:, None].to(tl.int64) * step, index < end, size)
    products = tl.dot(query, tl.trans(keys))
    return tl.where(index[None, :] < whole[:, None], products, float("-inf"))


@triton.jit
def lines(x, strides, sequence, head, at):
    """Where heads at positions begin."""
    return x + sequence * strides[0] + head * strides[1] + at.to(tl.int64) * strides[2]


@triton.jit
def places(sequence, at, head, length, heads: tl.constexpr):
    """Which of all heads, as [B, T, H] has them, those at positions of a sequence are."""
    return (sequence.to(tl.int64) * length + at) * heads + head
