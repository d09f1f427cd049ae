"""Attention over a window of recent tokens and a few at the beginning ("attention sinks").

An example of a module of one's own; docs/own-attention.md walks through it. The first `SINKS`
tokens stay visible for ever, of the others the last `WINDOW` (after Xiao et al. 2023, arXiv
2309.17453). The mask is written out, which is slow and short.

It handles rotary positions only: it ignores the biases of `t5` and the slopes of `alibi`, and
is not ranked with them (`POSITION_UNUSED`).
"""

import torch
import torch.nn.functional as F
from torch import nn

from efficientllm.catalog.shape import Shape
from efficientllm.models.contract import Cost
from efficientllm.models.position import Positions, rotate

WINDOW, SINKS = 48, 4


class WindowAttention(nn.Module):
    """Sinks and a window; every head has keys and values of its own."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.heads, self.dim = shape.heads, shape.head_dim
        self.qkv = nn.Linear(shape.hidden, 3 * self.heads * self.dim, bias=False)
        self.out = nn.Linear(self.heads * self.dim, shape.hidden, bias=False)

    def forward(self, x, positions: Positions, cache=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.dim)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, positions), rotate(k, positions)
        at = torch.arange(x.shape[1], device=x.device)
        if cache is not None and positions.slot is not None:  # one new token
            at = positions.slot
            k, v = (kept.index_copy_(2, at, t) for kept, t in zip(cache, (k, v), strict=True))
        elif cache is not None:  # a prompt
            for kept, t in zip(cache, (k, v), strict=True):
                kept[:, :, : x.shape[1]].copy_(t)
        at, key = at[:, None], torch.arange(k.shape[2], device=x.device)
        seen = (key <= at) & ((key > at - WINDOW) | (key < SINKS))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.out(y.transpose(1, 2).flatten(2))

    def new_cache(self, batch, slots, device, dtype):
        size = (batch, self.heads, slots, self.dim)
        return tuple(torch.zeros(size, device=device, dtype=dtype) for _ in "kv")

    def cost(self, new: int, seen: int) -> Cost:
        width = self.heads * self.dim
        pairs = sum(min(t, WINDOW + SINKS) for t in range(seen + 1, seen + new + 1))
        products = 4 * self.qkv.in_features * width * new
        token = 2 * width * self.qkv.weight.element_size()
        read = min(seen + new, WINDOW + SINKS) * token
        return Cost(2.0 * products + 4.0 * pairs * width, (seen + new) * token, read)
