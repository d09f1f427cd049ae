"""A kernel beside its plain formula: what `gradients.py` compares."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Inputs = dict[str, Tensor]


class Check(NamedTuple):
    """A kernel and its reference, which take the same named inputs and give one tensor."""

    fast: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    inputs: Inputs  # those that require a gradient are compared in it
    shape: str


def draw(device: torch.device, dtype: torch.dtype, **sizes: tuple[int, ...]) -> Inputs:
    """Standard normal inputs that get gradients, the same on every run, each name its own."""
    inputs = {}
    for name, size in sizes.items():
        chance = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
        drawn = torch.randn(size, generator=chance, device=device)
        inputs[name] = drawn.to(dtype).requires_grad_()
    return inputs
