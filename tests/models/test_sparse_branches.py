"""NSA's branches with gradients: what the kernels give, what they can take, what records say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from efficientllm.catalog.shape import Sparse
from efficientllm.models import sparse_branches as operators
from efficientllm.models import sparse_rows
from efficientllm.models.attend import kernel
from efficientllm.models.sparse_branches import sparse_branches
from efficientllm.models.sparse_reference import means_of, sparse_reference
from efficientllm.models.sparse_rows import obstacle
from efficientllm.record import Unsupported
from tests import tiny
from tests.models.kernels import GPU, agree, drawn, with_triton

USUAL = Sparse(block=64, selected=16, window=512)

ON_CARD = [
    (2, 32, 2, 405, Sparse(block=16, selected=8, window=32), 100, 64),
    (1, 16, 1, 2100, Sparse(block=64, selected=8, window=512), 700, 128),
    (1, 14, 2, 300, Sparse(block=16, selected=4, window=8), 1000, 64),
]
INTERPRETED = [
    (1, 16, 1, 28, Sparse(block=8, selected=2, window=8), 1000, 16),
    (2, 16, 2, 19, Sparse(block=4, selected=3, window=8), 8, 16),  # some queries at a time
    (1, 14, 2, 24, Sparse(block=4, selected=4, window=8), 7, 16),  # groups of seven
    (1, 2, 1, 3, Sparse(block=4, selected=4, window=8), 1000, 16),  # not one whole block
]


@with_triton
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "length", "sizes", "at_once", "size"),
    ON_CARD if GPU else INTERPRETED,
)
def test_both_branches_and_their_gradients_are_the_references(
    batch: int,
    heads: int,
    kv_heads: int,
    length: int,
    sizes: Sparse,
    at_once: int,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Large queries look at blocks so unlike that rounding seldom chooses another one.

    The reference has the means as the kernels get them: rounding those would.
    """
    from efficientllm.models import sparse_look_kernel

    bytes_each = 4 * batch * kv_heads * -(-length // sizes.block)
    monkeypatch.setattr(sparse_look_kernel, "SHARES_BYTES", bytes_each * at_once)
    made = [
        drawn(batch, n, length, size, seed=i) for i, n in enumerate((heads, kv_heads, kv_heads))
    ]
    leaves = [x.mul(4 if i == 0 else 1).requires_grad_() for i, x in enumerate(made)]
    exact = [x.detach().float().requires_grad_() for x in leaves]
    down = [drawn(batch, heads, length, size, seed=seed) for seed in (5, 6)]

    def attended(q: Tensor, k: Tensor, v: Tensor, by_kernels: bool) -> tuple[Tensor, ...]:
        means = means_of(k, v, sizes)
        if by_kernels:
            return sparse_branches(q, k, v, *means, sizes)
        rounded = (x.float() for x in means_of(*leaves[1:], sizes))
        alike = [x + (y - x).detach() for x, y in zip(means, rounded, strict=True)]
        return sparse_reference(q, k, v, (alike[0], alike[1]), sizes)

    found, right = attended(*leaves, True), attended(*exact, False)
    for one, other in zip(found, right, strict=True):
        assert one.shape == other.shape
        if other.any():
            agree(one, other)
        else:
            assert not one.any(), "there is no whole block to look at"
    gradients = torch.autograd.grad(found, leaves, down)
    expected = torch.autograd.grad(right, exact, [x.float() for x in down])
    for one, other in zip(gradients, expected, strict=True):
        agree(one, other)


@with_triton
def test_the_operators_are_what_their_fakes_say() -> None:
    block = 16 if GPU else 2
    inputs = [drawn(1, 3 * block, n, 16, seed=0) for n in (2, 1, 1)] + [
        drawn(1, 3, 1, 16, seed=1) for _ in range(2)
    ]
    checks = (
        *("test_schema", "test_faketensor", "test_autograd_registration"),
        *("test_aot_dispatch_static", "test_aot_dispatch_dynamic"),
    )
    given = [x.requires_grad_() for x in inputs]
    torch.library.opcheck(operators._forward, (*given, block, 2), test_utils=checks)
    plain = [x.detach() for x in inputs]
    kept = [*plain, *operators._forward(*plain, block, 2)]
    down = torch.ones_like(plain[0])
    torch.library.opcheck(operators._backward, (kept, down, down, block), test_utils=checks)


@with_triton
def test_what_does_not_lie_as_the_kernels_read_is_refused() -> None:
    q, k, means = (
        drawn(1, 12, 2, 16, seed=0),
        drawn(1, 12, 1, 16, seed=1),
        drawn(1, 3, 1, 16, seed=2),
    )
    with pytest.raises(AssertionError):
        operators._forward(q.transpose(1, 2).contiguous().transpose(1, 2), k, k, means, means, 4, 2)


def test_the_operators_say_the_shapes_of_what_they_give() -> None:
    """As a compiler asks them, on no device at all: 200 tokens are three blocks and a part."""
    with FakeTensorMode():
        q, k, v = (
            torch.empty(2, heads, 200, 32, dtype=torch.bfloat16, requires_grad=True)
            for heads in (16, 1, 1)
        )
        branches = sparse_branches(q, k, v, *means_of(k, v, USUAL), USUAL)
        assert [b.shape for b in branches] == [q.shape, q.shape]
        sum(b.sum() for b in branches).backward()
        for x in (q, k, v):
            assert x.grad is not None
            assert (x.grad.shape, x.grad.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize(
    ("group", "size", "sizes", "why"),
    [
        (16, 96, USUAL, "heads of a power of two of at least 16; here are 96"),
        (16, 8, USUAL, "heads of a power of two of at least 16; here are 8"),
        (16, 64, Sparse(block=48, selected=16, window=512), "at least 16 tokens; here are 48"),
        (16, 64, Sparse(block=8, selected=4, window=512), "at least 16 tokens; here are 8"),
        (256, 128, USUAL, "no room for 256 query heads of 128"),
        (256, 64, Sparse(block=128, selected=4, window=512), "no room for 256"),  # to read
        (256, 128, Sparse(block=16, selected=4, window=512), "no room for 256"),  # to look
        (16, 256, USUAL, "no room for 16 query heads of 256"),
        (16, 128, Sparse(block=128, selected=4, window=512), "and blocks of 128"),
    ],
)
def test_sizes_that_the_kernels_cannot_take_are_told(
    group: int, size: int, sizes: Sparse, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_rows, "INSTALLED", True)
    assert why in obstacle(group, size, sizes)


@pytest.mark.parametrize("group", [1, 6, 7, 16, 128])
@pytest.mark.parametrize("size", [64, 128])
def test_the_usual_sizes_are_taken(group: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the controlled backbone, and of the paper's shapes: 14 and 12 heads over 2."""
    monkeypatch.setattr(sparse_rows, "INSTALLED", True)
    assert not obstacle(group, size, USUAL)
    monkeypatch.setattr(sparse_rows, "INSTALLED", False)
    assert "Triton" in obstacle(group, size, USUAL)


def test_the_record_names_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_rows, "INSTALLED", True)
    gpu, cpu, half = torch.device("cuda"), torch.device("cpu"), torch.bfloat16
    shape = tiny.shape(heads=16, kv_heads=1, head_dim=64, sparse=USUAL)
    assert kernel(shape, gpu, half, 4096, "flash") == "nsa branches + flex"
    assert kernel(shape, gpu, torch.float32, 4096, "efficient") == "masked reference + flex"
    assert kernel(shape, cpu, half, 4096, "math") == "masked reference"
    odd = tiny.shape(heads=16, kv_heads=1, head_dim=48, sparse=USUAL)
    assert kernel(odd, gpu, torch.float32, 4096, "efficient") == "masked reference + flex"
    with pytest.raises(Unsupported, match="here are 48"):
        kernel(odd, gpu, half, 4096, "flash")
