"""Attention of whole rows: which kernel runs, by what is asked. Only these calls are allowed:

* rows of equal length (training, scoring, prefill): FlashAttention-4 where it is pinned, else
  SDPA with `is_causal` and no mask. A dense mask differentiated through cuDNN gives NaN
  gradients at some lengths (pytorch#196678).
* windows and biases: FlexAttention on CUDA; elsewhere a masked reference, because
  FlexAttention has no backward pass on a CPU. A window that holds the whole row is none.
* windows and biases that are only scored, not compiled and not differentiated: SDPA with a mask.
* packed documents: variable-length attention on CUDA; elsewhere one call a document.

One new token against a static cache is another matter: `attend_cached.py`.

Legend: B batch, T new positions, H query heads, K key/value heads, D head size, E size of a
value (D, but for latent attention).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import (
    AuxRequest,
    BlockMask,
    flex_attention,
)
from torch.nn.attention.varlen import varlen_attn

from efficientllm.catalog.shape import Shape
from efficientllm.device import Device, in_half_on_gpu, pin_attention
from efficientllm.models import flash4, sparse_branches
from efficientllm.models.attend_cached import with_distance
from efficientllm.models.band import TILE, band
from efficientllm.models.position import Documents, Positions
from efficientllm.models.sparse_rows import obstacle
from efficientllm.record import Unsupported

# Before torch 2.12 the variable-length kernel takes grouped heads without being asked to.
_VARLEN_ASKS_FOR_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters

REFERENCE = "masked reference"

SMALL_TILES = {
    "num_stages": 1,
    "fwd_BLOCK_M": 64,
    "fwd_BLOCK_N": 64,
    "bwd_BLOCK_M1": 32,
    "bwd_BLOCK_N1": 32,
    "bwd_BLOCK_M2": 32,
    "bwd_BLOCK_N2": 32,
}
"""For scores that look something up: what is looked up lies in shared memory too."""

_NOWHERE = Positions()


def attend(
    q: Tensor, k: Tensor, v: Tensor, positions: Positions = _NOWHERE, window: int | None = None
) -> Tensor:
    """Causal attention of whole rows. q [B, H, T, D], k [B, K, T, D], v [B, K, T, E].

    Gives [B, H, T, E]. With `window` a query sees that many tokens, itself included; with
    documents B is 1 and no position sees another document.
    """
    if window is not None and window >= k.shape[2]:
        window = None
    if positions.documents is not None:
        return _attend_packed(q, k, v, positions, window)
    if not positions.biased and not _scored_only and flash4.attends(q.shape[-1], window):
        return flash4.attend_flash4(q, k, v, window)
    if window is None and not positions.biased:
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
        )
    return _written_or_flex(q.is_cuda)(q, k, v, positions, window)


def pin(wanted: str, device: Device, dtype: torch.dtype, length: int, shape: Shape) -> str:
    """Pin what attends to whole rows of our decoder, process-wide; its name.

    Raises Unsupported where what is wanted cannot run.
    """
    by_flash4 = flash4.chosen(wanted, device.torch, dtype, shape)
    flash4.pin(by_flash4)
    if by_flash4:
        return flash4.KERNEL
    grouped = shape.heads != shape.kv_heads
    return pin_attention(wanted, device, dtype, length, grouped=grouped)


def _written_or_flex(on_gpu: bool) -> Callable[..., Tensor]:
    """What attends with windows and biases."""
    if not on_gpu:
        return attend_masked
    return attend_scored if _scored_only else _attend_flex


_scored_only = False


@contextmanager
def scored_only() -> Iterator[None]:
    """Nothing is differentiated or compiled for a while.

    FlexAttention that is not compiled writes every score out in float32: scoring a model with
    windows of 256 tokens took 1.9 s on an H100 where the same with all keys took 0.6, and 3.6 s
    with T5's biases and 2.2 with ALiBi on an H200, where the same without took 0.5.
    """
    global _scored_only
    _scored_only = True
    try:
        yield
    finally:
        _scored_only = False


def attend_scored(
    q: Tensor, k: Tensor, v: Tensor, positions: Positions, window: int | None
) -> Tensor:
    """Windows and biases of whole rows by a mask, for long rows too large; without gradients.

    The mask is [T, T], or [H, T, T] with biases: those are added in float32, because a distance
    in bf16 is wrong by up to 0.4 %. cuDNN is left out: what it does with masks at odd lengths is
    not trusted here.
    """
    k, v, back, seen = _written_out(q, k, v, window)
    kernels = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if not positions.biased:
        with sdpa_kernel(kernels):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    nothing = torch.zeros((), device=q.device)
    added = with_distance(nothing, back.clamp(min=0), positions).float()
    mask = added.masked_fill(~seen, float("-inf"))
    # Autocast would make bf16 of float32, of the mask too.
    with sdpa_kernel(kernels), torch.autocast(q.device.type, enabled=False):
        out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    return out.to(v.dtype)


def kernel(shape: Shape, device: torch.device, dtype: torch.dtype, length: int, plain: str) -> str:
    """What the record calls the attention of whole rows; `plain` is what `pin` gave.

    Raises Unsupported where a shape's attention has no kernel on this device.
    """
    on_gpu = device.type == "cuda"
    if shape.custom:
        return shape.custom
    if shape.sparse is not None:
        near = of_window(shape.head_dim, shape.sparse.window)
        if not in_half_on_gpu(device, dtype):
            return f"{REFERENCE} + {near}" if on_gpu else REFERENCE
        why = obstacle(shape.heads // shape.kv_heads, shape.head_dim, shape.sparse)
        if why:
            raise Unsupported(why)
        return f"{sparse_branches.KERNEL} + {near}"
    windowed = shape.sliding_window is not None and shape.sliding_window < length
    if shape.position in ("t5", "alibi"):
        return "flex" if on_gpu else REFERENCE
    if windowed:
        return of_window(shape.head_dim, shape.sliding_window) if on_gpu else REFERENCE
    return plain


def of_window(size: int, window: int | None) -> str:
    """What attends with a window and no biases on a GPU, where heads have this size."""
    return flash4.KERNEL if flash4.attends(size, window) else "flex"


def attend_masked(
    q: Tensor, k: Tensor, v: Tensor, positions: Positions, window: int | None
) -> Tensor:
    """The plain reference of windows and biases: every score is written out, in float32."""
    k, v, back, seen = _written_out(q, k, v, window)
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    scores = with_distance(scores, back.clamp(min=0), positions)
    return scores.masked_fill(~seen, float("-inf")).softmax(dim=-1).to(v.dtype) @ v


def _written_out(
    q: Tensor, k: Tensor, v: Tensor, window: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys and values for every query head; how far back keys lie, and which are seen, [T, T]."""
    index, groups = torch.arange(q.shape[2], device=q.device), q.shape[1] // k.shape[1]
    back = index[:, None] - index[None, :]
    seen = back >= 0 if window is None else (back >= 0) & (back < window)
    return k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1), back, seen


