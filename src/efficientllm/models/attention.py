"""Attention with shared key and value heads: MHA, GQA and MQA are one layer.

Which kernel runs depends on what is asked, and only these calls are allowed:

* whole rows of equal length (training, scoring, prefill): `is_causal`, no mask. A dense
  mask differentiated through cuDNN gives NaN gradients at some lengths
  (pytorch#196678).
* packed documents: variable-length attention on CUDA; elsewhere one call a document.
* one new token against a static cache: a product against every slot with a length mask,
  without gradients. `is_causal` with one query would see the first key only.

Legend: B batch, T new positions, S cache slots, H query heads, K key/value heads,
G = H / K, D head size, C hidden size.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from efficientllm.models.position import Documents, Positions, rotate

# Before torch 2.12 the variable-length kernel takes grouped heads without being asked to.
_VARLEN_ASKS_FOR_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters


class KeyValue(NamedTuple):
    """The static cache of one layer: k and v, each [B, K, S, D]."""

    k: Tensor
    v: Tensor


class Attention(nn.Module):
    """Grouped-query attention; parameter names are those of transformers' Qwen2 and Llama."""

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
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.q_proj = nn.Linear(hidden, heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(hidden, kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(hidden, kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(heads * head_dim, hidden, bias=False)
        self.q_norm = nn.RMSNorm(head_dim, eps) if qk_norm else None
        self.k_norm = nn.RMSNorm(head_dim, eps) if qk_norm else None

    def forward(self, x: Tensor, positions: Positions, cache: KeyValue | None = None) -> Tensor:
        """x [B, T, C] -> [B, T, C]; writes into `cache` when one is given."""
        q, k, v = self._project(x)
        # Under autocast the angles are float32 and q is not; the kernel wants one type.
        cos, sin = positions.cos.to(q.dtype), positions.sin.to(q.dtype)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None and positions.slot is not None:
            cache.k.index_copy_(2, positions.slot, k)
            cache.v.index_copy_(2, positions.slot, v)
            assert positions.visible is not None
            out = attend_cache(q, cache, positions.visible)
        else:
            if cache is not None:
                cache.k[:, :, : k.shape[2]].copy_(k)
                cache.v[:, :, : v.shape[2]].copy_(v)
            out = attend(q, k, v, positions.documents)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def new_cache(
        self, batch: int, slots: int, device: torch.device, dtype: torch.dtype
    ) -> KeyValue:
        """An empty static cache, zeroed: its unused slots are read under a mask."""
        size = (batch, self.kv_heads, slots, self.head_dim)
        return KeyValue(
            torch.zeros(size, device=device, dtype=dtype),
            torch.zeros(size, device=device, dtype=dtype),
        )

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if hasattr(self, "qkv_proj"):  # made by models/fuse.py
            q, k, v = self.qkv_proj(x).split(self.fused_sizes, dim=-1)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q = q.unflatten(-1, (self.heads, self.head_dim))
        k = k.unflatten(-1, (self.kv_heads, self.head_dim))
        v = v.unflatten(-1, (self.kv_heads, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, documents: Documents | None = None) -> Tensor:
    """Causal attention of whole rows. q [B, H, T, D], k and v [B, K, T, D] -> [B, H, T, D].

    With `documents`, B is 1 and no position sees another document.
    """
    if documents is None:
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
        )
    if q.is_cuda:
        return _attend_packed_cuda(q, k, v, documents)
    parts = [t.split(documents.lengths, dim=2) for t in (q, k, v)]
    return torch.cat([attend(*document) for document in zip(*parts, strict=True)], dim=2)


def _attend_packed_cuda(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    options: dict[str, Any] = {"window_size": (-1, 0)}
    if _VARLEN_ASKS_FOR_GROUPS:
        options["enable_gqa"] = q.shape[1] != k.shape[1]
    q, k, v = (t.squeeze(0).transpose(0, 1) for t in (q, k, v))
    offsets, longest = documents.offsets, documents.longest
    out = varlen_attn(q, k, v, offsets, offsets, longest, longest, **options)
    assert isinstance(out, Tensor)
    return out.transpose(0, 1).unsqueeze(0)


def attend_cache(q: Tensor, cache: KeyValue, visible: Tensor) -> Tensor:
    """One new query a row against every visible slot. q [B, H, 1, D] -> [B, H, 1, D].

    Written as two products per key/value head, so that grouped heads read their shared
    cache once; softmax in float32.
    """
    batch, heads, _, dim = q.shape
    kv_heads = cache.k.shape[1]
    grouped = q.reshape(batch, kv_heads, heads // kv_heads, dim)
    scores = (grouped @ cache.k.transpose(-1, -2)).float() * dim**-0.5
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return (weights.to(cache.v.dtype) @ cache.v).reshape(batch, heads, 1, dim)
