"""Where our kernels run in tests: on a GPU in half precision, else interpreted in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from efficientllm.models.attend_cached import INSTALLED

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