def _attend_flex(
    q: Tensor, k: Tensor, v: Tensor, positions: Positions, window: int | None
) -> Tensor:
    if positions.bias is not None:
        return _attend_learned_bias(q, k, v, positions.bias, window)
    slopes = positions.slopes
    score_mod = None
    if slopes is not None:

        def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score - slopes[h] * (i - j)

    return _flex(q, k, v, band(q.shape[2], 0, window, q.device), score_mod)[0]


def _attend_learned_bias(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, window: int | None
) -> Tensor:
    """Attention with learned biases [H, n] by distance, in two parts that are merged exactly.

    Beyond the last distance all keys of a head have the same bias, and softmax knows no
    constants: relative to it the far keys need none. Only the near ones look theirs up. The
    gradient of a bias is a sum over all pairs of its distance, taken with atomic additions;
    the near part's table has a place for each (query, key) of a block's diagonal, so few of
    them meet (in a table by distance they queue: 128 ms instead of 4 for 8,192 tokens).
    """
    length, near = q.shape[2], bias.shape[1] - 1
    side = -(-near // TILE) * TILE
    row, column = torch.arange(side, device=q.device), torch.arange(2 * side, device=q.device)
    back = (row[:, None] + side - column[None, :]).clamp(0, near)
    table = (bias - bias[:, -1:])[:, back]

    def biased(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        place = j - (i // side - 1) * side
        return score + table[h, i % side, place.clamp(0, 2 * side - 1)]

    out, lse = _flex(
        q, k, v, band(length, 0, min(side, window or side), q.device), biased, SMALL_TILES
    )
    if length <= side or (window is not None and window <= side):  # nothing lies beyond
        return out
    far, far_lse = _flex(q, k, v, band(length, side, window, q.device))
    share = (far_lse - lse).sigmoid().unsqueeze(-1).to(out.dtype)
    return torch.lerp(out, far, share)


def _flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: BlockMask,
    score_mod: Callable[..., Tensor] | None = None,
    tiles: Any = None,
) -> tuple[Tensor, Tensor]:
    """FlexAttention's output and the log-sum-exp of the scores, [B, H, T]."""
    out, aux = flex_attention(
        q,
        k,
        v,
        score_mod=score_mod,
        block_mask=blocks,
        enable_gqa=q.shape[1] != k.shape[1],
        kernel_options=tiles,
        return_aux=AuxRequest(lse=True),
    )
    assert aux.lse is not None
    return out, aux.lse


def _attend_packed(
    q: Tensor, k: Tensor, v: Tensor, positions: Positions, window: int | None
) -> Tensor:
    documents = positions.documents
    assert documents is not None
    if q.is_cuda:
        if positions.biased:
            raise Unsupported(
                "packed documents and biases on scores have no kernel here; use rope,"
                " sinusoidal, learned or none"
            )
        return _attend_packed_cuda(q, k, v, documents, window)
    parts = [t.split(documents.lengths, dim=2) for t in (q, k, v)]
    alone = positions._replace(documents=None)
    whole = [attend(a, b, c, alone, window) for a, b, c in zip(*parts, strict=True)]
    return torch.cat(whole, dim=2)


def _attend_packed_cuda(
    q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int | None
) -> Tensor:
    options: dict[str, Any] = {"window_size": (-1 if window is None else window - 1, 0)}
    if _VARLEN_ASKS_FOR_GROUPS:
        options["enable_gqa"] = q.shape[1] != k.shape[1]
    q, k, v = (t.squeeze(0).transpose(0, 1) for t in (q, k, v))
    offsets, longest = documents.offsets, documents.longest
    out = varlen_attn(q, k, v, offsets, offsets, longest, longest, **options)
    assert isinstance(out, Tensor)
    return out.transpose(0, 1).unsqueeze(0)
