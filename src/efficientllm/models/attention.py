"""Attention with shared key and value heads: MHA, GQA, MQA and sliding windows are one layer.

Legend: B batch, T new positions, S cache slots, H query heads, K key/value heads, D head
size, C hidden size.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from efficientllm.models.attend import attend
from efficientllm.models.attend_cached import attend_cache
from efficientllm.models.position import Positions, rotate


class KeyValue(NamedTuple):
    """The static cache of one layer: k and v, each [B, K, S, D]; position p in slot p % S."""

    k: Tensor
    v: Tensor


class Attention(nn.Module):
    """Grouped-query attention; parameter names are those of transformers' Qwen2 and Llama."""

    FUSED: ClassVar[dict[str, tuple[str, ...]]] = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}
    qkv_proj: nn.Linear
    fused_sizes: tuple[int, ...]

    def __init__(
        self,
        hidden: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        bias: bool,
        qk_norm: bool,
        eps: float,
        window: int | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.window = heads, kv_heads, head_dim, window
        self.q_proj = nn.Linear(hidden, heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(hidden, kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(hidden, kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(heads * head_dim, hidden, bias=False)
        self.q_norm = nn.RMSNorm(head_dim, eps) if qk_norm else None
        self.k_norm = nn.RMSNorm(head_dim, eps) if qk_norm else None

    def forward(self, x: Tensor, positions: Positions, cache: KeyValue | None = None) -> Tensor:
        """x [B, T, C] -> [B, T, C]; writes into `cache` when one is given."""
        q, k, v = self._project(x)
        q, k = rotate(q, positions), rotate(k, positions)
        if cache is not None and positions.slot is not None:
            slot = positions.slot % cache.k.shape[2]
            cache.k.index_copy_(2, slot, k)
            cache.v.index_copy_(2, slot, v)
            out = attend_cache(q, cache.k, cache.v, positions)
        else:
            if cache is not None:
                fill_ring(cache.k, k)
                fill_ring(cache.v, v)
            out = attend(q, k, v, positions, self.window)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def new_cache(
        self, batch: int, slots: int, device: torch.device, dtype: torch.dtype
    ) -> KeyValue:
        """An empty static cache, zeroed: its unused slots are read under a mask.

        A window needs no more slots than it has tokens.
        """
        slots = min(slots, self.window or slots)
        size = (batch, self.kv_heads, slots, self.head_dim)
        return KeyValue(
            torch.zeros(size, device=device, dtype=dtype),
            torch.zeros(size, device=device, dtype=dtype),
        )

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if hasattr(self, "qkv_proj"):  # made by models/fuse.py
            return self._by_heads(*self.qkv_proj(x).split(self.fused_sizes, dim=-1))
        return self._by_heads(self.q_proj(x), self.k_proj(x), self.v_proj(x))

    def _by_heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Products [B, T, heads * D] as q [B, H, T, D], k and v [B, K, T, D], normed if wanted."""
        q = q.unflatten(-1, (self.heads, self.head_dim))
        k = k.unflatten(-1, (self.kv_heads, self.head_dim))
        v = v.unflatten(-1, (self.kv_heads, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def fill_ring(ring: Tensor, whole: Tensor) -> None:
    """Write positions 0..T of `whole` [B, K, T, D] where a ring [B, K, S, D] keeps them."""
    slots, length = ring.shape[2], whole.shape[2]
    if length <= slots:
        ring[:, :, :length].copy_(whole)
    else:
        ring.copy_(whole[:, :, length - slots :].roll(length % slots, dims=2))
