"""Native sparse attention of whole rows on a GPU: in one go for prefill, in branches to train.

First the means of blocks are attended to (`sparse_look_kernel.py`). Then, for each query, the
blocks that were looked at most are taken one after the other and attended to: `_read` puts the
three branches together under their gates at once, `_branch` keeps what gradients need
(`sparse_means_kernel.py`, `sparse_chosen_kernel.py`).

In Triton; imported only where Triton is. Legend: as in `sparse_split_kernel.py`, with T
positions instead of S slots and H = K G heads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from efficientllm.models.attend_cached import rows_of
from efficientllm.models.sparse_look_kernel import lines, looks, places
from efficientllm.models.split_kernel import load_rows, mix, warps_alone


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
    sigmoid. What comes back is laid out as [B, T, H, D], as the product after it reads it.
    """
    assert all(x.stride(-1) == 1 for x in (q, k, v, near, *means)), (
        "numbers of a head lie side by side"
    )
    batch, heads, length, size = q.shape
    kv_heads, gates = k.shape[1], gates.contiguous()
    out = q.new_empty((batch, length, heads, size)).transpose(1, 2)
    for first, last, shares in looks(q, means, out, None, block):
        _read[(last - first, batch * kv_heads)](
            *(q, k, v, near, gates, out, shares, q.stride(), k.stride(), v.stride()),
            *(near.stride(), out.stride(), first, *shares.shape[1:], length, selected),
            size**-0.5,
            **_reading(heads // kv_heads, kv_heads, block, size, shares.shape[-1]),
        )
    return out


def attend_branches(
    q: Tensor, k: Tensor, v: Tensor, means: tuple[Tensor, Tensor], block: int, selected: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The compressed and the selected branch, and what their gradients need.

    q [B, T, H, D], k and v [B, T, K, D], means [B, N, K, D], contiguous -> two outputs as q,
    the log-sum-exps [B, T, H] of each, and the blocks that were chosen [B, T, K, selected],
    -1 where there are no more.
    """
    assert all(x.is_contiguous() for x in (q, k, v, *means))
    (batch, length, heads, size), kv_heads = q.shape, k.shape[2]
    compressed, out = torch.empty_like(q), torch.empty_like(q)
    looked, lse = (q.new_empty(q.shape[:3], dtype=torch.float32) for _ in range(2))
    chosen = q.new_empty((batch, length, kv_heads, selected), dtype=torch.int32)
    block_k, block_v = (x.transpose(1, 2) for x in means)
    views = q.transpose(1, 2), (block_k, block_v), compressed.transpose(1, 2)
    for first, last, shares in looks(*views, looked, block):
        _branch[(last - first, batch * kv_heads)](
            *(q, k, v, out, lse, chosen, shares, first, *shares.shape[1:], length, selected),
            size**-0.5,
            **_reading(heads // kv_heads, kv_heads, block, size, shares.shape[-1]),
        )
    return compressed, out, looked, lse, chosen


def _reading(group: int, kv_heads: int, block: int, size: int, blocks: int) -> dict[str, int]:
    """What is known of a query's reading before it runs."""
    rows = rows_of(group)
    return {
        "kv_heads": kv_heads,
        "group": group,
        "block": block,
        "size": size,
        "rows": rows,
        "numbers": triton.next_power_of_2(blocks),
        "num_warps": warps_alone(rows, size),
    }


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
    query = load_rows(lines(q, q_strides, sequence, head, at)[:, None], real, size)
    k += sequence * k_strides[0] + kv_head * k_strides[1]
    v += sequence * v_strides[0] + kv_head * v_strides[1]
    share = ranked(shares + (which * chunk + asked) * blocks, at, block, numbers)
    total, _, mixed = _attend_chosen(
        *(query, k, v, k_strides[2], v_strides[2], share, None, at, selected, scale, block)
    )
    heads: tl.constexpr = kv_heads * group
    gate = gates + (sequence * length + at) * 3 * heads + head
    line = lines(out, out_strides, sequence, head, at)[:, None] + column[None, :]
    beside = lines(near, near_strides, sequence, head, at)[:, None] + column[None, :]
    result = _open(gate, real) * tl.load(line, mask=real[:, None], other=0.0).to(tl.float32)
    result += _open(gate + heads, real) * (mixed / total[:, None])
    window = tl.load(beside, mask=real[:, None], other=0.0).to(tl.float32)
    result += _open(gate + 2 * heads, real) * window
    tl.store(line, result.to(out.dtype.element_ty), mask=real[:, None])


@triton.jit
def _branch(
    q,
    k,
    v,
    out,
    lse,
    chosen,
    shares,
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
    """The selected branch of one query of one (sequence, key/value head), and what it chose."""
    asked, which = tl.program_id(0), tl.program_id(1).to(tl.int64)
    sequence, kv_head = which // kv_heads, which % kv_heads
    row, at = tl.arange(0, rows), first + asked
    real = row < group
    line = places(sequence, at, kv_head * group + row, length, kv_heads * group)
    query = load_rows(q + line[:, None] * size, real, size)
    k += (sequence * length * kv_heads + kv_head) * size
    v += (sequence * length * kv_heads + kv_head) * size
    share = ranked(shares + (which * chunk + asked) * blocks, at, block, numbers)
    chosen += places(sequence, at, kv_head, length, kv_heads) * selected
    step = kv_heads * size
    total, most, mixed = _attend_chosen(
        *(query, k, v, step, step, share, chosen, at, selected, scale, block)
    )
    place = out + line[:, None] * size + tl.arange(0, size)[None, :]
    tl.store(place, (mixed / total[:, None]).to(out.dtype.element_ty), mask=real[:, None])
    tl.store(lse + line, most + tl.log(total), mask=real)


@triton.jit
def _attend_chosen(
    query, k, v, k_step, v_step, share, chosen, at, selected, scale, block: tl.constexpr
):
    """One query's softmax over the best blocks: sums, largest scores and mixed values.

    Writes down which they were, where `chosen` is there.
    """
    rows: tl.constexpr = query.shape[0]
    size: tl.constexpr = query.shape[1]
    number = tl.arange(0, share.shape[0])
    # Finite: of rows without a key nothing is taken from minus infinity.
    most = tl.full((rows,), -1e30, tl.float32)
    total = tl.zeros((rows,), tl.float32)
    mixed = tl.zeros((rows, size), tl.float32)
    for turn in range(selected):
        best, found = tl.max(share, 0, return_indices=True)
        if best >= 0.0:  # else there are no more blocks up to its own
            index = found * block + tl.arange(0, block)
            seen = index <= at
            keys = load_rows(k + index[:, None].to(tl.int64) * k_step, seen, size)
            values = load_rows(v + index[:, None].to(tl.int64) * v_step, seen, size)
            scores = tl.dot(query, tl.trans(keys)) * scale
            scores = tl.where(seen[None, :], scores, float("-inf"))
            most, total, mixed = mix(scores, values, most, total, mixed)
        if chosen is not None:
            tl.store(chosen + turn, tl.where(best >= 0.0, found, -1))
        share = tl.where(number == found, -1.0, share)
    return total, most, mixed


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
def _open(gates, real):
    """How far gates are open, a column."""
    return tl.sigmoid(tl.load(gates, mask=real, other=0.0).to(tl.float32))[:, None]
