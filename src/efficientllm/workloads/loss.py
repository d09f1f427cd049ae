"""Next-token loss over a large vocabulary.

The logits of 32,768 positions over 152,000 tokens are 10 GB in bf16 and twice that in
float32. `chunked` never holds more than a slice of them: it multiplies, takes the loss
*and its gradient*, and drops the slice, so nothing is computed again in the backward
pass. `liger` does the same in Triton kernels. `plain` is the reference for both.

Legend: N positions, C hidden size, V vocabulary.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from efficientllm.device import Device
from efficientllm.workloads.batches import IGNORED

Kind = Literal["plain", "chunked", "liger"]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(hidden [N, C], head weight [V, C], targets [N]) -> sum of the losses, float32."""

CHUNK_BYTES = 1 << 28


def resolve(wanted: str, device: Device, vocab: int) -> Kind:
    """What `auto` means here: plain for small vocabularies, else the fastest that is there."""
    match wanted:
        case "plain" | "chunked" | "liger":
            return wanted
        case _ if vocab <= 16_384:
            return "plain"
        case _ if device.torch.type == "cuda" and importlib.util.find_spec("liger_kernel"):
            return "liger"
        case _:
            return "chunked"


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
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

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
        rows = max(1, CHUNK_BYTES // (4 * head.shape[0]))
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if learns else None
        total = torch.zeros((), device=hidden.device, dtype=torch.float32)
        for start in range(0, hidden.shape[0], rows):
            part, goal = hidden[start : start + rows], targets[start : start + rows]
            scored = (goal != IGNORED).unsqueeze(1)
            place = goal.clamp_min(0).unsqueeze(1)
            log_p = F.log_softmax((part @ head.T).float(), dim=-1)
            total -= (log_p.gather(1, place) * scored).sum()
            gradient = log_p.exp_()
            gradient.scatter_add_(1, place, torch.full_like(place, -1, dtype=gradient.dtype))
            gradient = (gradient * scored).to(hidden.dtype)
            grad_hidden[start : start + rows] = gradient @ head
            if grad_weight is not None:
                grad_weight += gradient.T @ part
        ctx.weight_dtype = weight.dtype
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (scale,) = gradients
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_weight is not None:
            grad_weight = (grad_weight * scale).to(ctx.weight_dtype)
        return grad_hidden * scale.to(grad_hidden.dtype), grad_weight, None
