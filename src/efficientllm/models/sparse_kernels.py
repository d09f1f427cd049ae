"""The compressed and the selected branch of NSA on a GPU, with gradients.

What looks, chooses and reads is flash-linear-attention's; the gradients are ours
(`sparse_means_kernel.py` and `sparse_chosen_kernel.py` say why).

Its Python around them inspects arguments, warms caches and tunes, which a compiled layer
cannot trace. So both directions are operators of their own, opaque to the compiler: the
layer stays one graph, and its projections, gates and norms are compiled around them.

Legend: as in `sparse.py`; the kernels want [B, T, heads, D].
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from efficientllm.catalog.shape import Sparse

KERNEL = "fla nsa, split gradients + flex"
"""What the record calls it: gradients are summed in parts, FlexAttention has the window."""

FEWEST = 4
"""Blocks that the kernel can select at least: of fewer, the three that are always read tie."""

INSTALLED = importlib.util.find_spec("fla") is not None

MIN_GROUP = 16
"""Query heads for each key/value head that the kernels need at least, a power of two."""


def obstacle(heads: int, kv_heads: int, sizes: Sparse) -> str:
    """Why the kernels cannot run these sizes; empty where they can."""
    group = heads // kv_heads
    if group < MIN_GROUP or group & (group - 1):
        return (
            f"nsa's kernel needs a power of two of at least {MIN_GROUP} query heads for each"
            f" key/value head; here are {group}"
        )
    uneven = sizes.block & (sizes.block - 1) or sizes.selected & (sizes.selected - 1)
    if uneven or not FEWEST <= sizes.selected <= sizes.block // 2 or sizes.block < MIN_GROUP:
        return (
            f"nsa's kernel needs powers of two: blocks of at least {MIN_GROUP} tokens, of which"
            f" it selects {FEWEST} up to half of a block's tokens; here"
            f" {sizes.selected} blocks of {sizes.block}"
        )
    if not INSTALLED:
        return "nsa's kernels are not installed: pip install 'efficientllm[gpu]'"
    return ""


def sparse_branches(
    q: Tensor, k: Tensor, v: Tensor, block_k: Tensor, block_v: Tensor, sizes: Sparse
) -> tuple[Tensor, Tensor]:
    """Both branches of whole rows: q [B, H, T, D], k, v [B, K, T, D], means [B, K, N, D]."""
    q, k, v, block_k, block_v = (
        x.transpose(1, 2).contiguous() for x in (q, k, v, block_k, block_v)
    )
    found = _forward(q, k, v, block_k, block_v, sizes.block, sizes.selected)
    return found[0].transpose(1, 2), found[1].transpose(1, 2)


@torch.library.custom_op("efficientllm::nsa_forward", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, block_k: Tensor, block_v: Tensor, block: int, selected: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compressed and selected output, their log-sum-exps [B, T, H], and what was selected."""
    from fla.ops.nsa.compression import parallel_nsa_compression_fwd
    from fla.ops.nsa.parallel import parallel_nsa_fwd, parallel_nsa_topk

    scale, length = q.shape[-1] ** -0.5, k.shape[1]
    compressed, compressed_lse = parallel_nsa_compression_fwd(
        q=q, k=block_k, v=block_v, TK=length, block_size=block, scale=scale
    )
    chosen = parallel_nsa_topk(
        q=q,
        k=block_k,
        lse=compressed_lse,
        TK=length,
        block_counts=selected,
        block_size=block,
        scale=scale,
    )
    out, lse = parallel_nsa_fwd(
        q=q,
        k=k,
        v=v,
        block_indices=chosen,
        block_counts=selected,
        block_size=block,
        scale=scale,
    )
    return compressed, out, compressed_lse, lse, chosen


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, block_k: Tensor, block_v: Tensor, block: int, selected: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, length, heads, _ = q.shape
    lse = q.new_empty((batch, length, heads), dtype=torch.float32)
    chosen = q.new_empty((batch, length, k.shape[2], selected), dtype=torch.int32)
    return torch.empty_like(q), torch.empty_like(q), lse, torch.empty_like(lse), chosen


@torch.library.custom_op("efficientllm::nsa_backward", mutates_args=())
def _backward(
    kept: list[Tensor], d_compressed: Tensor, d_selected: Tensor, block: int
) -> list[Tensor]:
    """Gradients of q, k, v and the means, from what the forward pass kept."""
    from efficientllm.models.sparse_chosen_kernel import chosen_gradients
    from efficientllm.models.sparse_means_kernel import means_gradients

    q, k, v, block_k, block_v, compressed, out, compressed_lse, lse, chosen = kept
    dq_compressed, d_block_k, d_block_v = means_gradients(
        q, block_k, block_v, compressed, compressed_lse, d_compressed.contiguous(), block
    )
    dq, dk, dv = chosen_gradients(q, k, v, out, lse, d_selected.contiguous(), chosen, block)
    return [dq + dq_compressed, dk, dv, d_block_k, d_block_v]


@_backward.register_fake
def _(kept: list[Tensor], d_compressed: Tensor, d_selected: Tensor, block: int) -> list[Tensor]:
    return [torch.empty_like(x) for x in kept[:5]]


def _keep(ctx: object, inputs: tuple[object, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.block, _ = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(*tensors, *output)  # type: ignore[attr-defined]


def _gradients(ctx: object, *grads: Tensor) -> tuple[Tensor | None, ...]:
    kept = list(ctx.saved_tensors)  # type: ignore[attr-defined]
    found = _backward(kept, grads[0], grads[1], ctx.block)  # type: ignore[attr-defined]
    return (*found, None, None)


_forward.register_autograd(_gradients, setup_context=_keep)
