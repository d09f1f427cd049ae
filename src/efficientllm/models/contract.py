"""What an attention has to be to take its place in a layer: the contract, ours and a user's.

    class MyAttention(nn.Module):
        def __init__(self, shape: Shape)
        def forward(self, x, positions: Positions, cache=None)          # [B, T, C] -> [B, T, C]
        def new_cache(self, batch, slots, device, dtype)                # -> tuple of tensors
        def cost(self, new, seen) -> Cost                               # if you want MFU and MBU

`forward` is called in three ways. Without a cache on whole rows (training, scoring): position
t sees positions up to t. With a cache on whole rows from position 0 (prefill): the same
output, and the cache is written, whatever was in it before. With a cache and `positions.slot`,
a tensor of one element, on one new token a row (decode): its position is in `slot`, it sees
what the cache holds, and itself.

A cache is a tuple of tensors with the batch as first dimension, made once and changed in
place: a captured graph knows tensors by their addresses. `docs/own-attention.md` is the
walk-through, `soundness.py` holds a class to all of this.

Legend: B batch, T new positions, C hidden size.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import nn

from efficientllm.models.own import THEIRS, told
from efficientllm.record import Unsupported


class Cost(NamedTuple):
    """What one layer's attention needs for one sequence: `new` tokens after `seen` cached ones.

    `flops` are those of the forward pass, its projections included, 2 for a multiply-add,
    norms and softmax not counted, (query, key) pairs only where the query sees the key.
    `cache_bytes` are those that the cache of the sequence holds afterwards, `read_bytes`
    those of it that a decode step has to read (None: all).
    """

    flops: float
    cache_bytes: float
    read_bytes: float | None = None

    @property
    def read(self) -> float:
        """Bytes of the cache that a decode step reads."""
        return self.cache_bytes if self.read_bytes is None else self.read_bytes

    def times(self, layers: int) -> Cost:
        """The cost of so many layers."""
        return Cost(layers * self.flops, layers * self.cache_bytes, layers * self.read)


def declared_cost(module: nn.Module, new: int, seen: int) -> Cost | None:
    """What a module says it costs; None where it has no `cost`.

    Raises Unsupported where it says something that no cost can be.
    """
    cost = getattr(module, "cost", None)
    if cost is None:
        return None
    call = f"{type(module).__name__}.cost({new}, {seen})"
    try:
        said = Cost(*cost(new, seen))
        numbers = [float(n) for n in (said.flops, said.cache_bytes, said.read)]
    except THEIRS as error:
        raise Unsupported(f"{call} gives no Cost: {told(error)}") from error
    if not all(math.isfinite(n) and n >= 0 for n in numbers):
        raise Unsupported(f"{call} gives {numbers}: a Cost holds finite numbers, 0 or more")
    return Cost(*numbers)
