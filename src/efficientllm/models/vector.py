"""Linear layers that know a product with one vector when they see one.

Decoding one sequence multiplies every weight with a single row. Plain linear layers take the
kernel of `vector_kernel.py` for that, and their library's product for everything else; layers
that a quantizer or an adapter has changed stay what they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efficientllm.device import in_half_on_gpu
from efficientllm.models.attend_cached import INSTALLED


class VectorLinear(nn.Linear):
    """A linear layer whose product with one row reads its weights at full speed."""

    def forward(self, input: Tensor) -> Tensor:
        """x [..., K] -> [..., N]."""
        if input.numel() != self.in_features or input.dtype != self.weight.dtype:
            return F.linear(input, self.weight, self.bias)
        return _multiply(input, self.weight, self.bias)


def take_vectors(model: nn.Module) -> int:
    """Make every plain linear layer of a model one of these, in place; how many are.

    Parameters, their names and hooks stay what they were.
    """
    for module in model.modules():
        if type(module) is nn.Linear and fits(module):
            module.__class__ = VectorLinear
    return sum(isinstance(module, VectorLinear) for module in model.modules())


def fits(module: nn.Linear) -> bool:
    """Whether the kernel takes a layer's weights: plain ones, in half precision, on a GPU."""
    weight = module.weight
    plain = type(weight) is nn.Parameter and weight.is_contiguous()
    return INSTALLED and plain and in_half_on_gpu(weight.device, weight.dtype)


def multiply_heads(x: Tensor, weight: Tensor, layer: nn.Linear) -> Tensor:
    """A matrix for each head times that head's rows: x [B, H, T, K], weight [H, N, K].

    Gives [B, H, T, N]. `weight` is a view of a layer's; where that layer knows a product with
    one vector, so does this.
    """
    one = x.shape[0] * x.shape[2] == 1 and x.dtype == weight.dtype
    if one and isinstance(layer, VectorLinear):
        return _multiply_each(x, weight)
    return torch.einsum("bhtk,hnk->bhtn", x, weight)


@torch.library.custom_op("efficientllm::multiply_vector", mutates_args=())
def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """An operator of its own: a compiled layer stays one graph around it."""
    from efficientllm.models.vector_kernel import multiply

    return multiply(x, weight, bias)


@_multiply.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.custom_op("efficientllm::multiply_vectors", mutates_args=())
def _multiply_each(x: Tensor, weight: Tensor) -> Tensor:
    """The same for a matrix of each head."""
    from efficientllm.models.vector_kernel import multiply_each

    return multiply_each(x, weight)


@_multiply_each.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[1]))
