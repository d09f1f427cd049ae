"""Split decoding on a GPU: one new token reads its whole cache once, in parts side by side.

One query a sequence gives a GPU too little to do: a program for each (sequence, key/value
head) leaves most of it idle unless the batch is large. So the slots are divided as well, each
part keeps its own softmax, and the parts are put together by their log-sum-exps
(FlashDecoding; Dao, Haziza, Massa, Sizov 2023). Grouped heads share what is read, and where
the values are the first numbers of the keys (latents), those are read once for both.

In Triton, because two products and a softmax read scores back and forth, and read latents
twice. Imported only where Triton is; `attend_cached.py` decides when it runs.

Legend: B sequences, K key/value heads, G query heads for each, S slots, D width of a key, E
of a value, P parts.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from efficientllm.models.attend_cached import empty_parts, rows_of, tiles
from efficientllm.models.chain_kernel import follow, links

MANY_MIXED = 16_384
"""Numbers that a program mixes (rows times a value's width) from which `_tiles` and `_part` spill
in four warps."""

WIDE = 128
"""Numbers of a value of its own from which a program has eight warps, below it and over latents
four (eight, too, where it mixes many). At a width of 64 whole decode steps take 3 to 5 % less with
four on an H200, NSA's 0.1 to 0.5 %. At 128 steps of 32 sequences took 0.5 % less, one was not
tried; on an H100 eight were within 10 % of the best of 15 settings in 13 of 14 cases. Over latents
of 512 + 64 numbers parts alone take 12 to 27 % less with four."""


def attend_parts(
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
    """Each part's attention [B, K, P, G, E] and log-sum-exp [B, K, P, G], both float32.

    q [B, K, G, D], k [B, K, S, D], v [B, K, S, E] or None: then values are the first `width`
    numbers of the keys. A part is `chunk` slots; the log-sum-exp of one without any filled
    slot is minus infinity.
    """
    found = empty_parts(q, -(-k.shape[2] // chunk), width)
    fill_parts(found, q, k, v, slot, bias, slopes, chunk, scale)
    return found


def fill_parts(
    found: tuple[Tensor, Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    slot: Tensor,
    bias: Tensor | None,
    slopes: Tensor | None,
    chunk: int,
    scale: float,
    *,
    tokens: int = 1,
) -> None:
    """Write the first parts of `found`, which may have room for more, as `attend_parts` says.

    A slot may stand for several `tokens` (the mean of a block): it counts from its last on.
    """
    out, lse = found
    if q.stride(-1) != 1:  # a head's numbers are read side by side
        q = q.contiguous()
    (batch, kv_heads, group, size), width = q.shape, out.shape[-1]
    main = width if v is None else size
    taken = tiles(group, size, width, size if v is None else size + width)
    assert taken is not None, "asked for by `decoding` only where it fits"
    _part[(batch * kv_heads, -(-k.shape[2] // chunk))](
        *(q, k, v, slot, bias, slopes, out, lse),
        tuple(None if x is None else x.stride()[:3] for x in (q, k, v, bias)),
        *(k.shape[2], out.shape[2], 0 if bias is None else bias.shape[-1], scale),
        kv_heads=kv_heads,
        group=group,
        rows=rows_of(group),
        tokens=tokens,
        chunk=chunk,
        block=taken[0],
        main=main,
        rest=size - main,
        width=width,
        num_warps=8 if v is not None and width >= WIDE else warps(rows_of(group), width),
        num_stages=taken[1],
        **links(),
    )


def warps(rows: int, width: int) -> int:
    """Of a program that mixes the values of its tiles for so many rows."""
    return 8 if rows * width >= MANY_MIXED else 4


def warps_alone(rows: int, width: int) -> int:
    """Of a program that does so for the heads of one query, beside very many such programs.

    Of 1, 2 and 4 on an H100, with 16 rows, the fastest forward were 1 at a width of 64 and 2 at
    128, and backward the same.
    """
    return min(8, max(1, rows * width // 1024))


@triton.jit
def _part(
    q,
    k,
    v,
    slot,
    bias,
    slopes,
    out,
    lse,
    strides,
    slots,
    parts,
    distances,
    scale,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    rows: tl.constexpr,
    tokens: tl.constexpr,
    chunk: tl.constexpr,
    block: tl.constexpr,
    main: tl.constexpr,
    rest: tl.constexpr,
    width: tl.constexpr,
    chained: tl.constexpr,
):
    """One part of one (sequence, key/value head); see `attend_parts`."""
    which, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    follow(chained)  # the newest slot was written just now, and so was the query
    row, kv_head = tl.arange(0, rows), which % kv_heads
    real, head = row < group, kv_head * group + row
    q = begin(q, strides[0], which, kv_heads) + row[:, None] * strides[0][2]
    query = load_rows(q, real, main)
    turned = load_rows(q + main, real, rest) if rest else 0
    k = begin(k, strides[1], which, kv_heads)
    v = None if v is None else begin(v, strides[2], which, kv_heads)
    # A ring is filled from its start, and wholly once it has gone round.
    at = (tl.load(slot).to(tl.int32) + 1) // tokens - 1
    last, newest = tl.minimum(tl.minimum(at + 1, slots), (part + 1) * chunk), at % slots
    most, total, mixed = nothing_yet(rows, width)
    for start in range(part * chunk, last, block):
        index = start + tl.arange(0, block)
        seen, back = index < last, _back(newest, index, slots)
        place = index[:, None].to(tl.int64)
        keys = load_rows(k + place * strides[1][2], seen, main)
        more = tl.zeros((rows, block), tl.float32)
        if bias is not None:
            first = _back(newest, start, slots)
            more = _nearer(more, bias, strides[3], head, real, back, first, distances) / scale
        scores = tl.dot(query, tl.trans(keys), more)
        if rest:
            scores += tl.dot(
                turned, tl.trans(load_rows(k + main + place * strides[1][2], seen, rest))
            )
        scores = _sloped(scores * scale, back, slopes, head, real)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        values = keys if v is None else load_rows(v + place * strides[2][2], seen, width)
        most, total, mixed = mix(scores, values, most, total, mixed)
    if bias is not None:
        most += _far(bias, strides[3], head, real, distances)  # what all keys gain alike
    write_part(out, lse, (which * parts + part) * group + row, real, most, total, mixed)


@triton.jit
def write_part(out, lse, line, real, most, total, mixed):
    """A part's output and log-sum-exp, at a line of each head."""
    width: tl.constexpr = mixed.shape[1]
    place = line[:, None] * width + tl.arange(0, width)[None, :]
    some = tl.where(total == 0.0, 1.0, total)  # of a part without any slot `most` tells enough
    tl.store(out + place, mixed / some[:, None], mask=real[:, None])
    tl.store(lse + line, most + tl.log(some), mask=real)


@triton.jit
def load_rows(start, wanted, width: tl.constexpr):
    """As many numbers as `width` from each start [n, 1]; zeros in rows that are not wanted."""
    return tl.load(start + tl.arange(0, width)[None, :], mask=wanted[:, None], other=0.0)


@triton.jit
def begin(x, strides, which, kv_heads: tl.constexpr):
    """Where one (sequence, key/value head) begins."""
    return x + which // kv_heads * strides[0] + which % kv_heads * strides[1]


@triton.jit
def _back(newest, index, slots):
    """How many tokens a slot of a ring, or each of some, lies before the newest.

    By a comparison, not a remainder: of what a program with slopes does a tile, that was an
    eighth. Nothing below zero either, where there is no slot and a bias is looked up all the same.
    """
    back = newest - index
    return tl.maximum(tl.where(back < 0, back + slots, back), 0)


@triton.jit
def _far(bias, strides, head, real, distances):
    """What scores of each head gain by all keys beyond the last distance: [rows]."""
    look = bias + head * strides[0] + (distances - 1) * strides[1]
    return tl.load(look, mask=real, other=0.0).to(tl.float32)


@triton.jit
def _nearer(none, bias, strides, head, real, back, first, distances):
    """How much more than by far keys scores gain by `back` [block]: [rows, block], or `none`.

    The slot that lies `first` back begins the block. Of most blocks all keys are far, and
    nothing is looked up. A product's sum begins with this: added to it, what is looked up
    keeps a layout of its own, and Triton takes the softmax in both.
    """
    block: tl.constexpr = none.shape[1]
    more = none
    if first < distances + block - 2:
        near = tl.minimum(back, distances - 1)[None, :] * strides[1]
        near = tl.load(bias + head[:, None] * strides[0] + near, mask=real[:, None], other=0.0)
        more = near.to(tl.float32) - _far(bias, strides, head, real, distances)[:, None]
    return more


@triton.jit
def _sloped(scores, back, slopes, head, real):
    """Scores [rows, block] less the distance `back` [block] times each head's slope."""
    if slopes is not None:
        slope = tl.load(slopes + head, mask=real, other=0.0).to(tl.float32)
        scores -= slope[:, None] * back[None, :].to(tl.float32)
    return scores


@triton.jit
def nothing_yet(rows: tl.constexpr, width: tl.constexpr):
    """What `mix` begins with: no largest score, no weights, no values."""
    mixed = tl.zeros((rows, width), tl.float32)
    return tl.full((rows,), float("-inf"), tl.float32), tl.zeros((rows,), tl.float32), mixed


@triton.jit
def mix(scores, values, most, total, mixed):
    """A softmax that goes on: largest score, sum of weights, mixed values, each a row's."""
    higher = tl.maximum(most, tl.max(scores, 1))
    weights, faded = tl.exp(scores - higher[:, None]), tl.exp(most - higher)
    mixed = mixed * faded[:, None] + tl.dot(weights.to(values.dtype), values)
    return higher, total * faded + tl.sum(weights, 1), mixed
