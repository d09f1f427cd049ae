"""Native sparse attention of whole rows by the kernels, against every score written out."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from efficientllm.catalog.shape import Sparse
from efficientllm.models import sparse_rows
from efficientllm.models.decoding import prefill_of
from efficientllm.models.position import Positions
from efficientllm.models.sparse import SparseAttention
from efficientllm.models.sparse_cached import gated
from efficientllm.models.sparse_reference import means_of, sparse_reference
from efficientllm.models.sparse_rows import attend_sparse_rows, rows_fit
from tests import tiny
from tests.models.kernels import DEVICE, DTYPE, GPU, agree, drawn, with_triton

USUAL = Sparse(block=64, selected=16, window=512)


class Rows(NamedTuple):
    """Inputs of a prefill, as parts of differently wide products, amid what is not to be read."""

    q: Tensor
    k: Tensor
    v: Tensor
    block_k: Tensor
    block_v: Tensor
    near: Tensor
    gates: Tensor

    def by_kernels(self, sizes: Sparse) -> Tensor:
        means = self.block_k, self.block_v
        return attend_sparse_rows(self.q, self.k, self.v, means, self.near, self.gates, sizes)

    def exact(self, sizes: Sparse) -> Tensor:
        """By products in float32 of the same numbers; the window's output is what it is."""
        q, k, v, block_k, block_v, near, gates = (x.float() for x in self)
        return gated(gates, (*sparse_reference(q, k, v, (block_k, block_v), sizes), near))


