"""Encodings of position: what tells a token where it stands.

Three places where an encoding can act, and each kind uses one of them: the embeddings
(sinusoidal, learned), the angle of queries and keys (rotary), the scores (T5's learned
biases, ALiBi's slopes). What acts on the scores decides which attention kernel can run;
that cost is the kernel's, not the encoding's, and the record names the kernel.

Legend: T positions, C hidden size, D head size, H query heads.
"""

from __future__ import annotations

import math
from typing import assert_never

import torch
from torch import Tensor, nn

from efficientllm.catalog.shape import Relative, RopeScaling, Shape
from efficientllm.models.position import Positions


class Encoding(nn.Module):
    """No encoding at all, and what every encoding may do."""

    def embed(self, x: Tensor, index: Tensor) -> Tensor:
        """Embeddings [B, T, C] at integer positions `index` [T], with positions told."""
        return x

    def angles(self, index: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """cos and sin [T, D] by which queries and keys are turned."""
        return None

    def bias(self) -> Tensor | None:
        """What is added to scores by head and distance, [H, distances]; the last one stays."""
        return None

    def slopes(self) -> Tensor | None:
        """What scores lose for each head and token of distance, [H]."""
        return None

    def positions(self, index: Tensor, dtype: torch.dtype) -> Positions:
        """What attention is told about positions `index` [T], angles in `dtype`."""
        cos, sin = self.angles(index, dtype) or (None, None)
        return Positions(cos, sin, bias=self.bias(), slopes=self.slopes())

    def reset(self) -> None:
        """Compute buffers again; a model built on the meta device has none until then."""


class Rotary(Encoding):
    """Angles for rotary positions (Su et al. 2021); holds frequencies only, in float32."""

    frequencies: Tensor

    def __init__(self, head_dim: int, theta: float, scaling: RopeScaling | None) -> None:
        super().__init__()
        self.head_dim, self.theta, self.scaling = head_dim, theta, scaling
        self.register_buffer("frequencies", torch.empty(head_dim // 2), persistent=False)
        self.reset()

    def reset(self) -> None:
        device = self.frequencies.device
        if device.type == "meta":
            return
        frequencies = _frequencies(self.head_dim, self.theta)
        if self.scaling is not None:
            frequencies = _stretch(frequencies, self.scaling)
        self.frequencies = frequencies.to(device)

    def angles(self, index: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angle = torch.outer(index.float(), self.frequencies)
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos().to(dtype), angle.sin().to(dtype)


class Sinusoidal(Encoding):
    """Waves added to the embeddings (Vaswani et al. 2017, section 3.5).

    As there (section 3.4) embeddings are first multiplied by the root of the hidden size;
    beside waves of height 1 those of this initialisation would be lost.
    """

    frequencies: Tensor

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.register_buffer("frequencies", torch.empty((hidden + 1) // 2), persistent=False)
        self.reset()

    def reset(self) -> None:
        device = self.frequencies.device
        if device.type != "meta":
            self.frequencies = _frequencies(self.hidden, 10_000.0).to(device)

    def embed(self, x: Tensor, index: Tensor) -> Tensor:
        angle = torch.outer(index.float(), self.frequencies)
        waves = torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)[:, : self.hidden]
        return x * math.sqrt(self.hidden) + waves.to(x.dtype)


class Learned(Encoding):
    """A learned vector for each position, added to the embeddings (Radford et al. 2019)."""

    def __init__(self, hidden: int, most: int) -> None:
        super().__init__()
        self.table = nn.Embedding(most, hidden)

    def embed(self, x: Tensor, index: Tensor) -> Tensor:
        return x + self.table(index)


class LearnedBias(Encoding):
    """T5's biases: one for each head and bucket of distances (Raffel et al. 2020).

    Half of the buckets are single distances, the rest grow with the logarithm up to
    `max_distance`; whatever is farther shares the last. One table serves all layers.
    """

    def __init__(self, heads: int, sizes: Relative) -> None:
        super().__init__()
        self.sizes = sizes
        self.table = nn.Embedding(sizes.buckets, heads)

    def bias(self) -> Tensor:
        distance = torch.arange(self.sizes.max_distance + 1, device=self.table.weight.device)
        return self.table(bucket(distance, self.sizes)).t()


class Slopes(Encoding):
    """ALiBi's penalties (Press et al. 2022): 2^-8/H, 2^-16/H ... for heads 1, 2 ..."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.register_buffer("each", torch.empty(heads), persistent=False)
        self.reset()

    def reset(self) -> None:
        if self.each.device.type != "meta":
            self.each = torch.tensor(alibi_slopes(self.heads), device=self.each.device)

    def slopes(self) -> Tensor:
        return self.each

    each: Tensor


def encoding_of(shape: Shape) -> Encoding:
    """The encoding that a shape names."""
    match shape.position:
        case "rope":
            rotated = shape.latent.qk_rope_dim if shape.latent is not None else shape.head_dim
            return Rotary(rotated, shape.rope_theta, shape.rope_scaling)
        case "sinusoidal":
            return Sinusoidal(shape.hidden)
        case "learned":
            return Learned(shape.hidden, shape.max_positions)
        case "t5":
            assert shape.relative is not None
            return LearnedBias(shape.heads, shape.relative)
        case "alibi":
            return Slopes(shape.heads)
        case "none":
            return Encoding()
        case never:
            assert_never(never)


def bucket(distance: Tensor, sizes: Relative) -> Tensor:
    """The bucket of each distance back in time (T5's `_relative_position_bucket`, causal)."""
    exact = sizes.buckets // 2
    far = torch.log(distance.clamp(min=1).float() / exact) / math.log(sizes.max_distance / exact)
    far = exact + (far * (sizes.buckets - exact)).long()
    return torch.where(distance < exact, distance, far.clamp(max=sizes.buckets - 1))


def alibi_slopes(heads: int) -> list[float]:
    """Slopes of ALiBi; between powers of two every second one of the next power is taken."""
    whole = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (i + 1) / whole) for i in range(whole)]
    return slopes + [2.0 ** (-4.0 * (2 * i + 1) / whole) for i in range(heads - whole)]


def _frequencies(width: int, theta: float) -> Tensor:
    """One frequency for each pair of `width` values, falling geometrically from 1."""
    return 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)


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
