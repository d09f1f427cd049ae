"""Next-token loss over a large vocabulary.

The logits of 32,768 positions over 152,000 tokens are 10 GB in bf16 and twice that in
float32. `chunked` never holds more than a slice of them: it multiplies, takes the loss
*and its gradient*, and drops the slice, so nothing is computed again in the backward
pass; on a GPU in half precision one kernel does both (`cross_kernel.py`). `liger` does the
same in slices of some hundred rows, so that it reads and writes the gradient of the head many
times; `chunked` takes slices of thousands.
`plain` is the reference for both.

Legend: N positions, C hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from efficientllm.device import in_half_on_gpu
from efficientllm.models.attend_cached import INSTALLED
from efficientllm.predict import LOSS_SLICE_BYTES, PLAIN_LOSS_VOCAB
from efficientllm.record import Unsupported
from efficientllm.workloads.batches import IGNORED
from efficientllm.workloads.compiling import compiled

Kind = Literal["plain", "chunked", "liger"]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(hidden [N, C], head weight [V, C], targets [N]) -> sum of the losses, float32."""

CHUNK_BYTES = LOSS_SLICE_BYTES
"""Bytes of one slice of logits: 4,096 positions of a vocabulary of 152,000 in bf16."""


def resolve(wanted: str, vocab: int) -> Kind:
    """What `auto` means here: plain for small vocabularies, else slices."""
    match wanted:
        case "plain" | "chunked" | "liger":
            return wanted
        case _:
            return "plain" if vocab <= PLAIN_LOSS_VOCAB else "chunked"


def loss_of(kind: Kind) -> Loss:
    """The function that computes a loss; all kinds give the same number."""
    match kind:
        case "plain":
            return _plain
        case "chunked":
            return _chunked
        case "liger":
            return _liger()


def _plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, weight.to(hidden.dtype)).float()
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def _chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    result = _ChunkedCrossEntropy.apply(hidden, weight, targets)
    assert isinstance(result, Tensor)
    return result


def _liger() -> Loss:
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import (
            LigerFusedLinearCrossEntropyFunction,
        )
    except ImportError as error:
        raise Unsupported(
            "loss: liger needs the package liger-kernel: pip install 'efficientllm[gpu]'"
        ) from error

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        out: Any = LigerFusedLinearCrossEntropyFunction.apply(
            *(hidden, weight.to(hidden.dtype), targets, None, None, IGNORED, 0.0, 0.0, "sum"),
            *(None, False, torch.float32),  # no softcap, no z loss, gradients summed in float32
        )
        return out[0] if isinstance(out, tuple) else out

    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradients slice by slice, in one pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        learns = ctx.needs_input_grad[1]
        head = weight.to(hidden.dtype)
        rows = slice_rows(hidden.shape[0], head.shape[0], hidden.element_size())
        grad_hidden, grad_weight = torch.empty_like(hidden), None
        total = torch.zeros((), device=hidden.device, dtype=torch.float32)
        for start in range(0, hidden.shape[0], rows):
            part, goal = hidden[start : start + rows], targets[start : start + rows]
            logits = part @ head.T
            total += _turn(logits, goal)
            grad_hidden[start : start + rows] = logits @ head
            if learns:
                grad_weight = _add_product(grad_weight, logits, part)
        ctx.weight_dtype = weight.dtype
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (scale,) = gradients
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_weight is not None:
            grad_weight = _scaled(grad_weight, scale, ctx.weight_dtype)
        # Of two dimensions, else torch rounds it to half precision first: up to 0.4 % for all.
        return _scaled(grad_hidden, scale.reshape(1, 1), grad_hidden.dtype), grad_weight, None


def slice_rows(positions: int, vocab: int, element_bytes: int) -> int:
    """Rows of one slice: at most CHUNK_BYTES of logits, and equal slices where that can be.

    Slices of one size are compiled once.
    """
    most = max(1, CHUNK_BYTES // (element_bytes * vocab))
    least = -(-positions // most)
    count = next((n for n in range(least, 2 * least + 1) if positions % n == 0), least)
    return -(-positions // count)


def _turn(logits: Tensor, targets: Tensor) -> Tensor:
    """`_turn_into_gradient` by what is fastest here."""
    if INSTALLED and in_half_on_gpu(logits.device, logits.dtype):
        from efficientllm.workloads.cross_kernel import turn_into_gradient

        return turn_into_gradient(logits, targets, IGNORED)
    turn = _compiled_turn() if logits.is_cuda else _turn_into_gradient
    return turn(logits, targets)


def _turn_into_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """The sum of the losses of logits [n, V], which become their own gradient in place."""
    scored = (targets != IGNORED).unsqueeze(1)
    place = targets.clamp_min(0).unsqueeze(1)
    exact = logits.float()
    norm = exact.logsumexp(dim=-1, keepdim=True)
    loss = ((norm - exact.gather(1, place)) * scored).sum()
    columns = torch.arange(logits.shape[1], device=logits.device)
    gradient = (exact - norm).exp() - (columns == place).float()
    logits.copy_(gradient * scored)
    return loss


@cache
def _compiled_turn() -> Callable[[Tensor, Tensor], Tensor]:
    """The same in two kernels of Inductor's: for float32 on a GPU."""
    return compiled(_turn_into_gradient)


def _add_product(total: Tensor | None, gradient: Tensor, hidden: Tensor) -> Tensor:
    """total [V, C] += gradient [n, V]^T hidden [n, C], summed in float32 over all slices.

    The first slice has no total yet: zeros would be written, and read again, for nothing.
    """
    if gradient.is_cuda and gradient.dtype != torch.float32:
        if total is None:
            return torch.mm(gradient.T, hidden, out_dtype=torch.float32)
        return torch.addmm(total, gradient.T, hidden, out_dtype=torch.float32, out=total)
    product = (gradient.T @ hidden).float()
    return product if total is None else total.add_(product)


def _scaled(gradient: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient of two dimensions times a number, rounded once to `dtype`, in one pass."""
    out = gradient if gradient.dtype == dtype else torch.empty_like(gradient, dtype=dtype)
    return torch.mul(gradient, scale, out=out)
