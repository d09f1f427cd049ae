"""Native sparse attention (NSA; Yuan et al. 2025, arXiv 2502.11089): three views of the past.

Each query attends three times, and a learned gate for each head adds the results up:

* compressed: to the mean key and value of every whole block that lies behind it;
* selected: to the tokens of the few blocks that matter most. Its own, the one before and
  the first block are always among them, in this order where fewer than three are selected;
  the others are those that the compressed attention looked at most, summed over the query
  heads that share a key head;
* window: to the tokens just behind it.

The query at position t (from 0) so reads, for each head and instead of t + 1 keys:

    compressed  floor((t + 1) / block)
    selected    block * (min(floor(t / block) + 1, selected) - 1) + t mod block + 1
    window      min(t + 1, window)

Its own block counts as selected up to itself, and blocks it has not got yet are not made up
for: a short row reads less. `cost.py` counts by these.

Where this differs from the paper: a block is compressed by its mean and not by a small
network, blocks do not overlap (those that are compressed are those that are selected), and
the three branches share their keys and values. Those are the choices of flash-linear-attention
(`fla/ops/nsa`), whose kernels `benchmarks/sparse.py` sets beside ours. The reference here
computes the same with every score written out.

Choosing has no gradient: what is learned about where to look, the compressed branch learns.

Legend: B batch, T new positions, S slots, N = S / block, H query heads, K key/value heads,
G = H / K, D head size, C hidden size.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from efficientllm.catalog.shape import Sparse
from efficientllm.models.attend import attend
from efficientllm.models.attention import Attention
from efficientllm.models.position import Positions, rotate
from efficientllm.models.sparse_branches import sparse_branches
from efficientllm.models.sparse_cached import SparseCache, attend_sparse_cache, gated
from efficientllm.models.sparse_reference import means_of, sparse_reference
from efficientllm.models.sparse_rows import attend_sparse_rows, rows_fit
from efficientllm.record import Unsupported


class SparseAttention(Attention):
    """NSA on the projections of grouped-query attention, with a gate for each branch."""

    FUSED: ClassVar[dict[str, tuple[str, ...]]] = {
        "qkvg_proj": ("q_proj", "k_proj", "v_proj", "g_proj"),
        **Attention.FUSED,  # where biases are trained: gates have none
    }
    qkvg_proj: nn.Linear

    def __init__(
        self,
        hidden: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        sizes: Sparse,
        *,
        bias: bool,
        qk_norm: bool,
        eps: float,
    ) -> None:
        super().__init__(hidden, heads, kv_heads, head_dim, bias=bias, qk_norm=qk_norm, eps=eps)
        self.sizes = sizes
        self.g_proj = nn.Linear(hidden, 3 * heads, bias=False)

    def forward(self, x: Tensor, positions: Positions, cache: SparseCache | None = None) -> Tensor:  # type: ignore[override]
        """x [B, T, C] -> [B, T, C]; writes into `cache` when one is given."""
        if positions.documents is not None:
            raise Unsupported(
                "nsa has no kernel for packed documents here: train on a stream (pretrain), or"
                " choose another attention"
            )
        (q, k, v), gates = self._project_all(x)
        q, k = rotate(q, positions), rotate(k, positions)
        if cache is not None and positions.slot is not None:
            out = attend_sparse_cache(q, k, v, gates, cache, positions.slot, self.sizes)
        else:
            means = means_of(k, v, self.sizes)
            window = attend(q, k, v, window=self.sizes.window)
            if cache is not None:
                _fill(cache, k, v, means, k.shape[2] // self.sizes.block)
            if cache is not None and self._by_rows(q):
                out = attend_sparse_rows(q, k, v, means, window, gates, self.sizes)
            else:
                out = gated(gates, (*self._blocks(q, k, v, means), window))
        return self.o_proj(out.to(x.dtype).transpose(1, 2).flatten(2))

    def new_cache(  # type: ignore[override]
        self, batch: int, slots: int, device: torch.device, dtype: torch.dtype
    ) -> SparseCache:
        """An empty static cache, zeroed: its unused slots are read under a mask."""
        blocks = -(-slots // self.sizes.block)
        made = [
            torch.zeros((batch, self.kv_heads, n, self.head_dim), device=device, dtype=dtype)
            for n in (slots, slots, blocks, blocks)
        ]
        return SparseCache(*made)

    def _project_all(self, x: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """q, k and v by heads, and gates [B, T, 3 H] before their sigmoid."""
        if hasattr(self, "qkvg_proj"):  # made by models/fuse.py
            *qkv, gates = self.qkvg_proj(x).split(self.fused_sizes, dim=-1)
            return self._by_heads(*qkv), gates
        return self._project(x), self.g_proj(x)

    def _by_rows(self, q: Tensor) -> bool:
        """Whether whole rows go through the kernels; elsewhere every score is written out."""
        return rows_fit(q.device, q.dtype, self.heads // self.kv_heads, self.head_dim, self.sizes)

    def _blocks(
        self, q: Tensor, k: Tensor, v: Tensor, means: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        if self._by_rows(q):
            return sparse_branches(q, k, v, *means, self.sizes)
        return sparse_reference(q, k, v, means, self.sizes)


def _fill(
    cache: SparseCache, k: Tensor, v: Tensor, means: tuple[Tensor, Tensor], whole: int
) -> None:
    """Write down keys and values [B, K, T, D] and the means of the `whole` blocks of them."""
    cache.k[:, :, : k.shape[2]].copy_(k)
    cache.v[:, :, : v.shape[2]].copy_(v)
    cache.block_k[:, :, :whole].copy_(means[0][:, :, :whole])
    cache.block_v[:, :, :whole].copy_(means[1][:, :, :whole])
