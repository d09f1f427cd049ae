"""The gradients of attention to the means of blocks on a GPU: NSA's compressed branch.

There are few means and many queries. What the queries get is independent; a mean's gradient
is a sum over all queries behind it, and a program for each 64 means that goes through them
one after the other keeps 8 of an H100's 132 multiprocessors busy (16,384 tokens, two rows,
one key/value head; flash-linear-attention 0.6 has that). Here the queries are divided as well,
each part writes down its share, and the shares are added in a fixed order.

In Triton; imported only where Triton is. Legend: as in `sparse.py`, with P parts of the
queries.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from efficientllm.models.softmax_gradient_kernel import again, first_time, to_keys, to_queries
from efficientllm.models.sparse_look_kernel import places
from efficientllm.models.sparse_rows import MEANS, TOGETHER
from efficientllm.models.split_kernel import load_rows, warps

PROGRAMS = 1056
"""Programs that the parts aim at: eight for each multiprocessor of an H100. Not tuned."""

LEAST_PART = 256
"""Queries of a part at least: what it writes down must stay small beside what it reads."""


def means_gradients(
    q: Tensor, block_k: Tensor, block_v: Tensor, out: Tensor, lse: Tensor, down: Tensor, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q [B, T, H, D] and of the means block_k and block_v [B, N, K, D].

    `out` is what the branch gave and `down` the gradient of that, both as q, `lse` [B, T, H]
    the log-sum-exps of its scores, which are products over the root of D. The query at t has
    seen the first (t + 1) // block means. All are contiguous.
    """
    assert all(x.is_contiguous() for x in (q, block_k, block_v, out, lse, down))
    (batch, length, heads, size), (blocks, kv_heads) = q.shape, block_k.shape[1:3]
    pairs, group, scale = batch * kv_heads, heads // kv_heads, size**-0.5
    fixed = {"kv_heads": kv_heads, "group": group, "block": block, "size": size}
    fixed |= {"rows": TOGETHER, "means": MEANS}
    dq, delta = torch.empty_like(q), torch.empty_like(lse)
    _queries[(triton.cdiv(length * group, TOGETHER), pairs)](
        *(q, block_k, block_v, out, lse, down, dq, delta, length, blocks, scale),
        **fixed,
        num_stages=2,
        num_warps=warps(TOGETHER, size),
    )
    tiles = triton.cdiv(blocks, MEANS)
    part = max(LEAST_PART, triton.cdiv(length * tiles * pairs, PROGRAMS))
    parts = triton.cdiv(length, part)
    shares = torch.empty((2, parts, *block_k.shape), device=q.device, dtype=torch.float32)
    _means[(tiles, parts, pairs)](
        *(q, block_k, block_v, lse, delta, down, *shares, length, blocks, part, scale),
        **fixed,
        num_stages=2,
        num_warps=warps(MEANS, size),
    )
    dk, dv = (share.sum(0).to(block_k.dtype) for share in shares)
    return dq, dk, dv


@triton.jit
def _queries(
    q,
    block_k,
    block_v,
    out,
    lse,
    down,
    dq,
    delta,
    length,
    blocks,
    scale,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    block: tl.constexpr,
    size: tl.constexpr,
    rows: tl.constexpr,
    means: tl.constexpr,
):
    """What some queries of one (sequence, key/value head) get; `delta` is kept for the means."""
    tile, which = tl.program_id(0), tl.program_id(1)
    sequence, kv_head = which // kv_heads, which % kv_heads
    asked = tile * rows + tl.arange(0, rows)  # heads of a query, then those of the next
    at = asked // group
    real, seen = at < length, (at + 1) // block
    line = places(sequence, at, kv_head * group + asked % group, length, kv_heads * group)
    asking = first_time(q, out, down, lse, delta, line, real, size)
    found = tl.zeros((rows, size), tl.float32)
    last = tl.minimum(((tile + 1) * rows - 1) // group + 1, length)
    end = last // block  # whole ones of the last query
    for start in range(0, end, means):
        index = start + tl.arange(0, means)
        place = places(sequence, index, kv_head, blocks, kv_heads) * size
        keys = load_rows(block_k + place[:, None], index < end, size)
        values = load_rows(block_v + place[:, None], index < end, size)
        behind = index[None, :] < seen[:, None]
        found += to_queries(*asking, keys, values, behind, scale)
    column = tl.arange(0, size)[None, :]
    result = (found * scale).to(dq.dtype.element_ty)
    tl.store(dq + line[:, None] * size + column, result, mask=real[:, None])


@triton.jit
def _means(
    q,
    block_k,
    block_v,
    lse,
    delta,
    down,
    dk,
    dv,
    length,
    blocks,
    part,
    scale,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    block: tl.constexpr,
    size: tl.constexpr,
    rows: tl.constexpr,
    means: tl.constexpr,
):
    """What one part of the queries gives some means of one (sequence, key/value head)."""
    tile, number, which = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence, kv_head = which // kv_heads, which % kv_heads
    index = tile * means + tl.arange(0, means)
    inside = index < blocks
    place = places(sequence, index, kv_head, blocks, kv_heads) * size
    keys = load_rows(block_k + place[:, None], inside, size)
    values = load_rows(block_v + place[:, None], inside, size)
    for_keys = tl.zeros((means, size), tl.float32)
    for_values = tl.zeros((means, size), tl.float32)
    first = tl.maximum((tile * means + 1) * block - 1, number * part)  # has seen one of these
    last = tl.minimum((number + 1) * part, length)
    for start in range(first * group, last * group, rows):
        asked = start + tl.arange(0, rows)
        at = asked // group
        real, seen = at < last, (at + 1) // block
        line = places(sequence, at, kv_head * group + asked % group, length, kv_heads * group)
        asking = again(q, down, lse, delta, line, real, size)
        behind = (index[:, None] < seen[None, :]) & real[None, :]
        some_keys, some_values = to_keys(*asking, keys, values, behind, scale)
        for_keys += some_keys
        for_values += some_values
    sequences = tl.num_programs(2) // kv_heads
    place += number.to(tl.int64) * sequences * blocks * kv_heads * size
    column = tl.arange(0, size)[None, :]
    tl.store(dk + place[:, None] + column, for_keys * scale, mask=inside[:, None])
    tl.store(dv + place[:, None] + column, for_values, mask=inside[:, None])
