"""The branches of native sparse attention with every score written out: for a CPU, and to check.

Legend: as in `sparse.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from efficientllm.catalog.shape import Sparse

QUERIES = 512
"""Queries that the reference goes through at once."""


def block_means(x: Tensor, sizes: Sparse) -> Tensor:
    """Means over blocks, [B, K, T, D] -> [B, K, ceil(T / block), D]; a last part by zeros.

    That of an unfinished block belongs to no query; the kernels want it to be there.
    """
    missing = -x.shape[2] % sizes.block
    if missing:
        x = nn.functional.pad(x, (0, 0, 0, missing))
    return x.unflatten(2, (-1, sizes.block)).mean(3)


def means_of(k: Tensor, v: Tensor, sizes: Sparse) -> tuple[Tensor, Tensor]:
    """Those of keys and of values."""
    return block_means(k, sizes), block_means(v, sizes)


def sparse_reference(
    q: Tensor, k: Tensor, v: Tensor, means: tuple[Tensor, Tensor], sizes: Sparse
) -> tuple[Tensor, Tensor]:
    """The compressed and the selected branch of whole rows, every score written out.

    q [B, H, T, D], k and v [B, K, T, D], their means [B, K, N, D] -> two of [B, H, T, D]. For a
    CPU and for checking the kernels. Goes through some queries at a time: at once they hold
    B x H x QUERIES x T scores (a backward pass needs the weights of all).
    """
    grouped = q.unflatten(1, (k.shape[1], -1))
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
    compressed, weights = masked(q, *means, whole)
    shares = weights.sum(2).detach()
    chosen = chosen_blocks(shares, at // block, sizes)
    picked = torch.zeros_like(shares, dtype=torch.bool).scatter_(-1, chosen, value=True)
    seen = picked.repeat_interleave(block, dim=-1)[..., :last] & (key <= at)
    selected, _ = masked(q, k[:, :, :last], v[:, :, :last], seen.unsqueeze(2))
    return compressed, selected


def masked(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """q [B, K, G, T, D] over k and v [B, K, n, D] where seen [..., T, n]; output and weights."""
    nothing = ~seen.any(-1, keepdim=True)
    scores = scaled_scores(q, k.unsqueeze(2)).masked_fill(~seen & ~nothing, float("-inf"))
    weights = scores.softmax(dim=-1).masked_fill(nothing, 0.0)
    return weights.to(v.dtype) @ v.unsqueeze(2), weights


def scaled_scores(q: Tensor, k: Tensor) -> Tensor:
    """Scaled products [..., T, n] of q [..., T, D] and k [..., n, D], in float32 at least."""
    scores = q @ k.transpose(-1, -2)
    return scores.to(torch.promote_types(scores.dtype, torch.float32)) * q.shape[-1] ** -0.5


def chosen_blocks(shares: Tensor, own: Tensor, sizes: Sparse) -> Tensor:
    """Which blocks are read whole: [..., N] shares -> [..., min(selected, N)] block numbers.

    The three that are always read rank above every share, the query's own first: without it
    a query might see nothing of its neighbours. Blocks after `own` are never better than any
    other; that they are not seen is the reader's affair.
    """
    number = torch.arange(shares.shape[-1], device=shares.device)
    shares = shares.masked_fill(number > own, -1.0).masked_fill(number == 0, 1e30)
    shares = shares.masked_fill(number == own - 1, 2e30).masked_fill(number == own, 3e30)
    return shares.topk(min(sizes.selected, shares.shape[-1]), dim=-1).indices
