"""The compressed and the selected branch of NSA on a GPU, with gradients, as training has them.

Both directions are operators of their own, opaque to the compiler: the layer stays one graph,
and its projections, gates and norms are compiled around them.

Legend: as in `sparse.py`; the kernels want [B, T, heads, D].
"""

from __future__ import annotations

import torch
from torch import Tensor

from efficientllm.catalog.shape import Sparse

KERNEL = "nsa branches"
"""What the record calls it; what attends within the window is added."""


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
    from efficientllm.models.sparse_rows_kernel import attend_branches

    return attend_branches(q, k, v, (block_k, block_v), block, selected)


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
    dq, d_block_k, d_block_v = means_gradients(
        q, block_k, block_v, compressed, compressed_lse, d_compressed.contiguous(), block
    )
    dk, dv = chosen_gradients(q, k, v, out, lse, d_selected.contiguous(), chosen, block, dq)
    return [dq, dk, dv, d_block_k, d_block_v]


@_backward.register_fake
def _(kept: list[Tensor], d_compressed: Tensor, d_selected: Tensor, block: int) -> list[Tensor]:
    return [torch.empty_like(x) for x in kept[:5]]


def _keep(ctx: object, inputs: tuple[object, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.block, _ = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(*tensors, *output)  # type: ignore[attr-defined]
    ctx.mark_non_differentiable(*output[2:])  # type: ignore[attr-defined]


def _gradients(ctx: object, *grads: Tensor) -> tuple[Tensor | None, ...]:
    kept = list(ctx.saved_tensors)  # type: ignore[attr-defined]
    found = _backward(kept, grads[0], grads[1], ctx.block)  # type: ignore[attr-defined]
    return (*found, None, None)


_forward.register_autograd(_gradients, setup_context=_keep)
