"""A product with one vector on a GPU: every weight is read once, and nothing else matters.

At batch 1 a decoded token costs what its weights cost to read. A library's product takes the
vector for a thin matrix and reaches 2.0 to 2.7 of the 3.0 TB/s that an H100 copies; Inductor's
own reduction reaches up to 2.96, after ten seconds of tuning that ends elsewhere every time.
This one has rows of weights side by side in a program and needs no tuning.

In Triton; imported only where Triton is. `vector.py` decides when it runs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS, WARPS = 1024, 4
"""Columns of a row read at once, and the warps that do it: the fastest of 24 on an H100."""

FULL = 1024
"""Programs that fill a card: with more rows a program takes several."""

MOST_ROWS = 4


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """weight [N, K] times x [..., K] of one row, plus bias [N]: [..., N], summed in float32."""
    rows, columns = weight.shape
    out = torch.empty((*x.shape[:-1], rows), device=x.device, dtype=x.dtype)
    together = max(1, min(MOST_ROWS, triton.next_power_of_2(rows // FULL + 1) // 2))
    _multiply[(triton.cdiv(rows, together),)](
        *(x.contiguous(), weight, bias, out, rows, columns, weight.stride(0)),
        together=together,
        width=COLUMNS,
        even=columns % COLUMNS == 0,
        num_warps=WARPS,
    )
    return out


@triton.jit
def _multiply(
    x,
    weight,
    bias,
    out,
    rows,
    columns,
    stride,
    together: tl.constexpr,
    width: tl.constexpr,
    even: tl.constexpr,
):
    """`together` rows of the product."""
    row = tl.program_id(0) * together + tl.arange(0, together)
    real = row < rows
    line = weight + row[:, None].to(tl.int64) * stride
    total = tl.zeros((together, width), tl.float32)
    for start in range(0, columns, width):
        column = start + tl.arange(0, width)
        if even:
            some = tl.load(x + column)
            read = tl.load(line + column[None, :], mask=real[:, None], other=0.0)
        else:
            inside = column < columns
            some = tl.load(x + column, mask=inside, other=0.0)
            read = tl.load(line + column[None, :], mask=real[:, None] & inside[None, :], other=0.0)
        total += read.to(tl.float32) * some.to(tl.float32)[None, :]
    result = tl.sum(total, 1)
    if bias is not None:
        result += tl.load(bias + row, mask=real, other=0.0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=real)
