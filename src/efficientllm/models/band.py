"""A band of keys as FlexAttention's block mask: which tiles hold what a query may see.

A query sees the keys from `nearest` tokens back on, inside the window if there is one. Tiles
of queries and keys then meet in a band too, so its lists are arithmetic on their numbers.
torch's `create_block_mask` looks at every pair of tokens instead, and inside a compiled layer
it does so in every step (Dynamo traces through caches): at 16,384 tokens its kernel alone took
five minutes to compile.

Legend: n tiles in a row, d = tile of the query - tile of the key.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

TILE = 128
"""Tokens in a tile, of queries and of keys."""


class _Reach(NamedTuple):
    """Distances between tiles: some pair is seen in [first, last], every one in [near, far].

    first <= near and far <= last; where no tile is seen as a whole, far = near - 1.
    """

    first: int
    near: int
    far: int
    last: int


def band(length: int, nearest: int, window: int | None, device: torch.device) -> BlockMask:
    """The mask of rows of `length` tokens; a window counts the query itself.

    A tile at the ragged end of a row is never taken as seen whole.
    """

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        visible = q - k >= nearest
        return visible if window is None else visible & (q - k < window)

    n, whole = -(-length // TILE), length // TILE
    reach = _reach(n, nearest, window)
    at = torch.arange(n, device=device, dtype=torch.int32)
    return BlockMask(
        (length, length),
        *_keys(at, whole, reach),
        *_queries(at, whole, reach),
        BLOCK_SIZE=(TILE, TILE),
        mask_mod=seen,
    )


def _reach(n: int, nearest: int, window: int | None) -> _Reach:
    """Tokens of tiles that lie d apart are d x TILE +- (TILE - 1) tokens apart."""
    last = n - 1 if window is None else min((window + TILE - 2) // TILE, n - 1)
    first = max(-((TILE - 1 - nearest) // TILE), 0)
    near = min(-(-(nearest + TILE - 1) // TILE), last + 1)
    far = last if window is None else min((window - TILE) // TILE, last)
    return _Reach(first, near, max(far, near - 1), last)


def _keys(at: Tensor, whole: int, reach: _Reach) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each tile of queries the tiles of keys seen in part (count, list) and as a whole."""
    complete = at < whole
    oldest, newest = at - reach.last, at - reach.first
    behind = torch.where(complete, at - reach.far - 1, at - reach.near)
    full = torch.where(complete, at - reach.near, -1)
    return (
        *_listed(_part(oldest, behind, at), _part(at - reach.near + 1, newest, at)),
        *_listed(_part(at - reach.far, full, at), None),
    )


def _queries(at: Tensor, whole: int, reach: _Reach) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each tile of keys the tiles of queries that see part of it, and all of it."""
    beyond = (at + reach.far + 1).clamp(max=whole).maximum(at + reach.near)
    return (
        *_listed(
            _part(at + reach.first, at + reach.near - 1, at),
            _part(beyond, at + reach.last, at),
        ),
        *_listed(_part(at + reach.near, (at + reach.far).clamp(max=whole - 1), at), None),
    )


def _part(first: Tensor, last: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """The stretch first..last as far as there are tiles: where it begins, how many it holds."""
    first = first.clamp(min=0)
    return first, (last.clamp(max=at.shape[0] - 1) - first + 1).clamp(min=0)


def _listed(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Counts [1, 1, n] and lists [1, 1, n, n] of one stretch, or of two behind one another."""
    (first, count), n = one, one[0].shape[0]
    place = torch.arange(n, device=first.device, dtype=torch.int32)
    tiles, total = first[:, None] + place, count
    if two is not None:
        total = count + two[1]
        later = two[0][:, None] + place - count[:, None]
        tiles = torch.where(place < count[:, None], tiles, later)
    # What lies beyond the count is never looked at, but has to name a tile that is there.
    return total[None, None], tiles.clamp(0, n - 1)[None, None]
