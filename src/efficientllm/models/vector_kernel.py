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

from efficientllm.models.chain_kernel import follow, links

ROWS, COLUMNS, EACH = 4, 2048, 32
"""Rows of a program, columns read at once at most, and how many weights of these a thread has.

On an H200, kernels one after the other: 4 rows and 8 warps for 2,048 columns were the best of 36
settings at 8B and are within 3 % of the best of 11 at 1.5B and 3B. Shorter rows want as many
weights a thread: with 4 warps for 1,024 columns, and for 2,048 too, a step of 0.5B took 0.70 ms
instead of 0.75 (4 here and 8 there are predicted to)."""

LINES_ACROSS, LINES_ALONG, WARPS = 32, 8, 8
"""Rows of a program, and its warps, where a head has a matrix of its own; not tuned, 128 programs
at 0.5B."""


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """weight [N, K] times x [..., K] of one row, plus bias [N]: [..., N], summed in float32."""
    rows, columns = weight.shape
    out = torch.empty((*x.shape[:-1], rows), device=x.device, dtype=x.dtype)
    width = min(COLUMNS, triton.next_power_of_2(columns))
    _multiply[(triton.cdiv(rows, ROWS),)](
        *(x.contiguous(), weight, bias, out, rows, columns, weight.stride(0)),
        together=ROWS,
        width=width,
        even=columns % width == 0,
        num_warps=warps(width),
        **links(),
    )
    return out


def warps(width: int) -> int:
    """Of 32 threads, for a program that reads so many columns at once."""
    return max(1, ROWS * width // (32 * EACH))


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
        **links(),
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
    chained: tl.constexpr,
):
    """`together` rows of the product."""
    row = tl.program_id(0) * together + tl.arange(0, together)
    real = row < rows
    line = weight + row[:, None].to(tl.int64) * stride
    column = tl.arange(0, width)
    read = _weights(line, real, column, columns, even)  # on their way before there is an x
    follow(chained)
    total = read.to(tl.float32) * _vector(x, column, columns, even)
    for start in range(width, columns, width):
        column = start + tl.arange(0, width)
        read = _weights(line, real, column, columns, even)
        total += read.to(tl.float32) * _vector(x, column, columns, even)
    result = tl.sum(total, 1)
    if bias is not None:
        result += tl.load(bias + row, mask=real, other=0.0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=real)


@triton.jit
def _weights(line, real, column, columns, even: tl.constexpr):
    """Some columns of some rows; zeros where there are none. No weight is read twice a step."""
    wanted = real[:, None] if even else real[:, None] & (column < columns)[None, :]
    return tl.load(line + column[None, :], mask=wanted, other=0.0, eviction_policy="evict_first")


@triton.jit
def _vector(x, column, columns, even: tl.constexpr):
    """The numbers that these columns are multiplied with, a row of float32."""
    some = tl.load(x + column) if even else tl.load(x + column, mask=column < columns, other=0.0)
    return some.to(tl.float32)[None, :]


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
    chained: tl.constexpr,
):
    """`together` rows of one head's product."""
    head = tl.program_id(1).to(tl.int64)
    row, column = tl.program_id(0) * together + tl.arange(0, together), tl.arange(0, width)
    real, inside = row < rows, column < columns
    place = weight + head * head_step + row[:, None] * row_step + column[None, :] * column_step
    read = tl.load(place, mask=real[:, None] & inside[None, :], other=0.0)
    follow(chained)
    some = tl.load(x + head * x_head + column * x_step, mask=inside, other=0.0)
    result = tl.sum(read.to(tl.float32) * some.to(tl.float32)[None, :], 1)
    tl.store(out + head * rows + row, result.to(out.dtype.element_ty), mask=real)
