"""A sound attention of one's own, written as a user would, and the many ways to spoil it."""

from __future__ import annotations

import hashlib
from pathlib import Path

SOUND = """
import torch
import torch.nn.functional as F
from torch import nn
from efficientllm.models.contract import Cost
from efficientllm.models.position import rotate


class Mine(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.heads, self.dim = shape.heads, shape.head_dim
        self.qkv = nn.Linear(shape.hidden, 3 * self.heads * self.dim, bias=False)
        self.out = nn.Linear(self.heads * self.dim, shape.hidden, bias=False)
        self.scale = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x, positions, cache=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.dim)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, positions), rotate(k, positions)
        at = torch.arange(x.shape[1], device=x.device)
        if cache is not None and positions.slot is not None:
            at = positions.slot
            k = cache[0].index_copy_(2, at, k)
            v = cache[1].index_copy_(2, at, v)
        elif cache is not None:
            cache[0][:, :, : x.shape[1]].copy_(k)
            cache[1][:, :, : x.shape[1]].copy_(v)
        seen = torch.arange(k.shape[2], device=x.device) <= at[:, None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.out(y.transpose(1, 2).flatten(2) * self.scale)

    def new_cache(self, batch, slots, device, dtype):
        size = (batch, self.heads, slots, self.dim)
        return tuple(torch.zeros(size, device=device, dtype=dtype) for _ in "kv")

    def cost(self, new, seen):
        width = self.heads * self.dim
        pairs = new * seen + new * (new + 1) / 2
        flops = 8 * new * self.qkv.in_features * width + 4 * pairs * width
        return Cost(flops, 2 * (seen + new) * width * self.qkv.weight.element_size())
"""


def spoiled(*changes: tuple[str, str]) -> str:
    """The sound module with parts of its text replaced; each must be there."""
    text = SOUND
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


LOOKS_AHEAD = spoiled(("<= at[:, None]", "<= at[:, None] + 1"))
WRONG_SHAPE = spoiled(("return self.out(y.transpose(1, 2).flatten(2)", "return (self.qkv(x)"))
RAISES = spoiled(("seen = torch", "raise KeyError('no such head')\n        seen = torch"))


def written(folder: Path, text: str, name: str = "mine.py") -> tuple[str, str]:
    """A file with this text, and its digest."""
    path = folder / name
    path.write_text(text)
    return str(path), hashlib.sha256(text.encode()).hexdigest()
