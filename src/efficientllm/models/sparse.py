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
the three branches share their keys and values. Those are the choices of the kernels of
flash-linear-attention (`fla/ops/nsa`), which run on a GPU; the reference here computes the
same with every score written out.

Choosing has no gradient: what is learned about where to look, the compressed branch learns.

Legend: B batch, T new positions, S slots, N = S / block, H query heads, K key/value heads,
G = H / K, D head size, C hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from efficientllm.catalog.shape import Sparse
from efficientllm.device import in_half_on_gpu
from efficientllm.models.attend import attend
from efficientllm.models.attention import Attention
from efficientllm.models.position import Positions, rotate
from efficientllm.models.sparse_kernels import obstacle, sparse_branches
from efficientllm.record import Unsupported

QUERIES = 512
"""Queries that the reference goes through at once."""


class SparseCache(NamedTuple):
    """k and v [B, K, S, D], and the means of whole blocks, [B, K, N, D]."""

    k: Tensor
    v: Tensor
    block_k: Tensor
    block_v: Tensor


class SparseAttention(Attention):
    """NSA on the projections of grouped-query attention, with a gate for each branch."""

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
        self.sizes, self.kernels = sizes, not obstacle(heads, kv_heads, sizes)
        self.g_proj = nn.Linear(hidden, 3 * heads, bias=False)

    def forward(self, x: Tensor, positions: Positions, cache: SparseCache | None = None) -> Tensor:  # type: ignore[override]
        """x [B, T, C] -> [B, T, C]; writes into `cache` when one is given."""
        if positions.documents is not None:
            raise Unsupported(
                "nsa has no kernel for packed documents here: train on a stream (pretrain), or"
                " choose another attention"
            )
        q, k, v = self._project(x)
        q, k = rotate(q, positions), rotate(k, positions)
        gates = self.g_proj(x).sigmoid().unflatten(-1, (3, self.heads)).permute(2, 0, 3, 1)
        if cache is not None and positions.slot is not None:
            branches = self._decode(q, k, v, cache, positions.slot)
        else:
            if cache is not None:
                self._fill(cache, k, v)
            compressed, selected = self._blocks(q, k, v)
            branches = (compressed, selected, attend(q, k, v, window=self.sizes.window))
        out = sum(g.unsqueeze(-1) * b for g, b in zip(gates, branches, strict=True))
        assert isinstance(out, Tensor)
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

    def _blocks(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.kernels and in_half_on_gpu(q.device, q.dtype):
            means = block_means(k, self.sizes), block_means(v, self.sizes)
            return sparse_branches(q, k, v, *means, self.sizes)
        return sparse_reference(q, k, v, self.sizes)

    def _fill(self, cache: SparseCache, k: Tensor, v: Tensor) -> None:
        whole = k.shape[2] // self.sizes.block
        cache.k[:, :, : k.shape[2]].copy_(k)
        cache.v[:, :, : v.shape[2]].copy_(v)
        cache.block_k[:, :, :whole].copy_(block_means(k, self.sizes)[:, :, :whole])
        cache.block_v[:, :, :whole].copy_(block_means(v, self.sizes)[:, :, :whole])

    def _decode(
        self, q: Tensor, k: Tensor, v: Tensor, cache: SparseCache, slot: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One new token [B, H, 1, D]: reads means of blocks, chosen blocks and the window only."""
        block, slots = self.sizes.block, cache.k.shape[2]
        cache.k.index_copy_(2, slot, k)
        cache.v.index_copy_(2, slot, v)
        own = slot // block
        # The mean of an unfinished block is wrong until its last token: it is not looked at.
        inside = (own * block + torch.arange(block, device=slot.device)).clamp(max=slots - 1)
        cache.block_k.index_copy_(2, own, cache.k.index_select(2, inside).mean(2, keepdim=True))
        cache.block_v.index_copy_(2, own, cache.v.index_select(2, inside).mean(2, keepdim=True))
        q = q.unflatten(1, (self.kv_heads, -1)).squeeze(3)
        compressed, shares = _compressed(q, cache.block_k, cache.block_v, (slot + 1) // block)
        chosen = _chosen(shares, own, self.sizes)
        within = (chosen * block).unsqueeze(-1) + torch.arange(block, device=slot.device)
        selected = _read(q, cache, within.flatten(-2), slot)
        near = slot - torch.arange(min(self.sizes.window, slots), device=slot.device)
        window = _read(q, cache, near.expand(*q.shape[:2], -1), slot)
        return tuple(b.flatten(1, 2).unsqueeze(2) for b in (compressed, selected, window))  # type: ignore[return-value]


def block_means(x: Tensor, sizes: Sparse) -> Tensor:
    """Means over blocks, [B, K, T, D] -> [B, K, ceil(T / block), D]; a last part by zeros.

    That of an unfinished block belongs to no query; the kernels want it to be there.
    """
    missing = -x.shape[2] % sizes.block
    if missing:
        x = nn.functional.pad(x, (0, 0, 0, missing))
    return x.unflatten(2, (-1, sizes.block)).mean(3)


def _compressed(q: Tensor, k: Tensor, v: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of one token a row to the first `whole` [1] blocks, and each block's share.

    q [B, K, G, D], k and v [B, K, N, D] -> [B, K, G, D], and [B, K, N] summed over G.
    """
    seen = torch.arange(k.shape[2], device=k.device) < whole
    weights = _scores(q, k).masked_fill(~seen, float("-inf")).softmax(dim=-1)
    weights = weights.masked_fill(~seen, 0.0)  # before the first whole block there is nothing
    return weights.to(v.dtype) @ v, weights.sum(2)


def _chosen(shares: Tensor, own: Tensor, sizes: Sparse) -> Tensor:
    """Which blocks are read whole: [..., N] shares -> [..., min(selected, N)] block numbers.

    The three that are always read rank above every share, the query's own first: without it
    a query might see nothing of its neighbours. Blocks after `own` are never better than any
    other; that they are not seen is the reader's affair.
    """
    number = torch.arange(shares.shape[-1], device=shares.device)
    shares = shares.masked_fill(number > own, -1.0).masked_fill(number == 0, 1e30)
    shares = shares.masked_fill(number == own - 1, 2e30).masked_fill(number == own, 3e30)
    return shares.topk(min(sizes.selected, shares.shape[-1]), dim=-1).indices


def _read(q: Tensor, cache: SparseCache, where: Tensor, slot: Tensor) -> Tensor:
    """Attention of one token a row to the slots `where` [B, K, n] up to its own: [B, K, G, D]."""
    seen = (where >= 0) & (where <= slot)
    index = where.clamp(0, cache.k.shape[2] - 1).unsqueeze(-1).expand(-1, -1, -1, q.shape[-1])
    k, v = cache.k.gather(2, index), cache.v.gather(2, index)
    weights = _scores(q, k).masked_fill(~seen.unsqueeze(2), float("-inf")).softmax(dim=-1)
    return weights.to(v.dtype) @ v


def sparse_reference(q: Tensor, k: Tensor, v: Tensor, sizes: Sparse) -> tuple[Tensor, Tensor]:
    """The compressed and the selected branch of whole rows, every score written out.

    q [B, H, T, D], k and v [B, K, T, D] -> two of [B, H, T, D]. For a CPU and for checking
    the kernels. Goes through some queries at a time: at once they hold B x H x QUERIES x T
    scores (a backward pass needs the weights of all).
    """
    grouped = q.unflatten(1, (k.shape[1], -1))
    means = block_means(k, sizes), block_means(v, sizes)
    parts = [
        _reference(grouped[..., first : first + QUERIES, :], first, k, v, means, sizes)
        for first in range(0, q.shape[2], QUERIES)
    ]
    compressed, selected = (torch.cat(branch, dim=3) for branch in zip(*parts, strict=True))
    return compressed.flatten(1, 2), selected.flatten(1, 2)


def _reference(
    q: Tensor, first: int, k: Tensor, v: Tensor, means: tuple[Tensor, Tensor], sizes: Sparse
) -> tuple[Tensor, Tensor]:
    """Both branches, [B, K, G, n, D], of the queries q at positions first..first+n."""
    last, block = first + q.shape[3], sizes.block
    at = torch.arange(first, last, device=q.device)[:, None]
    key = torch.arange(last, device=q.device)
    whole = torch.arange(means[0].shape[2], device=q.device) < (at + 1) // block
    compressed, weights = _masked(q, *means, whole)
    shares = weights.sum(2).detach()
    chosen = _chosen(shares, at // block, sizes)
    picked = torch.zeros_like(shares, dtype=torch.bool).scatter_(-1, chosen, value=True)
    seen = picked.repeat_interleave(block, dim=-1)[..., :last] & (key <= at)
    selected, _ = _masked(q, k[:, :, :last], v[:, :, :last], seen.unsqueeze(2))
    return compressed, selected


def _masked(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """q [B, K, G, T, D] over k and v [B, K, n, D] where seen [..., T, n]; output and weights."""
    nothing = ~seen.any(-1, keepdim=True)
    scores = _scores(q, k.unsqueeze(2)).masked_fill(~seen & ~nothing, float("-inf"))
    weights = scores.softmax(dim=-1).masked_fill(nothing, 0.0)
    return weights.to(v.dtype) @ v.unsqueeze(2), weights


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """Scaled products [..., T, n] of q [..., T, D] and k [..., n, D], in float32 at least."""
    scores = q @ k.transpose(-1, -2)
    return scores.to(torch.promote_types(scores.dtype, torch.float32)) * q.shape[-1] ** -0.5
