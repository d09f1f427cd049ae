"""Native sparse attention against its definition, one query at a time."""

from __future__ import annotations

import pytest
import torch

from efficientllm.catalog.shape import Sparse
from efficientllm.cost import attended_pairs, cache_bytes
from efficientllm.models.sparse import SparseAttention, block_means, sparse_reference
from efficientllm.models.sparse_kernels import obstacle
from efficientllm.parameters import parameters
from tests import tiny

SIZES = Sparse(block=4, selected=3, window=6)


def random(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_query(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, t: int, sizes: Sparse
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Both branches of the query heads q [G, D] of one key head at t; and the keys they read."""
    scale = q.shape[1] ** -0.5
    whole, own = (t + 1) // sizes.block, t // sizes.block
    blocks = [slice(i * sizes.block, (i + 1) * sizes.block) for i in range(own + 1)]
    compressed = torch.zeros_like(q)
    share = [0.0] * (own + 1)
    if whole:
        means_k = torch.stack([k[b].mean(0) for b in blocks[:whole]])
        means_v = torch.stack([v[b].mean(0) for b in blocks[:whole]])
        weights = (q @ means_k.T * scale).softmax(-1)
        compressed = weights @ means_v
        share[:whole] = weights.sum(0).tolist()
    always = {0, own, max(0, own - 1)}
    rest = sorted((b for b in range(own) if b not in always), key=lambda b: -share[b])
    picked = [*always, *rest][: max(sizes.selected, 0)]
    where = [j for b in sorted(picked) for j in range(b * sizes.block, (b + 1) * sizes.block)]
    where = [j for j in where if j <= t]
    selected = (q @ k[where].T * scale).softmax(-1) @ v[where]
    return compressed, selected, whole + len(where)


@pytest.mark.parametrize("length", [3, 4, 17, 40])
def test_the_reference_is_its_definition_and_reads_as_many_keys_as_are_counted(length: int) -> None:
    q, k, v = (
        random(1, 4, length, 8),
        random(1, 2, length, 8, seed=1),
        random(1, 2, length, 8, seed=2),
    )
    compressed, selected = sparse_reference(q, k, v, SIZES)
    read = 0
    for head in range(2):
        group = slice(2 * head, 2 * head + 2)
        for t in range(length):
            a, b, keys = one_query(q[0, group, t], k[0, head], v[0, head], t, SIZES)
            # softmax is taken in float32 there
            torch.testing.assert_close(compressed[0, group, t], a, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(selected[0, group, t], b, rtol=1e-4, atol=1e-5)
            read += keys + min(t + 1, SIZES.window)
    shape = tiny.shape(sparse=SIZES)
    assert read == 2 * attended_pairs(shape, length)


def test_when_every_block_is_selected_it_is_plain_attention() -> None:
    q, k, v = random(2, 4, 30, 8), random(2, 1, 30, 8, seed=1), random(2, 1, 30, 8, seed=2)
    _, selected = sparse_reference(q, k, v, Sparse(block=4, selected=16, window=4))
    whole = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(selected, whole, rtol=1e-5, atol=1e-6)


def test_an_unfinished_block_is_padded_with_zeros() -> None:
    x = random(1, 1, 5, 2)
    means = block_means(x, SIZES)
    assert means.shape == (1, 1, 2, 2)
    torch.testing.assert_close(means[0, 0, 0], x[0, 0, :4].mean(0))
    torch.testing.assert_close(means[0, 0, 1], x[0, 0, 4] / 4)


def test_choosing_passes_no_gradient_and_everything_else_does() -> None:
    q, k, v = (
        x.requires_grad_()
        for x in (random(1, 2, 9, 4), random(1, 1, 9, 4, seed=1), random(1, 1, 9, 4, seed=2))
    )

    def summed(*x: torch.Tensor) -> torch.Tensor:
        # in float32 inside: too coarse for tighter tolerances
        return torch.cat(sparse_reference(*x, Sparse(block=2, selected=2, window=2)))

    assert torch.autograd.gradcheck(summed, (q, k, v), eps=1e-3, atol=2e-3, rtol=1e-2)


def layer() -> SparseAttention:
    made = SparseAttention(64, 4, 2, 16, SIZES, bias=True, qk_norm=False, eps=1e-6)
    tiny.randomize(made)
    return made


def test_its_weights_and_its_cache_are_counted() -> None:
    shape = tiny.shape(sparse=SIZES)
    model = tiny.decoder(shape)
    assert parameters(shape).total == sum(p.numel() for p in model.parameters())
    cache = layer().new_cache(3, 64, torch.device("cpu"), torch.float32)
    held = sum(t.numel() * t.element_size() for t in cache) * shape.layers
    assert held == 3 * cache_bytes(shape, 64, element_bytes=4)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "sizes", "why"),
    [
        (14, 1, Sparse(block=64, selected=16, window=512), "here are 14"),
        (12, 2, Sparse(block=64, selected=16, window=512), "here are 6"),
        (16, 1, Sparse(block=32, selected=32, window=512), "32 blocks of 32"),
    ],
)
def test_sizes_that_the_kernel_cannot_take_are_told(
    heads: int, kv_heads: int, sizes: Sparse, why: str
) -> None:
    assert why in obstacle(heads, kv_heads, sizes)
