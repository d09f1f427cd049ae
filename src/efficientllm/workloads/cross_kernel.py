"""The loss of a slice of logits on a GPU, which become their own gradient in one kernel.

A program takes one row: it reads it for the log-sum-exp, and again for the gradient. The rows
that an H200 works on at once are 40 MB (132 of 304 KB at a vocabulary of 152,000), so the
second reading comes from its second-level cache. Two kernels read all logits twice from memory.

In Triton; imported only where Triton is. `loss.py` decides when it runs, and holds the
reference. Legend: n rows, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS, WARPS = 8192, 16
"""Columns of a row that are read at once, and warps; what was measured, not tuned."""


def turn_into_gradient(logits: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """The sum of the losses of logits [n, V], which become their own gradient in place.

    Rows with the target `ignored` have no loss and no gradient; sums are in float32.
    """
    assert logits.is_contiguous(), "rows lie one after the other"
    rows, vocab = logits.shape
    losses = torch.empty(rows, device=logits.device, dtype=torch.float32)
    together = min(COLUMNS, triton.next_power_of_2(vocab))
    _cross[(rows,)](
        *(logits, targets, losses, vocab), ignored=ignored, together=together, num_warps=WARPS
    )
    return losses.sum()


@triton.jit
def _cross(logits, targets, losses, vocab, ignored: tl.constexpr, together: tl.constexpr):
    """The loss and the gradient of one row."""
    row = tl.program_id(0).to(tl.int64)  # logits of a large slice are more than 2^31
    target = tl.load(targets + row)
    scored = target != ignored
    place = tl.where(scored, target, 0)
    start = logits + row * vocab
    most = tl.full((together,), float("-inf"), tl.float32)
    total = tl.zeros((together,), tl.float32)
    for first in range(0, vocab, together):
        column = first + tl.arange(0, together)
        x = tl.load(start + column, mask=column < vocab, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(most, x)
        # Finite: of columns without a number nothing is taken from minus infinity.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(most - base) + tl.exp(x - base)
        most = higher
    top = tl.max(most, 0)
    norm = top + tl.log(tl.sum(total * tl.exp(most - top), 0))
    exact = tl.load(start + place).to(tl.float32)
    tl.store(losses + row, tl.where(scored, norm - exact, 0.0))
    tl.debug_barrier()  # every thread has read the target's logit before one writes over it
    for first in range(0, vocab, together):
        column = first + tl.arange(0, together)
        x = tl.load(start + column, mask=column < vocab, other=float("-inf")).to(tl.float32)
        gradient = tl.exp(x - norm) - tl.where(column == place, 1.0, 0.0)
        gradient = tl.where(scored, gradient, 0.0)
        tl.store(start + column, gradient.to(logits.dtype.element_ty), mask=column < vocab)
