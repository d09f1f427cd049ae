"""Where our kernels run in tests: on a GPU in half precision, else interpreted in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from efficientllm.models.attend_cached import INSTALLED
from efficientllm.models.sparse_reference import masked

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPE = torch.bfloat16 if GPU else torch.float32
TOLERANCE = 0.02 if GPU else 1e-5
"""Largest error, as a norm, against float32 of the same inputs."""

with_triton = pytest.mark.skipif(not INSTALLED, reason="the kernel needs Triton")


def drawn(*size: int, seed: int) -> Tensor:
    """Normal numbers of a seed, as kernels take them."""
    made = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return made.to(DEVICE, DTYPE)


def agree(found: Tensor, exact: Tensor, tolerance: float = TOLERANCE) -> None:
    """Fail where numbers differ by more than rounding of the type."""
    error = (found.float() - exact.float()).norm() / exact.float().norm()
    assert error < tolerance, f"{error:.2e} away, {tolerance:.0e} allowed"


def masked_gradients(
    q: Tensor, k: Tensor, v: Tensor, down: Tensor, seen: Tensor
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Gradients, output and log-sum-exps [B, T, heads, ...] of attention where `seen`, in float32.

    q and down [B, T, H, D], k and v [B, N, K, D]; `seen` is laid out as [B, K, H / K, T, N].
    """
    leaves = [x.float().detach().requires_grad_() for x in (q, k, v)]
    grouped, keys, values = (x.transpose(1, 2) for x in leaves)
    grouped = grouped.unflatten(1, (k.shape[2], -1))
    out = masked(grouped, keys, values, seen)[0].flatten(1, 2).transpose(1, 2)
    scores = grouped @ keys.unsqueeze(2).transpose(-1, -2) * q.shape[-1] ** -0.5
    lse = scores.masked_fill(~seen, float("-inf")).logsumexp(-1).flatten(1, 2).transpose(1, 2)
    gradients = torch.autograd.grad(out, leaves, down.float())
    return gradients, out.detach().contiguous(), lse.detach().contiguous()
