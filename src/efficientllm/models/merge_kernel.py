"""Parts of attention put together by their log-sum-exps, in one kernel.

Each branch (all of plain attention is one) has its own softmax over its parts; where there
are several, each is weighted by the sigmoid of its gate, head by head. As a few operations of
a compiler this is three reductions a branch, and their launches cost more than they do.

In Triton; imported only where Triton is. Legend: as in `split_kernel.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from efficientllm.models.chain_kernel import follow, links

MOST_TOGETHER, MOST_NUMBERS = 128, 16_384
"""Parts, and numbers of them, that a program reads at once; where parts are gated, it reads all."""


def merge(
    out: Tensor, lse: Tensor, gates: Tensor | None, ends: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Parts [B, K, P, G, E] and their log-sum-exps [B, K, P, G] -> [B, K, G, E].

    Branch i is the parts from where the one before ends up to `ends[i]`; one that saw nothing
    gives zeros. `gates` [B, branches * K * G] are those before their sigmoid, branch by branch
    and side by side; several branches have them. A program reads all parts of these at once, so
    whoever makes them keeps them few where it can (from four times MOST_NUMBERS on they spill).
    """
    batch, kv_heads, parts, group, width = out.shape
    merged = torch.empty((batch, kv_heads, group, width), device=out.device, dtype=dtype)
    together = triton.next_power_of_2(parts)
    options = links()
    if gates is None:
        together = min(MOST_TOGETHER, MOST_NUMBERS // width, together)
        _merge[(batch * kv_heads, group)](
            *(out, lse, merged, parts, group),
            together=together,
            width=width,
            num_warps=_warps(together, width),
            **options,
        )
        return merged
    _merge_gated[(batch * kv_heads, group)](
        # Gates may be a part of a fused product.
        *(out, lse, gates, merged, ends, group, kv_heads * group, gates.stride(0)),
        branches=len(ends),
        together=together,
        width=width,
        num_warps=_warps(together, width),
        **options,
    )
    return merged


def _warps(together: int, width: int) -> int:
    """Of a program that reads so many parts at once."""
    return 8 if together * width >= 8192 else 4


@triton.jit
def _merge(
    out,
    lse,
    merged,
    parts,
    group,
    together: tl.constexpr,
    width: tl.constexpr,
    chained: tl.constexpr,
):
    """One head of one sequence; its parts may be many."""
    follow(chained)
    which, row = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, width)
    most = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    mixed = tl.zeros((width,), tl.float32)
    for first in range(0, parts, together):
        part = first + tl.arange(0, together)
        score, values = _read(out, lse, which, part, part < parts, parts, group, row, column)
        # Where nothing was seen so far, minus infinity from itself must not be taken.
        higher = tl.maximum(most, tl.max(score, 0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weight, faded = tl.exp(score - base), tl.exp(most - base)
        mixed = mixed * faded + tl.sum(weight[:, None] * values, 0)
        most, total = higher, total * faded + tl.sum(weight, 0)
    mixed /= tl.where(total == 0.0, 1.0, total)
    tl.store(merged + (which * group + row) * width + column, mixed.to(merged.dtype.element_ty))


@triton.jit
def _merge_gated(
    out,
    lse,
    gates,
    merged,
    ends,
    group,
    heads,
    stride,
    branches: tl.constexpr,
    together: tl.constexpr,
    width: tl.constexpr,
    chained: tl.constexpr,
):
    """One head of one sequence: all is read before anything is made of it."""
    follow(chained)
    which, row = tl.program_id(0), tl.program_id(1)
    column, part, parts = tl.arange(0, width), tl.arange(0, together), ends[branches - 1]
    branch = tl.zeros((together,), tl.int32)
    for i in tl.static_range(branches - 1):
        branch += (part >= ends[i]).to(tl.int32)
    inside = part < parts
    head = which * group + row  # sequence by sequence
    place = head // heads * stride + branch * heads + head % heads
    gate = tl.sigmoid(tl.load(gates + place, mask=inside, other=0.0).to(tl.float32))
    score, values = _read(out, lse, which, part, inside, parts, group, row, column)
    share = tl.zeros((together,), tl.float32)
    for i in tl.static_range(branches):
        own = tl.where(branch == i, score, float("-inf"))
        most = tl.max(own, 0)
        weight = tl.exp(own - tl.where(most == float("-inf"), 0.0, most))
        total = tl.sum(weight, 0)
        share += weight / tl.where(total == 0.0, 1.0, total)
    result = tl.sum((share * gate)[:, None] * values, 0)
    tl.store(merged + (which * group + row) * width + column, result.to(merged.dtype.element_ty))


@triton.jit
def _read(out, lse, which, part, inside, parts, group, row, column):
    """Log-sum-exps and outputs of some parts of one head; minus infinity where there are none."""
    width: tl.constexpr = column.shape[0]
    line = (which * parts + part) * group + row
    score = tl.load(lse + line, mask=inside, other=float("-inf"))
    place = line[:, None].to(tl.int64) * width + column[None, :]
    return score, tl.load(out + place, mask=inside[:, None], other=0.0)
