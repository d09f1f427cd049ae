"""Rotary positions (Su et al. 2021), and what an attention layer is told about where it is.

Legend: T positions, D head size.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from efficientllm.catalog.shape import RopeScaling


class Documents(NamedTuple):
    """Several documents in one row: document i holds positions offsets[i]..offsets[i+1].

    `offsets` is int32 on the device, padded with its last value to a fixed length so that
    a compiled step sees one shape; `lengths` are the true lengths on the host.
    """

    offsets: Tensor
    longest: int
    lengths: tuple[int, ...]


class Positions(NamedTuple):
    """What attention needs to know: rotations, where to write, what not to see.

    `cos` and `sin` are [T, D]. `slot` is the cache slot of a decode step as a tensor of
    one element (a Python number would compile anew at every step); `visible` is a mask
    over all slots of the cache, [S]. `documents` keeps packed documents apart.
    """

    cos: Tensor
    sin: Tensor
    slot: Tensor | None = None
    visible: Tensor | None = None
    documents: Documents | None = None


class Rotary(nn.Module):
    """Angles for rotary positions; holds frequencies only, in float32."""

    frequencies: Tensor

    def __init__(self, head_dim: int, theta: float, scaling: RopeScaling | None) -> None:
        super().__init__()
        self.head_dim, self.theta, self.scaling = head_dim, theta, scaling
        self.register_buffer("frequencies", torch.empty(head_dim // 2), persistent=False)
        self.reset()

    def reset(self) -> None:
        """Fill the frequencies; a model built on the meta device has none until then."""
        device = self.frequencies.device
        if device.type == "meta":
            return
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        frequencies = 1.0 / self.theta**exponent
        if self.scaling is not None:
            frequencies = _stretch(frequencies, self.scaling)
        self.frequencies = frequencies.to(device)

    def forward(self, index: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin, [T, D] in `dtype`, for integer positions `index` [T]."""
        angle = torch.outer(index.float(), self.frequencies)
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos().to(dtype), angle.sin().to(dtype)


def _stretch(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3's scaling: slow rotations are divided by `factor`, fast ones kept, the rest blended.

    Source: the `llama3` rule of transformers' `modeling_rope_utils.py`.
    """
    original = scaling.original_max_positions
    wavelength = 2 * math.pi / frequencies
    blend = (original / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blend = blend.clamp(0.0, 1.0)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head, x [..., T, D] by angles [T, D]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
