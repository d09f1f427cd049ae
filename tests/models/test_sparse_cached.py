"""Native sparse attention of one new token by the kernels, against every score written out."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from efficientllm.catalog.shape import Sparse
from efficientllm.models import attend_cached, sparse_cached
from efficientllm.models.sparse_cached import (
    CHOSEN,
    CHOSEN_SPLIT,
    SparseCache,
    attend_sparse_cache,
    attend_sparse_products,
    sparse_decoding,
)
from efficientllm.models.sparse_reference import means_of
from tests.models.kernels import agree, drawn, with_triton

USUAL = Sparse(block=64, selected=16, window=512)


class Step(NamedTuple):
    """One new token, and a cache that was filled before it."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor
    cache: SparseCache

    def by_kernels(self, cache: SparseCache, slot: int, sizes: Sparse) -> Tensor:
        at = torch.tensor([slot], device=self.q.device)
        return attend_sparse_cache(self.q, self.k, self.v, self.gates, cache, at, sizes)

    def exact(self, cache: SparseCache, slot: int, sizes: Sparse) -> Tensor:
        """By products in float32."""
        at, given = torch.tensor([slot], device=self.q.device), (x.float() for x in self[:4])
        return attend_sparse_products(*given, cache, at, sizes)


def step(heads: int, kv_heads: int, slots: int, slot: int, sizes: Sparse, size: int = 16) -> Step:
    """Two rows; keys and values of the new token are parts of differently wide products."""
    keys, values = (drawn(2, kv_heads, slots, size, seed=seed) for seed in (0, 1))
    cache = SparseCache(keys, values, *means_of(keys, values, sizes))
    cache.block_k[:, :, slot // sizes.block :] = cache.block_v[:, :, slot // sizes.block :] = 0
    k = drawn(2, 1, kv_heads, 3 * size, seed=2)[..., :size].transpose(1, 2)
    v = drawn(2, 1, 2 * kv_heads, size, seed=5)[:, :, kv_heads:].transpose(1, 2)
    gates = drawn(2, 1, 4 * heads, seed=4)[..., : 3 * heads]
    # Large queries: blocks are looked at so unlike that rounding chooses no other ones.
    return Step(4 * drawn(2, heads, 1, size, seed=3), k, v, gates, cache)


@pytest.fixture(params=[264, 8], ids=["a tile a program", "several tiles a program"])
def by_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels run wherever Triton is, in many parts of little, as on a card of few programs."""
    from efficientllm.models import sparse_split_kernel

    monkeypatch.setattr(attend_cached, "PROGRAMS", request.param)
    monkeypatch.setattr(sparse_split_kernel, "PROGRAMS", request.param)
    monkeypatch.setattr(attend_cached, "LEAST_CHUNK", 4)
    monkeypatch.setattr(sparse_split_kernel, "MEANS", 16)
    monkeypatch.setattr(sparse_cached, "sparse_decoding", lambda *_: CHOSEN_SPLIT)


@with_triton
@pytest.mark.usefixtures("by_kernel")
@pytest.mark.parametrize(
    ("heads", "kv_heads", "sizes", "slots"),
    [
        (6, 2, Sparse(block=16, selected=6, window=72), (15, 255, 298)),
        (16, 1, Sparse(block=16, selected=4, window=32), (0, 298)),
        (2, 1, Sparse(block=32, selected=16, window=7), (150,)),
        (2, 2, Sparse(block=16, selected=1, window=512), (298,)),
    ],
)
def test_the_kernels_give_what_products_give(
    heads: int, kv_heads: int, sizes: Sparse, slots: tuple[int, ...]
) -> None:
    """299 slots: the last block hangs over the end."""
    for slot in slots:
        given = step(heads, kv_heads, 299, slot, sizes)
        cache = SparseCache(*(x.clone() for x in given.cache))
        found = given.by_kernels(cache, slot, sizes)
        expected = SparseCache(*(x.float() for x in given.cache))
        agree(found, given.exact(expected, slot, sizes))
        whole = (slot + 1) // sizes.block
        assert torch.equal(cache.k.float(), expected.k)
        assert torch.equal(cache.v.float(), expected.v)
        for mean, wanted in zip(cache[2:], expected[2:], strict=True):
            torch.testing.assert_close(
                mean[:, :, :whole].float(), wanted[:, :, :whole], rtol=0.01, atol=1e-3
            )


@with_triton
@pytest.mark.usefixtures("by_kernel")
def test_nothing_but_means_chosen_blocks_and_the_window_is_read() -> None:
    """All three that are selected are those that always are, so the rest may be anything."""
    sizes, slot = Sparse(block=16, selected=3, window=24), 150
    given = step(16, 1, 299, slot, sizes)
    read = {*range(16), *range(128, 160), *range(slot - 23, slot + 1)}
    unread = [i for i in range(299) if i not in read]
    spoiled = SparseCache(*(x.clone() for x in given.cache))
    spoiled.k[:, :, unread] = spoiled.v[:, :, unread] = float("nan")
    spoiled.block_k[:, :, 9:] = spoiled.block_v[:, :, 9:] = float("nan")
    found = given.by_kernels(spoiled, slot, sizes)
    exact = SparseCache(*(x.float() for x in given.cache))
    agree(found, given.exact(exact, slot, sizes))


def test_sizes_that_the_kernels_do_not_take_go_by_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attend_cached, "INSTALLED", True)
    gpu, half = torch.device("cuda"), torch.bfloat16
    assert sparse_decoding(gpu, half, 16, 64, USUAL) == CHOSEN_SPLIT
    assert sparse_decoding(gpu, half, 16, 128, USUAL) == CHOSEN_SPLIT
    assert sparse_decoding(gpu, torch.float32, 16, 64, USUAL) == CHOSEN
    assert sparse_decoding(torch.device("cpu"), half, 16, 64, USUAL) == CHOSEN
    for block, way in ((8, CHOSEN), (48, CHOSEN), (128, CHOSEN_SPLIT), (256, CHOSEN)):
        sizes = USUAL.model_copy(update={"block": block})
        assert sparse_decoding(gpu, half, 16, 128, sizes) == way, block
    assert sparse_decoding(gpu, half, 16, 80, USUAL) == CHOSEN
    monkeypatch.setattr(attend_cached, "INSTALLED", False)
    assert sparse_decoding(gpu, half, 16, 64, USUAL) == CHOSEN


def test_the_operator_says_the_shape_of_what_it_gives() -> None:
    with FakeTensorMode():
        q = torch.empty(2, 1, 16, 64, dtype=torch.bfloat16)
        new, cache, means = (torch.empty(2, 1, n, 64) for n in (1, 640, 10))
        gates, slot = torch.empty(2, 48), torch.zeros(1, dtype=torch.long)
        out = sparse_cached._attend(
            q, new[:, :, 0], new[:, :, 0], gates, cache, cache, means, means, slot, 64, 16, 512
        )
    assert out.shape == q.shape
    assert out.dtype == q.dtype
