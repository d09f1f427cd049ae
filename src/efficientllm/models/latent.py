"""Multi-head latent attention (MLA; DeepSeek-V2, arXiv 2405.04434, section 2.1).

Keys and values of all heads are products of one small latent a token, and only that
latent, with one rotated key that all heads share, is kept: (rank + rotated) values a token
and layer, however many heads there are.

Training and prefill write keys and values out and run plain attention on them. Decoding
never does: the product that would make keys is absorbed into the query, the one that would
make values into the output, and every head attends to the latents themselves. The same
function, at `rank` instead of `head` multiplications a pair, for a cache read once for all
heads.

Parameter names are those of transformers' DeepSeek-V3, whose layer is the oracle in the
tests; rotated halves lie side by side as everywhere here (its `rope_interleave` is false).

Legend: B batch, T new positions, S slots, H heads, N part of a head that is not rotated, R
rotated part, V value size, L latent rank, C hidden size.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from efficientllm.catalog.shape import Latent
from efficientllm.models.attend import attend
from efficientllm.models.attend_cached import attend_latents
from efficientllm.models.position import Positions, rotate
from efficientllm.models.vector import multiply_heads


class LatentCache(NamedTuple):
    """The static cache of one layer: the normed latent and the rotated key, [B, 1, S, L + R]."""

    latent: Tensor


class LatentAttention(nn.Module):
    """MLA with or without compressed queries."""

    FUSED: ClassVar = {"qkv_a_proj": ("q_proj", "kv_a_proj_with_mqa")}
    qkv_a_proj: nn.Linear
    fused_sizes: tuple[int, ...]

    def __init__(self, hidden: int, heads: int, sizes: Latent, *, eps: float) -> None:
        super().__init__()
        self.heads, self.sizes = heads, sizes
        self.qk_dim = sizes.qk_nope_dim + sizes.qk_rope_dim
        if sizes.q_rank:
            self.q_a_proj = nn.Linear(hidden, sizes.q_rank, bias=False)
            self.q_a_layernorm = nn.RMSNorm(sizes.q_rank, eps)
            self.q_b_proj = nn.Linear(sizes.q_rank, heads * self.qk_dim, bias=False)
        else:
            self.q_proj = nn.Linear(hidden, heads * self.qk_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, sizes.kv_rank + sizes.qk_rope_dim, bias=False)
        self.kv_a_layernorm = nn.RMSNorm(sizes.kv_rank, eps)
        self.kv_b_proj = nn.Linear(
            sizes.kv_rank, heads * (sizes.qk_nope_dim + sizes.v_dim), bias=False
        )
        self.o_proj = nn.Linear(heads * sizes.v_dim, hidden, bias=False)

    def forward(self, x: Tensor, positions: Positions, cache: LatentCache | None = None) -> Tensor:
        """x [B, T, C] -> [B, T, C]; writes into `cache` when one is given."""
        nope, rope, latent, key = self._project(x, positions)
        if cache is not None:
            kept = torch.cat((latent, key.squeeze(1)), dim=-1).unsqueeze(1)
            if positions.slot is not None:
                cache.latent.index_copy_(2, positions.slot, kept)
                return self._absorbed(nope, rope, cache, positions)
            cache.latent[:, :, : kept.shape[2]].copy_(kept)
        return self._written_out(nope, rope, latent, key, positions)

    def new_cache(
        self, batch: int, slots: int, device: torch.device, dtype: torch.dtype
    ) -> LatentCache:
        """An empty static cache, zeroed: its unused slots are read under a mask."""
        width = self.sizes.kv_rank + self.sizes.qk_rope_dim
        return LatentCache(torch.zeros((batch, 1, slots, width), device=device, dtype=dtype))

    def _project(self, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries [B, H, T, N] and [B, H, T, R], the latent [B, T, L], its key [B, 1, T, R]."""
        sizes = self.sizes
        if hasattr(self, "qkv_a_proj"):  # made by models/fuse.py
            q, kept = self.qkv_a_proj(x).split(self.fused_sizes, dim=-1)
        else:
            kept = self.kv_a_proj_with_mqa(x)
            q = (
                self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
                if sizes.q_rank
                else self.q_proj(x)
            )
        q = q.unflatten(-1, (self.heads, self.qk_dim)).transpose(1, 2)
        nope, rope = q.split((sizes.qk_nope_dim, sizes.qk_rope_dim), dim=-1)
        latent, key = kept.split((sizes.kv_rank, sizes.qk_rope_dim), dim=-1)
        key = rotate(key.unsqueeze(1), positions)
        return nope, rotate(rope, positions), self.kv_a_layernorm(latent), key

    def _written_out(
        self, nope: Tensor, rope: Tensor, latent: Tensor, key: Tensor, positions: Positions
    ) -> Tensor:
        """Attention over keys and values of every head, as training and prefill want it."""
        sizes = self.sizes
        kv = self.kv_b_proj(latent).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = kv.split((sizes.qk_nope_dim, sizes.v_dim), dim=-1)
        k = torch.cat((k, key.expand(-1, self.heads, -1, -1)), dim=-1)
        out = attend(torch.cat((nope, rope), dim=-1), k, v, positions)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def _absorbed(
        self, nope: Tensor, rope: Tensor, cache: LatentCache, positions: Positions
    ) -> Tensor:
        """Attention of one new token over latents: [B, H, 1, ...] -> [B, 1, C]."""
        sizes, latent = self.sizes, cache.latent
        weight = self.kv_b_proj.weight.view(self.heads, -1, sizes.kv_rank)
        to_keys, to_values = weight.split((sizes.qk_nope_dim, sizes.v_dim), dim=1)
        nope = multiply_heads(nope, to_keys.transpose(1, 2), self.kv_b_proj)
        q = torch.cat((nope, rope), dim=-1)
        out = attend_latents(q, latent, sizes.kv_rank, positions, self.qk_dim**-0.5)
        out = multiply_heads(out, to_values, self.kv_b_proj)
        return self.o_proj(out.transpose(1, 2).flatten(2))
