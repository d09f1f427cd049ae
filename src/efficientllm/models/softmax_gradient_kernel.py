"""The gradient of attention, tile by tile: what queries get from keys, and keys from queries.

With weights p = exp(s - lse) of scores s, the output's gradient g and the values v, a score's
gradient is p (g v - delta), where delta = g out is the same for all keys of a query
(FlashAttention-2; Dao 2023, arXiv 2307.08691, section 3.1). Sums are in float32.

In Triton; imported only where Triton is. Legend: R rows of a tile (a query's head each), n keys,
D head size; `line` [R] says where in [B, T, H] a row stands.
"""

from __future__ import annotations

import triton
import triton.language as tl

from efficientllm.models.split_kernel import load_rows


@triton.jit
def first_time(q, out, down, lse, delta, line, real, size: tl.constexpr):
    """As `again`, with delta worked out and written down for those who come after."""
    query = load_rows(q + line[:, None] * size, real, size)
    slope = load_rows(down + line[:, None] * size, real, size)
    given = load_rows(out + line[:, None] * size, real, size)
    common = tl.sum(slope.to(tl.float32) * given.to(tl.float32), 1)
    tl.store(delta + line, common, mask=real)
    return query, slope, tl.load(lse + line, mask=real, other=0.0), common


@triton.jit
def again(q, down, lse, delta, line, real, size: tl.constexpr):
    """Queries and the gradients of their outputs [R, D], log-sum-exps and delta [R]."""
    query = load_rows(q + line[:, None] * size, real, size)
    slope = load_rows(down + line[:, None] * size, real, size)
    sums = tl.load(lse + line, mask=real, other=0.0)
    return query, slope, sums, tl.load(delta + line, mask=real, other=0.0)


@triton.jit
def to_queries(query, slope, sums, common, keys, values, seen, scale):
    """What queries get from keys and values [n, D] where `seen` [R, n]; to be scaled, [R, D]."""
    scores = tl.dot(query, tl.trans(keys)) * scale - sums[:, None]
    weights = tl.exp(tl.where(seen, scores, float("-inf")))
    steep = weights * (tl.dot(slope, tl.trans(values)) - common[:, None])
    return tl.dot(steep.to(query.dtype), keys)


@triton.jit
def to_keys(query, slope, sums, common, keys, values, seen, scale):
    """What keys, to be scaled, and values get from queries where `seen` [n, R]; two of [n, D]."""
    scores = tl.dot(keys, tl.trans(query)) * scale - sums[None, :]
    weights = tl.exp(tl.where(seen, scores, float("-inf")))
    steep = weights * (tl.dot(values, tl.trans(slope)) - common[None, :])
    return tl.dot(steep.to(query.dtype), query), tl.dot(weights.to(query.dtype), slope)
