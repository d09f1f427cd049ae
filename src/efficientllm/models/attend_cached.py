"""Attention of one new token a sequence over a static cache.

Two ways to the same numbers. *Two products* per key/value head with a softmax between them:
plain PyTorch, any device and type, and the reference in the tests. *Split* on a GPU in half
precision: one pass over the cache (`split_kernel.py`), because decoding is bound by what it
reads, and the products read scores, and latents, more than once. A mask by length, never
`is_causal`: with one query that would see the first key only.

Legend: B batch, H query heads, K key/value heads, G = H / K, S cache slots, D head size, E
size of a value (D, but for latent attention), P parts of the slots.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from efficientllm.device import in_half_on_gpu
from efficientllm.models.position import Positions, distances

PRODUCTS, SPLIT = "two products", "split"
"""What the record calls the two ways."""

INSTALLED = importlib.util.find_spec("triton") is not None
"""Whether kernels of ours can be built."""

PROGRAMS = 264
"""Programs that the split aims at: two for each multiprocessor of an H100."""

LEAST_CHUNK = 128
"""Slots of a part at least: what a part writes down must stay small beside what it reads."""

MOST_MIXED = 16_384
"""Numbers that one program can mix at once: heads of a group (16 at least) times a value."""

ROOM = 96 << 10
"""Bytes of shared memory that one program may take: what a consumer's card has, and some less."""


