"""Native sparse attention of whole rows without gradients, as prefill has it.

And what its kernels, and those with gradients (`sparse_branches.py`), can take.

Legend: as in `sparse.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from efficientllm.catalog.shape import Sparse
from efficientllm.device import in_half_on_gpu
from efficientllm.models.attend_cached import INSTALLED, ROOM, rows_of

KERNEL = "nsa rows"
"""What the record calls it; what attends within the window is added."""

TOGETHER = 64
"""Rows that one program multiplies with means: heads of a group times queries."""

LEAST = 16
"""What tensor cores multiply at least: of a block's tokens, and of a head's numbers."""

MEANS = 64
"""Means that a program looks at in one go."""


def obstacle(group: int, size: int, sizes: Sparse) -> str:
    """Why the kernels of whole rows cannot take G, D and the branches' sizes; empty if they can."""
    if not INSTALLED:
        return "nsa's kernels need Triton: install torch for GPUs"
    if size < LEAST or size & (size - 1):
        return f"nsa's kernels need heads of a power of two of at least {LEAST}; here are {size}"
    block = sizes.block
    if block < LEAST or block & (block - 1):
        return (
            f"nsa's kernels need blocks of a power of two of at least {LEAST} tokens; here are"
            f" {block}"
        )
    heads = rows_of(group)
    looked = 2 * MEANS * size + max(TOGETHER, heads) * (size + MEANS)
    read = 2 * block * size + heads * (size + block)
    summed = 2 * block * size + TOGETHER * (2 * size + block)
    if 2 * max(looked, read, summed) > ROOM:
        return (
            f"nsa's kernels have no room for {group} query heads of {size} for each key/value head"
            f" and blocks of {block}"
        )
    return ""


def rows_fit(
    device: torch.device, dtype: torch.dtype, group: int, size: int, sizes: Sparse
) -> bool:
    """Whether the kernels take whole rows here."""
    return in_half_on_gpu(device, dtype) and not obstacle(group, size, sizes)


def attend_sparse_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    means: tuple[Tensor, Tensor],
    near: Tensor,
    gates: Tensor,
    sizes: Sparse,
) -> Tensor:
    """Three branches under their gates, of which `near`, the window's, is already there.

    q and near [B, H, T, D], k and v [B, K, T, D], means [B, K, N, D], gates [B, T, 3 H] before
    their sigmoid -> [B, H, T, D].
    """
    return _attend(q, k, v, *means, near, gates, sizes.block, sizes.selected)


@torch.library.custom_op("efficientllm::attend_sparse_rows", mutates_args=())
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_k: Tensor,
    block_v: Tensor,
    near: Tensor,
    gates: Tensor,
    block: int,
    selected: int,
) -> Tensor:
    """An operator of its own: a compiled layer stays one graph around it."""
    from efficientllm.models.sparse_rows_kernel import attend_rows

    return attend_rows(q, k, v, (block_k, block_v), near, gates, block, selected)


@_attend.register_fake
def _(q: Tensor, *_: object) -> Tensor:
    batch, heads, length, size = q.shape
    return q.new_empty((batch, length, heads, size)).transpose(1, 2)