def amid(x: Tensor, *more: int) -> Tensor:
    """The same numbers as a part of something larger, by so much in each dimension, of NaN."""
    larger = [n + extra for n, extra in zip(x.shape, more, strict=True)]
    around = torch.full(larger, float("nan"), device=x.device, dtype=x.dtype)
    part = around[
        tuple(slice(extra // 2, extra // 2 + n) for n, extra in zip(x.shape, more, strict=True))
    ]
    return part.copy_(x)


def drawn_rows(
    batch: int,
    heads: int,
    kv_heads: int,
    length: int,
    sizes: Sparse,
    size: int = 16,
    sharp: int = 4,
) -> Rows:
    """Large queries look at blocks so unlike that rounding seldom chooses another one."""
    q = sharp * drawn(batch, length, heads, size, seed=5)
    k, v = (drawn(batch, kv_heads, length, size, seed=seed) for seed in (2, 3))
    near, gates = drawn(batch, heads, length, size, seed=1), drawn(batch, length, 3 * heads, seed=4)
    block_k, block_v = means_of(k, v, sizes)
    return Rows(
        amid(q, 2, 2, 2, 8).transpose(1, 2),
        amid(k, 2, 2, 2, 16),
        amid(v.transpose(1, 2), 2, 2, 4, 32).transpose(1, 2),
        amid(block_k, 0, 2, 2, 0),
        amid(block_v, 2, 0, 4, 16),
        amid(near.transpose(1, 2), 2, 4, 2, 16).transpose(1, 2),
        amid(gates, 2, 2, heads),
    )


ON_CARD = [
    (2, 32, 2, 2405, Sparse(block=16, selected=8, window=32), 700, 64),
    (1, 128, 1, 300, Sparse(block=16, selected=4, window=8), 100, 128),
    (1, 16, 1, 6000, Sparse(block=64, selected=16, window=512), 5000, 128),
]
INTERPRETED = [
    (1, 16, 1, 85, Sparse(block=16, selected=4, window=32), 1000, 16),
    (2, 8, 2, 21, Sparse(block=4, selected=4, window=32), 16, 16),
    (1, 32, 2, 26, Sparse(block=8, selected=1, window=8), 7, 16),
    (1, 128, 1, 20, Sparse(block=4, selected=16, window=8), 3, 16),
    (1, 2, 2, 15, Sparse(block=16, selected=4, window=8), 1000, 16),
    (1, 14, 2, 21, Sparse(block=4, selected=3, window=8), 1000, 16),
]


@with_triton
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "length", "sizes", "at_once", "size"),
    ON_CARD if GPU else INTERPRETED,
)
def test_the_kernels_attend_as_the_reference(
    batch: int,
    heads: int,
    kv_heads: int,
    length: int,
    sizes: Sparse,
    at_once: int,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With all queries at once and with some at a time; more blocks than one go looks at."""
    from efficientllm.models import sparse_look_kernel

    if not GPU:
        monkeypatch.setattr(sparse_look_kernel, "MEANS", 4)
    bytes_each = 4 * batch * kv_heads * -(-length // sizes.block)
    monkeypatch.setattr(sparse_look_kernel, "SHARES_BYTES", bytes_each * at_once)
    rows = drawn_rows(batch, heads, kv_heads, length, sizes, size)
    agree(rows.by_kernels(sizes), rows.exact(sizes))


@with_triton
def test_a_block_that_nobody_looks_at_is_read_all_the_same_where_there_is_room() -> None:
    """Its mean is so far away that its share is zero; one of its tokens is what is looked for."""
    sizes = Sparse(block=16, selected=5, window=8)
    rows = drawn_rows(1, 2, 1, 80, sizes)
    rows.q.zero_()[..., 0] = 800.0
    rows.k.zero_()[:, :, 16:32, 0] = -3.0
    rows.k[:, :, 20, 0] = 1.0
    block_k, block_v = means_of(rows.k, rows.v, sizes)
    alone = rows._replace(block_k=block_k, block_v=block_v)
    exact = alone.exact(sizes)
    agree(alone.by_kernels(sizes), exact)
    fewer = Sparse(block=16, selected=4, window=8)
    assert (alone.exact(fewer) - exact)[:, :, 79].norm() > 0.1 * exact[:, :, 79].norm()


@with_triton
def test_numbers_that_do_not_lie_side_by_side_are_refused() -> None:
    rows = drawn_rows(1, 2, 1, 17, USUAL)
    apart = rows._replace(k=rows.k.repeat_interleave(2, dim=-1)[..., ::2])
    with pytest.raises(AssertionError, match="side by side"):
        apart.by_kernels(USUAL)


@with_triton
def test_the_operator_is_what_its_fake_says() -> None:
    sizes = Sparse(block=16 if GPU else 4, selected=2, window=8)
    rows = drawn_rows(1, 4, 1, sizes.block + 2, sizes)
    given = (*rows, sizes.block, sizes.selected)
    torch.library.opcheck(sparse_rows._attend, given)
    for x in (rows.by_kernels(sizes), sparse_rows._attend(*given)):
        assert x.transpose(1, 2).is_contiguous(), "as the product after it wants it"


@with_triton
def test_a_prefill_is_put_together_at_once_and_a_training_in_branches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes, asked = Sparse(block=16, selected=2, window=32), []
    layer = SparseAttention(48, 4, 2, 16, sizes, bias=True, qk_norm=False, eps=1e-6)
    layer.to(DEVICE, DTYPE).requires_grad_(False)
    x = drawn(1, 37, 48, seed=0)
    positions = Positions()
    caches = [layer.new_cache(1, 64, DEVICE, DTYPE) for _ in range(2)]
    plain = layer(x, positions, caches[0])

    def told(*arguments: object) -> Tensor:
        asked.append(len(arguments))
        return attend_sparse_rows(*arguments)  # type: ignore[arg-type]

    def fit(device: object, dtype: object, group: int, size: int, _: object) -> bool:
        return (group, size) == (2, 16)

    monkeypatch.setattr("efficientllm.models.sparse.rows_fit", fit)
    monkeypatch.setattr("efficientllm.models.sparse.attend_sparse_rows", told)
    found = layer(x, positions, caches[1])
    assert len(asked) == 1
    agree(found, plain)
    for one, other in zip(*caches, strict=True):
        assert torch.equal(one, other)
    agree(layer(x, positions), plain)
    assert len(asked) == 1, "without a cache gradients may be wanted"


@with_triton
def test_shares_of_all_pairs_stay_within_their_room(monkeypatch: pytest.MonkeyPatch) -> None:
    from efficientllm.models import sparse_look_kernel

    sizes, held = Sparse(block=16, selected=2, window=8), []
    rows = drawn_rows(2, 4, 2, 70, sizes)
    looks = sparse_look_kernel.looks
    monkeypatch.setattr(sparse_look_kernel, "SHARES_BYTES", 4 * 4 * 5 * 32)
    means = rows.block_k, rows.block_v
    for first, last, shares in looks(rows.q, means, torch.empty_like(rows.q), None, sizes.block):
        held.append((first, last))
        assert shares.numel() * 4 <= sparse_look_kernel.SHARES_BYTES
    assert held == [(0, 32), (32, 64), (64, 70)]


def test_the_kernels_are_for_half_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, half = torch.device("cuda"), torch.bfloat16
    monkeypatch.setattr(sparse_rows, "INSTALLED", True)
    assert rows_fit(gpu, half, 16, 64, USUAL)
    assert rows_fit(gpu, half, 16, 128, USUAL)
    assert rows_fit(gpu, half, 4, 128, USUAL)
    assert rows_fit(gpu, half, 12, 64, USUAL)
    for device, dtype, group, size, sizes in (
        (torch.device("cpu"), half, 16, 64, USUAL),
        (gpu, torch.float32, 16, 64, USUAL),
        (gpu, half, 16, 96, USUAL),
        (gpu, half, 16, 256, USUAL),
        (gpu, half, 256, 128, USUAL),
        (gpu, half, 16, 64, Sparse(block=48, selected=16, window=512)),
        (gpu, half, 16, 64, Sparse(block=8, selected=4, window=512)),
    ):
        assert not rows_fit(device, dtype, group, size, sizes), (device, dtype, group, size, sizes)


def test_the_record_names_what_attends_to_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_rows, "INSTALLED", True)
    gpu, half = torch.device("cuda"), torch.bfloat16
    shape = tiny.shape(heads=16, kv_heads=1, head_dim=64, sparse=USUAL)
    assert prefill_of(shape, gpu, half, "nsa branches + flex") == "nsa rows + flex"
    assert prefill_of(shape, gpu, torch.float32, "masked reference") == "masked reference"
    assert prefill_of(tiny.shape(), gpu, half, "cudnn") == "cudnn"
    three = tiny.shape(heads=24, kv_heads=3, head_dim=64, sparse=USUAL)
    assert prefill_of(three, gpu, half, "") == "nsa rows + flex", "groups of 8, not of 24"
    own = shape.model_copy(update={"custom": "Mine"})
    assert prefill_of(own, gpu, half, "Mine") == "Mine"
