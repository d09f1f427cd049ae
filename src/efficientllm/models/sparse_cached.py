"""Native sparse attention of one new token a sequence over its cache.

Two ways to the same numbers. *Chosen blocks*: plain PyTorch, any device and type; what was
chosen is gathered, and every score written out. *Split* on a GPU in half precision: five
kernels (`sparse_split_kernel.py`) instead of some thirty operations, because one token is
little work and most of its time went into launching them.

Legend: as in `sparse.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from efficientllm.catalog.shape import Sparse
from efficientllm.models.attend_cached import ROOM, SPLIT, decoding, rows_of
from efficientllm.models.sparse_reference import chosen_blocks, scaled_scores

CHOSEN, CHOSEN_SPLIT = "chosen blocks", "chosen blocks, split"
"""What the record calls the two ways."""


class SparseCache(NamedTuple):
    """k and v [B, K, S, D], and the means of whole blocks, [B, K, N, D]."""

    k: Tensor
    v: Tensor
    block_k: Tensor
    block_v: Tensor


def attend_sparse_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    cache: SparseCache,
    slot: Tensor,
    sizes: Sparse,
) -> Tensor:
    """One new token a row: reads means of blocks, chosen blocks and the window, nothing else.

    q [B, H, 1, D], k and v [B, K, 1, D], gates [B, 1, 3 H] before their sigmoid, `slot` [1]
    -> [B, H, 1, D]. The token is written into `cache`. Split has no gradient.
    """
    group = q.shape[1] // k.shape[1]
    if sparse_decoding(q.device, q.dtype, group, q.shape[-1], sizes) == CHOSEN:
        return attend_sparse_products(q, k, v, gates, cache, slot, sizes)
    grouped = q.reshape(q.shape[0], k.shape[1], group, q.shape[-1])
    new, gates = (k.squeeze(2), v.squeeze(2)), gates.flatten(1)
    numbers = sizes.block, sizes.selected, sizes.window
    return _attend(grouped, *new, gates, *cache, slot, *numbers).view(q.shape)


def attend_sparse_products(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    cache: SparseCache,
    slot: Tensor,
    sizes: Sparse,
) -> Tensor:
    """The same with every score written out."""
    grouped = q.unflatten(1, (k.shape[1], -1)).squeeze(3)
    branches = _branches(grouped, k, v, cache, slot, sizes)
    return gated(gates, tuple(b.flatten(1, 2).unsqueeze(2) for b in branches))


def sparse_decoding(
    device: torch.device, dtype: torch.dtype, group: int, size: int, sizes: Sparse
) -> str:
    """Which of the two ways sizes are decoded by: G, D and those of the branches."""
    block = sizes.block
    room = 2 * (2 * block * size + rows_of(group) * (size + block))
    fits = block >= 16 and block & (block - 1) == 0 and room <= ROOM
    return CHOSEN_SPLIT if fits and decoding(device, dtype, group, size, size) == SPLIT else CHOSEN


def gated(gates: Tensor, branches: tuple[Tensor, ...]) -> Tensor:
    """Branches [B, H, T, D] under the sigmoid of their gates [B, T, branches * H]: their sum."""
    weights = gates.sigmoid().unflatten(-1, (len(branches), -1)).permute(2, 0, 3, 1)
    out = sum(w.unsqueeze(-1) * b for w, b in zip(weights, branches, strict=True))
    assert isinstance(out, Tensor)
    return out


def _branches(
    q: Tensor, k: Tensor, v: Tensor, cache: SparseCache, slot: Tensor, sizes: Sparse
) -> tuple[Tensor, Tensor, Tensor]:
    """Compressed, selected, window, each [B, K, G, D], of q [B, K, G, D]."""
    block, slots = sizes.block, cache.k.shape[2]
    cache.k.index_copy_(2, slot, k)
    cache.v.index_copy_(2, slot, v)
    own = slot // block
    # The mean of an unfinished block is wrong until its last token: it is not looked at.
    inside = (own * block + torch.arange(block, device=slot.device)).clamp(max=slots - 1)
    cache.block_k.index_copy_(2, own, cache.k.index_select(2, inside).mean(2, keepdim=True))
    cache.block_v.index_copy_(2, own, cache.v.index_select(2, inside).mean(2, keepdim=True))
    compressed, shares = _compressed(q, cache.block_k, cache.block_v, (slot + 1) // block)
    chosen = chosen_blocks(shares, own, sizes)
    within = (chosen * block).unsqueeze(-1) + torch.arange(block, device=slot.device)
    selected = _read(q, cache, within.flatten(-2), slot)
    near = slot - torch.arange(min(sizes.window, slots), device=slot.device)
    return compressed, selected, _read(q, cache, near.expand(*q.shape[:2], -1), slot)


def _compressed(q: Tensor, k: Tensor, v: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of one token a row to the first `whole` [1] blocks, and each block's share.

    q [B, K, G, D], k and v [B, K, N, D] -> [B, K, G, D], and [B, K, N] summed over G.
    """
    seen = torch.arange(k.shape[2], device=k.device) < whole
    weights = scaled_scores(q, k).masked_fill(~seen, float("-inf")).softmax(dim=-1)
    weights = weights.masked_fill(~seen, 0.0)  # before the first whole block there is nothing
    return weights.to(v.dtype) @ v, weights.sum(2)


def _read(q: Tensor, cache: SparseCache, where: Tensor, slot: Tensor) -> Tensor:
    """Attention of one token a row to the slots `where` [B, K, n] up to its own: [B, K, G, D]."""
    seen = (where >= 0) & (where <= slot)
    index = where.clamp(0, cache.k.shape[2] - 1).unsqueeze(-1).expand(-1, -1, -1, q.shape[-1])
    k, v = cache.k.gather(2, index), cache.v.gather(2, index)
    weights = scaled_scores(q, k).masked_fill(~seen.unsqueeze(2), float("-inf")).softmax(dim=-1)
    return weights.to(v.dtype) @ v


@torch.library.custom_op(
    "efficientllm::attend_sparse", mutates_args=("keys", "values", "block_k", "block_v")
)
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    keys: Tensor,
    values: Tensor,
    block_k: Tensor,
    block_v: Tensor,
    slot: Tensor,
    block: int,
    selected: int,
    window: int,
) -> Tensor:
    """An operator of its own: a compiled layer stays one graph around it."""
    from efficientllm.models.sparse_split_kernel import attend_sparse

    cache = keys, values, block_k, block_v
    return attend_sparse(q, k, v, gates, cache, slot, block, selected, window)


@_attend.register_fake
def _(q: Tensor, *_: object) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)
