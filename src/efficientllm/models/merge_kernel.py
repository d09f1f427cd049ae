"""Parts of attention put together by their log-sum-exps, in one kernel.

Each branch (all of plain attention is one) has its own softmax over its parts; where there
are several, each is weighted by the sigmoid of its gate, head by head. As a few operations of
a compiler this is three reductions a branch, and their launches cost more than they do.

In Triton; imported only where Triton is. Legend: as in `split_kernel.py`.
"""

from __future__ import annotations

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from efficientllm.models.chain_kernel import follow, links

MOST_TOGETHER, MOST_NUMBERS = 128, 16_384
"""Parts, and numbers of them, that a program reads at once: one read after another takes long."""


def merge(
    out: Tensor, lse: Tensor, gates: Tensor | None, ends: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Parts [B, K, P, G, E] and their log-sum-exps [B, K, P, G] -> [B, K, G, E].

    Branch i is the parts from where the one before ends up to `ends[i]`; one that saw nothing
    gives zeros. `gates` [B, branches * K * G] are those before their sigmoid, branch by branch.
    """
    batch, kv_heads, parts, group, width = out.shape
    merged = torch.empty((batch, kv_heads, group, width), device=out.device, dtype=dtype)
    longest = max(end - start for start, end in itertools.pairwise((0, *ends)))
    together = min(MOST_TOGETHER, MOST_NUMBERS // width, triton.next_power_of_2(longest))
    gates = gates if gates is None else gates.contiguous()  # may be rows of a fused product
    _merge[(batch * kv_heads, group)](
        *(out, lse, gates, merged, ends, parts, group, kv_heads * group),
        branches=len(ends),
        together=together,
        width=width,
        num_warps=8 if together * width >= 8192 else 4,
        **links(),
    )
    return merged


@triton.jit
def _merge(
    out,
    lse,
    gates,
    merged,
    ends,
    parts,
    group,
    heads,
    branches: tl.constexpr,
    together: tl.constexpr,
    width: tl.constexpr,
    chained: tl.constexpr,
):
    """One head of one sequence."""
    follow(chained)
    which, row = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, width)
    result = tl.zeros((width,), tl.float32)
    start = 0
    for branch in tl.static_range(branches):
        most = tl.full((), float("-inf"), tl.float32)
        total = tl.full((), 0.0, tl.float32)
        mixed = tl.zeros((width,), tl.float32)
        for first in range(start, ends[branch], together):
            part = first + tl.arange(0, together)
            line = (which * parts + part) * group + row
            inside = part < ends[branch]
            score = tl.load(lse + line, mask=inside, other=float("-inf"))
            # Where nothing was seen so far, minus infinity from itself must not be taken.
            higher = tl.maximum(most, tl.max(score, 0))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            weight, faded = tl.exp(score - base), tl.exp(most - base)
            place = line[:, None].to(tl.int64) * width + column[None, :]
            values = tl.load(out + place, mask=inside[:, None], other=0.0)
            mixed = mixed * faded + tl.sum(weight[:, None] * values, 0)
            most, total = higher, total * faded + tl.sum(weight, 0)
        mixed /= tl.where(total == 0.0, 1.0, total)
        if gates is not None:
            head = which * group + row  # sequence by sequence
            gate = head // heads * (branches * heads) + branch * heads + head % heads
            mixed *= tl.sigmoid(tl.load(gates + gate).to(tl.float32))
        result += mixed
        start = ends[branch]
    tl.store(merged + (which * group + row) * width + column, result.to(merged.dtype.element_ty))
