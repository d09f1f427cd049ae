"""Which kernel attends in generation, for a prompt and for one new token: by the record's names."""

from __future__ import annotations

import torch

from efficientllm.catalog.shape import Shape
from efficientllm.models import sparse_rows
from efficientllm.models.attend import of_window
from efficientllm.models.attend_cached import decoding
from efficientllm.models.sparse_cached import sparse_decoding


def prefill_of(shape: Shape, device: torch.device, dtype: torch.dtype, whole: str) -> str:
    """What the record calls the attention of a prompt, where `whole` is that of whole rows."""
    if shape.custom or shape.sparse is None:
        return whole
    group = shape.heads // shape.kv_heads
    own = sparse_rows.rows_fit(device, dtype, group, shape.head_dim, shape.sparse)
    if not own:
        return whole
    return f"{sparse_rows.KERNEL} + {of_window(shape.head_dim, shape.sparse.window)}"


def decoding_of(shape: Shape, device: torch.device, dtype: torch.dtype) -> str:
    """What the record calls the attention of one new token; a user's own by its name."""
    if shape.custom:
        return shape.custom
    if shape.sparse is not None:
        group = shape.heads // shape.kv_heads
        return sparse_decoding(device, dtype, group, shape.head_dim, shape.sparse)
    if shape.latent is not None:
        sizes = shape.latent
        rank, rest = sizes.kv_rank, sizes.qk_rope_dim
        return decoding(device, dtype, shape.heads, rank, rank, rest)
    group = shape.heads // shape.kv_heads
    return decoding(device, dtype, group, shape.head_dim, shape.head_dim)
