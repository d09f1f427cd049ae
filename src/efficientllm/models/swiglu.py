"""SwiGLU of a fused product in training: both directions are operators of their own.

Opaque to the compiler, so that h is kept for the product after it and not made again, and that
the gradient of both halves is written in one go (`swiglu_kernel.py`). The layer stays one graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from efficientllm.device import in_half_on_gpu
from efficientllm.models.attend_cached import INSTALLED


def takes(layer: nn.Module, both: Tensor) -> bool:
    """Whether the kernels take the product `both` of a layer: to learn, on a GPU, in half.

    Without gradients Inductor's own forward stays, which it can join with what stands beside
    it; so do layers that a quantizer or an adapter has changed.
    """
    plain = type(layer) is nn.Linear and type(layer.weight) is nn.Parameter
    return INSTALLED and plain and both.requires_grad and in_half_on_gpu(both.device, both.dtype)


@torch.library.custom_op("efficientllm::swiglu", mutates_args=())
def swiglu(both: Tensor) -> Tensor:
    """silu(gates) times the others, which lie side by side: [..., 2 F] -> [..., F]."""
    from efficientllm.models.swiglu_kernel import gate

    return gate(both)


@swiglu.register_fake
def _(both: Tensor) -> Tensor:
    return both.new_empty((*both.shape[:-1], both.shape[-1] // 2))


@torch.library.custom_op("efficientllm::swiglu_backward", mutates_args=())
def _backward(both: Tensor, down: Tensor) -> Tensor:
    """Gradient of `both` [..., 2 F] from that of the output [..., F]."""
    from efficientllm.models.swiglu_kernel import gate_gradient

    return gate_gradient(both, down)


@_backward.register_fake
def _(both: Tensor, down: Tensor) -> Tensor:
    return both.new_empty(both.shape)


def _keep(ctx: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)  # type: ignore[attr-defined]


def _gradient(ctx: object, down: Tensor) -> Tensor:
    (both,) = ctx.saved_tensors  # type: ignore[attr-defined]
    return _backward(both, down)


swiglu.register_autograd(_gradient, setup_context=_keep)
