"""Native sparse attention of whole rows without gradients, as prefill has it.

Legend: as in `sparse.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from efficientllm.catalog.shape import Sparse
from efficientllm.models.attend_cached import ROOM
from efficientllm.models.sparse_cached import CHOSEN_SPLIT, sparse_decoding

KERNEL = "nsa rows + flex"
"""What the record calls it, with FlexAttention for the window."""

TOGETHER = 64
"""Rows that one program multiplies with means: heads of a group times queries."""

MEANS = 64
"""Means that a program looks at in one go."""


def rows_fit(
    device: torch.device, dtype: torch.dtype, group: int, size: int, sizes: Sparse
) -> bool:
    """Whether the kernels take G, D and the branches' sizes: where decoding's do, nearly.

    Shared memory is counted as a consumer's card takes it; cards of a data centre, which have
    twice as much, may take half as much again.
    """
    room = 2 * (2 * MEANS * size + max(TOGETHER, group) * (size + MEANS))
    small = group & (group - 1) == 0 and room <= ROOM
    return small and sparse_decoding(device, dtype, group, size, sizes) == CHOSEN_SPLIT


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
