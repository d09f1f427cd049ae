"""Native sparse attention of whole rows by the kernels, against every score written out."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from efficientllm.catalog.shape import Sparse
from efficientllm.models import attend_cached, sparse_rows
from efficientllm.models.decoding import prefill_of
from efficientllm.models.position import Positions
from efficientllm.models.sparse import SparseAttention
from efficientllm.models.sparse_cached import gated
from efficientllm.models.sparse_reference import block_means, sparse_reference
from efficientllm.models.sparse_rows import attend_sparse_rows, rows_fit
from tests import tiny
from tests.models.kernels import DEVICE, DTYPE, GPU, agree, drawn, with_triton

USUAL = Sparse(block=64, selected=16, window=512)


class Rows(NamedTuple):
    """Inputs of a prefill, as parts of differently wide products."""

    q: Tensor
    k: Tensor
    v: Tensor
    near: Tensor
    gates: Tensor

    def by_kernels(self, sizes: Sparse) -> Tensor:
        means = block_means(self.k, sizes), block_means(self.v, sizes)
        return attend_sparse_rows(*self[:3], means, *self[3:], sizes)

    def exact(self, sizes: Sparse) -> Tensor:
        """By products in float32; the window's output is what it is."""
        q, k, v, near, gates = (x.float() for x in self)
        return gated(gates, (*sparse_reference(q, k, v, sizes), near))


def drawn_rows(batch: int, heads: int, kv_heads: int, length: int, size: int = 16) -> Rows:
    k, v = (drawn(batch, length, kv_heads, n * size, seed=n)[..., :size] for n in (2, 3))
    near = drawn(batch, length, heads, size, seed=1).transpose(1, 2)
    gates = drawn(batch, length, 4 * heads, seed=4)[..., : 3 * heads]
    # Large queries: blocks are looked at so unlike that rounding chooses no other ones.
    q = 4 * drawn(batch, heads, length, size, seed=5)
    return Rows(q, k.transpose(1, 2), v.transpose(1, 2), near, gates)


@with_triton
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "length", "sizes", "at_once"),
    [
        (1, 16, 1, 101, Sparse(block=16, selected=4, window=32), 1000),
        (2, 8, 2, 21, Sparse(block=4, selected=4, window=32), 16),
        (1, 32, 2, 40, Sparse(block=8, selected=1, window=8), 7),
        (1, 128, 1, 20, Sparse(block=4, selected=16, window=8), 3),
        (1, 2, 2, 15, Sparse(block=16, selected=4, window=8), 1000),
    ],
)
def test_the_kernels_attend_as_the_reference(
    batch: int,
    heads: int,
    kv_heads: int,
    length: int,
    sizes: Sparse,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With all queries at once and with some at a time; more blocks than one go looks at."""
    from efficientllm.models import sparse_rows_kernel

    if GPU and sizes.block < 16:
        pytest.skip("a card's products are not so small")
    if not GPU:
        monkeypatch.setattr(sparse_rows_kernel, "MEANS", 4)
    bytes_each = 4 * batch * kv_heads * -(-length // sizes.block)
    monkeypatch.setattr(sparse_rows_kernel, "SHARES_BYTES", bytes_each * at_once)
    rows = drawn_rows(batch, heads, kv_heads, length)
    agree(rows.by_kernels(sizes), rows.exact(sizes))


@with_triton
def test_a_prefill_takes_the_kernels_and_a_training_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes, asked = Sparse(block=16, selected=2, window=32), []
    layer = SparseAttention(48, 4, 1, 16, sizes, bias=True, qk_norm=False, eps=1e-6)
    layer.to(DEVICE, DTYPE).requires_grad_(False)
    x = drawn(1, 37, 48, seed=0)
    positions = Positions()
    caches = [layer.new_cache(1, 64, DEVICE, DTYPE) for _ in range(2)]
    plain = layer(x, positions, caches[0])

    def told(*arguments: object) -> Tensor:
        asked.append(len(arguments))
        return attend_sparse_rows(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("efficientllm.models.sparse.rows_fit", lambda *_: True)
    monkeypatch.setattr("efficientllm.models.sparse.attend_sparse_rows", told)
    found = layer(x, positions, caches[1])
    assert len(asked) == 1
    agree(found, plain)
    for one, other in zip(*caches, strict=True):
        assert torch.equal(one, other)
    agree(layer(x, positions), plain)
    assert len(asked) == 1, "without a cache gradients may be wanted"


def test_the_kernels_are_for_half_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, half = torch.device("cuda"), torch.bfloat16
    monkeypatch.setattr(attend_cached, "INSTALLED", True)
    assert rows_fit(gpu, half, 16, 64, USUAL)
    assert rows_fit(gpu, half, 16, 128, USUAL)
    assert rows_fit(gpu, half, 4, 128, USUAL)
    for device, dtype, group, size, sizes in (
        (torch.device("cpu"), half, 16, 64, USUAL),
        (gpu, torch.float32, 16, 64, USUAL),
        (gpu, half, 12, 64, USUAL),
        (gpu, half, 16, 96, USUAL),
        (gpu, half, 16, 256, USUAL),
        (gpu, half, 256, 128, USUAL),
        (gpu, half, 16, 64, Sparse(block=48, selected=16, window=512)),
        (gpu, half, 16, 64, Sparse(block=8, selected=4, window=512)),
    ):
        assert not rows_fit(device, dtype, group, size, sizes), (device, dtype, group, size, sizes)


def test_the_record_names_what_attends_to_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend_cached, "INSTALLED", True)
    gpu, half = torch.device("cuda"), torch.bfloat16
    shape = tiny.shape(heads=16, kv_heads=1, head_dim=64, sparse=USUAL)
    assert prefill_of(shape, gpu, half, "fla nsa + flex") == "nsa rows + flex"
    assert prefill_of(shape, gpu, torch.float32, "masked reference") == "masked reference"
    assert prefill_of(tiny.shape(), gpu, half, "cudnn") == "cudnn"
    own = shape.model_copy(update={"custom": "Mine"})
    assert prefill_of(own, gpu, half, "Mine") == "Mine"


def test_the_operator_says_the_shape_of_what_it_gives() -> None:
    with FakeTensorMode():
        q, k = torch.empty(2, 16, 8, 4), torch.empty(2, 1, 8, 4)
        out = sparse_rows._attend(q, k, k, k, k, q, torch.empty(2, 8, 48), 4, 2)
        assert out.shape == q.shape
        assert out.transpose(1, 2).is_contiguous(), "as the product after it wants it"
