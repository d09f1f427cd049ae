"""What an attention layer is told about where its tokens stand.

Legend: T new positions, D rotated size of a head, H query heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Documents(NamedTuple):
    """Several documents in one row: document i holds positions offsets[i]..offsets[i+1].

    `offsets` is int32 on the device, padded with its last value to a fixed length so that
    a compiled step sees one shape; `lengths` are the true lengths on the host.
    """

    offsets: Tensor
    longest: int
    lengths: tuple[int, ...]


class Positions(NamedTuple):
    """What attention needs to know: angles, where to write, what scores gain or lose.

    `cos` and `sin` [T, D] turn queries and keys; None where positions are told otherwise.
    `slot` is the position of the one new token of a decode step, as a tensor of one
    element (a Python number would compile anew at every step). `documents` keeps packed
    documents apart. `bias` [H, n] is added to scores by distance (n - 1 stands for all
    beyond), `slopes` [H] times the distance is taken off them.
    """

    cos: Tensor | None = None
    sin: Tensor | None = None
    slot: Tensor | None = None
    documents: Documents | None = None
    bias: Tensor | None = None
    slopes: Tensor | None = None

    @property
    def biased(self) -> bool:
        """Whether scores depend on distance."""
        return self.bias is not None or self.slopes is not None


def rotate(x: Tensor, positions: Positions) -> Tensor:
    """Turn the two halves of each head, x [..., T, D], by its angle; as it is without angles."""
    if positions.cos is None or positions.sin is None:
        return x
    # Under autocast the angles are float32 and x is not; the kernel wants one type.
    cos, sin = positions.cos.to(x.dtype), positions.sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def distances(slot: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """How far back each slot of a cache lies from position `slot` [1], and which are filled.

    The cache is a ring: position p lies in slot p % slots. Both are [slots].
    """
    back = (slot - torch.arange(slots, device=slot.device)) % slots
    return back, back <= slot