def attend_cache(q: Tensor, k: Tensor, v: Tensor, positions: Positions) -> Tensor:
    """One new query a row against a ring of slots that holds positions up to its own.

    q [B, H, 1, D], k [B, K, S, D], v [B, K, S, E] -> [B, H, 1, E]. Scores are products over
    the root of D, and the biases of `positions`; softmax in float32.
    """
    scale = q.shape[-1] ** -0.5
    if decoding(q.device, q.dtype, q.shape[1] // k.shape[1], k.shape[-1], v.shape[-1]) == SPLIT:
        return _attend_split(q, k, v, positions, v.shape[-1], scale)
    return attend_products(q, k, v, positions, scale)


def attend_latents(
    q: Tensor, latent: Tensor, rank: int, positions: Positions, scale: float
) -> Tensor:
    """The same over latents [B, 1, S, D], whose first `rank` numbers are the values.

    Scores are products times `scale`: the size of a head is none of the latents'.
    """
    group, rest = q.shape[1], latent.shape[-1] - rank
    if decoding(q.device, q.dtype, group, rank, rank, rest) == SPLIT:
        return _attend_split(q, latent, None, positions, rank, scale)
    return attend_products(q, latent, latent[..., :rank], positions, scale)


def decoding(
    device: torch.device, dtype: torch.dtype, group: int, key: int, value: int, rest: int = 0
) -> str:
    """Which of the two ways sizes are decoded by: G, D and E; `rest` of D beyond the values.

    With a rest, keys and values are the same numbers (latents).
    """
    powers = all(n & (n - 1) == 0 for n in (key, value, rest))
    sized = min(key, value) >= 16 and rest in (0, *range(16, 257))
    read = key + (rest or value)
    fits = powers and sized and tiles(group, key + rest, value, read) is not None
    return SPLIT if INSTALLED and in_half_on_gpu(device, dtype) and fits else PRODUCTS


def rows_of(group: int) -> int:
    """Rows of a program's products: G, padded to what tensor cores take."""
    return max(16, 1 << (group - 1).bit_length())


def tiles(group: int, size: int, width: int, read: int) -> tuple[int, int] | None:
    """Slots that a program takes at once, and how many such are on their way; None: too much.

    For G heads of keys of `size` and values of `width`, which are `read` numbers a slot. What
    lies in shared memory are the slots under way, the queries and the weights: as compiled
    for cards from 2018 to 2025 (one large group took a seventh more). Over latents, where what
    is read is the keys alone, 64 slots are no faster but for 32 long sequences (2 %).
    """
    rows, slots = rows_of(group), 32 if width >= 512 or read == size else 64
    if rows * width > MOST_MIXED:
        return None
    for stages in (3, 2):
        if 2 * ((stages - 1) * slots * read + rows * (size + slots)) <= ROOM:
            return slots, stages
    return None


def attend_products(q: Tensor, k: Tensor, v: Tensor, positions: Positions, scale: float) -> Tensor:
    """By two products per key/value head, so that grouped heads read their shared cache once."""
    assert positions.slot is not None
    batch, heads, _, dim = q.shape
    kv_heads, slots = k.shape[1], k.shape[2]
    back, filled = distances(positions.slot, slots)
    grouped = q.reshape(batch, kv_heads, heads // kv_heads, dim)
    scores = (grouped @ k.transpose(-1, -2)).float() * scale
    if positions.biased:
        flat = with_distance(scores.view(batch, heads, slots), back, positions)
        scores = flat.view(scores.shape)
    weights = scores.masked_fill(~filled, float("-inf")).softmax(dim=-1)
    return (weights.to(v.dtype) @ v).reshape(batch, heads, 1, v.shape[-1])


def with_distance(scores: Tensor, back: Tensor, positions: Positions) -> Tensor:
    """Scores [B, H, ...] with what depends on distance; `back` is [...]."""
    ones = (1,) * back.ndim
    if positions.bias is not None:
        scores = scores + positions.bias[:, back.clamp(max=positions.bias.shape[1] - 1)]
    if positions.slopes is not None:
        scores = scores - positions.slopes.view(-1, *ones) * back
    return scores


def _attend_split(
    q: Tensor, k: Tensor, v: Tensor | None, positions: Positions, width: int, scale: float
) -> Tensor:
    assert positions.slot is not None
    batch, heads = q.shape[:2]
    grouped = q.reshape(batch, k.shape[1], heads // k.shape[1], q.shape[-1])
    chunk = chunk_of(batch * k.shape[1], k.shape[2])
    out, lse = _parts(
        grouped, k, v, positions.slot, positions.bias, positions.slopes, chunk, width, scale
    )
    return _together(out, lse, q.dtype).reshape(batch, heads, 1, width)


def chunk_of(pairs: int, slots: int) -> int:
    """Slots of a part, for so many (sequence, key/value head) pairs; a multiple of LEAST_CHUNK."""
    parts = max(1, PROGRAMS // pairs)
    return -(-slots // (parts * LEAST_CHUNK)) * LEAST_CHUNK


def empty_parts(q: Tensor, parts: int, width: int) -> tuple[Tensor, Tensor]:
    """Room for so many parts of q [B, K, G, D]: [B, K, P, G, E] and [B, K, P, G], float32."""
    lse = q.new_empty((*q.shape[:2], parts, q.shape[2]), dtype=torch.float32)
    return lse.new_empty((*lse.shape, width)), lse


@torch.library.custom_op("efficientllm::attend_parts", mutates_args=())
def _parts(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    slot: Tensor,
    bias: Tensor | None,
    slopes: Tensor | None,
    chunk: int,
    width: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """An operator of its own: a compiled layer stays one graph around it."""
    from efficientllm.models.split_kernel import attend_parts

    return attend_parts(q, k, v, slot, bias, slopes, chunk, width, scale)


@_parts.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    slot: Tensor,
    bias: Tensor | None,
    slopes: Tensor | None,
    chunk: int,
    width: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    return empty_parts(q, -(-k.shape[2] // chunk), width)


@torch.library.custom_op("efficientllm::merge_parts", mutates_args=())
def _together(out: Tensor, lse: Tensor, dtype: torch.dtype) -> Tensor:
    """Parts [B, K, P, G, E] weighted by their log-sum-exps [B, K, P, G]: [B, K, G, E].

    A compiler's own kernel takes 14 microseconds more for 129 parts than for 33.
    """
    from efficientllm.models.merge_kernel import merge

    return merge(out, lse, None, (out.shape[2],), dtype)


@_together.register_fake
def _(out: Tensor, lse: Tensor, dtype: torch.dtype) -> Tensor:
    return out.new_empty((*out.shape[:2], *out.shape[3:]), dtype=dtype)
