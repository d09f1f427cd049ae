"""The gradients of attention to chosen blocks on a GPU: NSA's selected branch.

What a query gets, it gathers from its blocks. What a block gets is a sum over all queries that
chose it, and those are not evenly many: every query reads the first block, and a card with a
program for each block waits for that one (flash-linear-attention 0.6 has that). So the choices
are sorted by block and cut into parts of equal length, each part writes down its share, and a
block's shares are added in a fixed order.

In Triton; imported only where Triton is. Legend: as in `sparse.py`, with S blocks selected for
each query, P parts and E = B K T S choices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from efficientllm.models.attend_cached import rows_of
from efficientllm.models.softmax_gradient_kernel import again, first_time, to_keys, to_queries
from efficientllm.models.sparse_look_kernel import places
from efficientllm.models.sparse_rows import LEAST, TOGETHER
from efficientllm.models.split_kernel import load_rows, warps, warps_alone

PARTS = 4096
"""Parts that the choices are cut into at most, beside one for each block. Not tuned."""

LEAST_PART = 256
"""Choices of a part at least: what it writes down must stay small beside what it reads."""


class Choices(NamedTuple):
    """Who chose each block, by (sequence, key/value head, block), cut into parts.

    `queries` [E] are positions, sorted by what they chose; block i of all has those from
    `begins[i]` to `begins[i + 1]`, and the parts from `parts[i]` to `parts[i + 1]`; `owners` are
    the blocks of as many parts as there can be, one past the last for those that there are not.
    """

    queries: Tensor
    begins: Tensor
    parts: Tensor
    owners: Tensor
    part: int


def chosen_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    down: Tensor,
    chosen: Tensor,
    block: int,
    dq: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of k and v [B, T, K, D]; that of q [B, T, H, D] is added to `dq`, in place.

    `out` is what the branch gave and `down` the gradient of that, both as q, `lse` [B, T, H]
    the log-sum-exps of its scores, which are products over the root of D, and `chosen`
    [B, T, K, S] what each query reads, up to itself: different blocks, negative or later ones
    for nothing. All are contiguous.
    """
    assert all(x.is_contiguous() for x in (q, k, v, out, lse, down, chosen, dq))
    assert chosen.numel() < 2**31
    (batch, length, heads, size), kv_heads = q.shape, k.shape[2]
    pairs, group, scale = batch * kv_heads, heads // kv_heads, size**-0.5
    fixed = {"kv_heads": kv_heads, "group": group, "block": block, "size": size}
    delta = torch.empty_like(lse)
    rows = min(rows_of(group), TOGETHER)
    _asking[(length, pairs, triton.cdiv(group, rows))](
        *(q, k, v, out, lse, down, chosen, dq, delta, length, chosen.shape[-1], scale),
        **fixed,
        rows=rows,
        num_warps=warps_alone(rows, size),
    )
    blocks = triton.cdiv(length, block)
    choices = choices_of(chosen, block, blocks)
    shares = torch.empty(
        (2, len(choices.owners), block, size), device=q.device, dtype=torch.float32
    )
    _asked[(len(choices.owners),)](
        *(q, k, v, lse, delta, down, *choices, *shares, length, blocks, pairs * blocks, scale),
        **fixed,
        rows=TOGETHER,
        num_stages=1,
        num_warps=warps(max(block, TOGETHER), size),
    )
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    tokens = min(block, LEAST)
    _added[(blocks, pairs, block // tokens)](
        *(*shares, choices.parts, dk, dv, length, blocks),
        kv_heads=kv_heads,
        block=block,
        size=size,
        rows=tokens,
        num_warps=4,
    )
    return dk, dv


def choices_of(chosen: Tensor, block: int, blocks: int) -> Choices:
    """Choices [B, T, K, S], of `blocks` blocks in each sequence and head, sorted by block.

    Nothing here waits for the device: how many parts there can be follows from sizes alone.
    """
    by_pair = chosen.transpose(1, 2).flatten(0, 1)
    pairs, length, selected = by_pair.shape
    own = (torch.arange(length, device=chosen.device) // block)[:, None]
    pair = torch.arange(pairs, device=chosen.device)[:, None, None]
    real = (by_pair >= 0) & (by_pair <= own)
    number = torch.where(real, pair * blocks + by_pair, pairs * blocks).to(torch.int32)
    number, order = number.flatten().sort(stable=True)
    every = torch.arange(pairs * blocks + 1, device=chosen.device, dtype=torch.int32)
    begins = torch.searchsorted(number, every)
    part = max(LEAST_PART, triton.cdiv(order.numel(), PARTS))
    parts = torch.zeros_like(begins)
    parts[1:] = ((begins.diff() + part - 1) // part).cumsum(0)
    most = pairs * blocks + order.numel() // part
    which = torch.arange(most, device=chosen.device)
    owners = torch.searchsorted(parts, which, right=True) - 1
    queries = order // selected % length
    queries, begins, parts, owners = (x.to(torch.int32) for x in (queries, begins, parts, owners))
    return Choices(queries, begins, parts, owners, part)


@triton.jit
def _asking(
    q,
    k,
    v,
    out,
    lse,
    down,
    chosen,
    dq,
    delta,
    length,
    selected,
    scale,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    block: tl.constexpr,
    size: tl.constexpr,
    rows: tl.constexpr,
):
    """What one query of one (sequence, key/value head) gets more; `delta` is kept for the keys."""
    at, which = tl.program_id(0), tl.program_id(1)
    sequence, kv_head = which // kv_heads, which % kv_heads
    row = tl.program_id(2) * rows + tl.arange(0, rows)
    real = row < group
    line = places(sequence, at, kv_head * group + row, length, kv_heads * group)
    asking = first_time(q, out, down, lse, delta, line, real, size)
    chosen += places(sequence, at, kv_head, length, kv_heads) * selected
    found = tl.zeros((rows, size), tl.float32)
    for number in range(selected):
        begin = tl.load(chosen + number) * block
        if (begin >= 0) & (begin <= at):
            index = begin + tl.arange(0, block)
            seen = index <= at
            place = places(sequence, index, kv_head, length, kv_heads) * size
            keys = load_rows(k + place[:, None], seen, size)
            values = load_rows(v + place[:, None], seen, size)
            found += to_queries(*asking, keys, values, seen[None, :], scale)
    dq += line[:, None] * size
    result = load_rows(dq, real, size).to(tl.float32) + found * scale
    place = dq + tl.arange(0, size)[None, :]
    tl.store(place, result.to(dq.dtype.element_ty), mask=real[:, None])


@triton.jit
def _asked(
    q,
    k,
    v,
    lse,
    delta,
    down,
    chosen_by,
    begins,
    parts,
    owners,
    part,
    dk,
    dv,
    length,
    blocks,
    every,
    scale,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    block: tl.constexpr,
    size: tl.constexpr,
    rows: tl.constexpr,
):
    """What one part of the queries that chose a block gives its keys and values."""
    which = tl.program_id(0).to(tl.int64)
    owner = tl.load(owners + which)
    if owner < every:
        pair = owner // blocks
        sequence, kv_head = pair // kv_heads, pair % kv_heads
        index = owner % blocks * block + tl.arange(0, block)
        place = places(sequence, index, kv_head, length, kv_heads) * size
        keys = load_rows(k + place[:, None], index < length, size)
        values = load_rows(v + place[:, None], index < length, size)
        for_keys = tl.zeros((block, size), tl.float32)
        for_values = tl.zeros((block, size), tl.float32)
        first = tl.load(begins + owner) + (which - tl.load(parts + owner)).to(tl.int32) * part
        last = tl.minimum(tl.load(begins + owner + 1), first + part)
        for start in range(0, (last - first) * group, rows):
            asked = start + tl.arange(0, rows)  # heads of a query, then those of the next
            choice = first + asked // group
            real = choice < last
            at = tl.load(chosen_by + choice, mask=real, other=0)
            head = kv_head * group + asked % group
            line = places(sequence, at, head, length, kv_heads * group)
            asking = again(q, down, lse, delta, line, real, size)
            behind = (index[:, None] <= at[None, :]) & real[None, :]
            some_keys, some_values = to_keys(*asking, keys, values, behind, scale)
            for_keys += some_keys
            for_values += some_values
        line = (which * block + tl.arange(0, block))[:, None] * size + tl.arange(0, size)[None, :]
        tl.store(dk + line, for_keys * scale)
        tl.store(dv + line, for_values)


@triton.jit
def _added(
    keys,
    values,
    parts,
    dk,
    dv,
    length,
    blocks,
    kv_heads: tl.constexpr,
    block: tl.constexpr,
    size: tl.constexpr,
    rows: tl.constexpr,
):
    """The shares of some tokens of one block of one (sequence, key/value head), added."""
    number, which = tl.program_id(0), tl.program_id(1)
    sequence, kv_head = which // kv_heads, which % kv_heads
    row = tl.program_id(2) * rows + tl.arange(0, rows)
    column = tl.arange(0, size)[None, :]
    for_keys = tl.zeros((rows, size), tl.float32)
    for_values = tl.zeros((rows, size), tl.float32)
    owner = which * blocks + number
    first, last = tl.load(parts + owner), tl.load(parts + owner + 1)
    line = (first.to(tl.int64) * block + row)[:, None] * size + column
    for _ in range(first, last):
        for_keys += tl.load(keys + line)
        for_values += tl.load(values + line)
        line += block * size
    index = number * block + row
    line = places(sequence, index, kv_head, length, kv_heads) * size
    inside = (index < length)[:, None]
    tl.store(dk + line[:, None] + column, for_keys.to(dk.dtype.element_ty), mask=inside)
    tl.store(dv + line[:, None] + column, for_values.to(dv.dtype.element_ty), mask=inside)
