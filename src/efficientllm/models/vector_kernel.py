"""A product with one vector on a GPU: every weight is read once, and nothing else matters.

At batch 1 a decoded token costs what its weights cost to read. A library's product takes the
vector for a thin matrix: on an H100 this one is 1.05 to 1.6 times as fast, at 14 sizes of 0.5B
to 8B models (2.0 to 3.2 TB/s from 17 MB on). Inductor's reduction comes as near, after ten
seconds of tuning that ends elsewhere every time.

In Triton; imported only where Triton is. `vector.py` decides when it runs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS, WARPS = 2, 1024, 4
"""Rows of a program, columns read at once, warps: of 21 settings on an H100 the one that is
nearest to the best everywhere, 2 % from it on average and 11 % at most (14 sizes)."""

LINES_ACROSS, LINES_ALONG = 32, 8
"""Rows of a program where a head has a matrix of its own; not tuned, 128 programs at 0.5B."""


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """weight [N, K] times x [..., K] of one row, plus bias [N]: [..., N], summed in float32."""
    rows, columns = weight.shape
    out = torch.empty((*x.shape[:-1], rows), device=x.device, dtype=x.dtype)
    _multiply[(triton.cdiv(rows, ROWS),)](
        *(x.contiguous(), weight, bias, out, rows, columns, weight.stride(0)),
        together=ROWS,
        width=COLUMNS,
        even=columns % COLUMNS == 0,
        num_warps=WARPS,
    )
    return out


def multiply_each(x: Tensor, weight: Tensor) -> Tensor:
    """A matrix for each head, weight [H, N, K] of any strides, times its row of x [1, H, 1, K].

    Gives [1, H, 1, N]. Such products are small (MLA's absorbed ones: 16 of 64 x 256 at 0.5B),
    so a program takes all columns of some rows at once, more rows where these are what lies
    side by side in memory.
    """
    heads, rows, columns = weight.shape
    out = torch.empty((1, heads, 1, rows), device=x.device, dtype=x.dtype)
    together = LINES_ACROSS if weight.stride(1) == 1 else LINES_ALONG
    _multiply_each[(triton.cdiv(rows, together), heads)](
        *(x, weight, out, rows, columns, x.stride(1), x.stride(3), *weight.stride()),
        together=together,
        width=triton.next_power_of_2(columns),
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


@triton.jit
def _multiply_each(
    x,
    weight,
    out,
    rows,
    columns,
    x_head,
    x_step,
    head_step,
    row_step,
    column_step,
    together: tl.constexpr,
    width: tl.constexpr,
):
    """`together` rows of one head's product."""
    head = tl.program_id(1).to(tl.int64)
    row, column = tl.program_id(0) * together + tl.arange(0, together), tl.arange(0, width)
    real, inside = row < rows, column < columns
    some = tl.load(x + head * x_head + column * x_step, mask=inside, other=0.0)
    place = weight + head * head_step + row[:, None] * row_step + column[None, :] * column_step
    read = tl.load(place, mask=real[:, None] & inside[None, :], other=0.0)
    result = tl.sum(read.to(tl.float32) * some.to(tl.float32)[None, :], 1)
    tl.store(out + head * rows + row, result.to(out.dtype.element_ty), mask=real)
