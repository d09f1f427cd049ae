"""SwiGLU on a GPU: each number is read once, in both directions.

With h = silu(g) u, s = sigmoid(g) and the output's gradient d, the gates get
d u s (1 + g (1 - s)) and the others d g s. All of it is worked out in float32 and rounded once.

On an H200, at 16,384 tokens x 8,960, Inductor's backward took 716 microseconds a layer where
its bytes alone (1.47 GB) take 360, because it writes the gradient of a split as a
concatenation; its forward took 202.

In Triton; imported only where Triton is. `swiglu.py` decides when it runs. Legend: N rows, F
feed-forward width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS, WARPS = 1024, 4
"""Columns of a program and its warps; what was measured, not tuned."""


def gate(both: Tensor) -> Tensor:
    """Gates and what they let through, side by side [..., 2 F] -> h [..., F]."""
    both = both.contiguous()
    width = both.shape[-1] // 2
    out = both.new_empty((*both.shape[:-1], width))
    if out.numel():
        _gate[_grid(out)](both, out, width=width, together=COLUMNS, num_warps=WARPS)
    return out


def gate_gradient(both: Tensor, down: Tensor) -> Tensor:
    """Gradient of `both` [..., 2 F] from that of h, `down` [..., F]."""
    both, down = both.contiguous(), down.contiguous()
    out = torch.empty_like(both)
    if down.numel():
        _gate_gradient[_grid(down)](
            *(both, down, out), width=down.shape[-1], together=COLUMNS, num_warps=WARPS
        )
    return out


def _grid(h: Tensor) -> tuple[int, int]:
    """Programs for h [..., F]: rows, and pieces of a row."""
    width = h.shape[-1]
    return h.numel() // width, triton.cdiv(width, COLUMNS)


@triton.jit
def _gate(both, out, width: tl.constexpr, together: tl.constexpr):
    """A piece of a row of h."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * together + tl.arange(0, together)
    real = at < width
    gates, passed = _halves(both + row * 2 * width, at, real, width)
    h = gates * tl.sigmoid(gates) * passed
    tl.store(out + row * width + at, h.to(out.dtype.element_ty), mask=real)


@triton.jit
def _gate_gradient(both, down, out, width: tl.constexpr, together: tl.constexpr):
    """A piece of a row of both gradients."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * together + tl.arange(0, together)
    real = at < width
    gates, passed = _halves(both + row * 2 * width, at, real, width)
    slope = tl.load(down + row * width + at, mask=real, other=0.0).to(tl.float32)
    share = tl.sigmoid(gates)
    to_gates = slope * passed * share * (1.0 + gates * (1.0 - share))
    to_passed = slope * gates * share
    out += row * 2 * width
    tl.store(out + at, to_gates.to(out.dtype.element_ty), mask=real)
    tl.store(out + width + at, to_passed.to(out.dtype.element_ty), mask=real)


@triton.jit
def _halves(line, at, real, width: tl.constexpr):
    """Gates of a row, and what they let through, in float32."""
    gates = tl.load(line + at, mask=real, other=0.0).to(tl.float32)
    passed = tl.load(line + width + at, mask=real, other=0.0).to(tl.float32)
    return gates, passed
