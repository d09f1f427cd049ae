"""The operators around fla's kernels: when they run, what they pass on. No kernel runs here."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from efficientllm.catalog.shape import Sparse
from efficientllm.models import sparse_kernels
from efficientllm.models.attend import kernel
from efficientllm.models.sparse_kernels import obstacle, sparse_branches
from efficientllm.models.sparse_reference import chosen_blocks, masked, means_of, sparse_reference
from efficientllm.record import Unsupported
from tests import tiny

SIZES = Sparse(block=4, selected=3, window=6)
SMALL = Sparse(block=4, selected=4, window=6)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "sizes", "why"),
    [
        (14, 1, Sparse(block=64, selected=16, window=512), "here are 14"),
        (12, 2, Sparse(block=64, selected=16, window=512), "here are 6"),
        (16, 1, Sparse(block=32, selected=32, window=512), "32 blocks of 32"),
        (16, 1, Sparse(block=48, selected=16, window=512), "16 blocks of 48"),
        (16, 1, Sparse(block=64, selected=12, window=512), "12 blocks of 64"),
        (16, 1, Sparse(block=64, selected=2, window=512), "selects 4 up to half"),
        (16, 1, Sparse(block=8, selected=4, window=512), "at least 16 tokens"),
    ],
)
def test_sizes_that_the_kernel_cannot_take_are_told(
    heads: int, kv_heads: int, sizes: Sparse, why: str
) -> None:
    assert why in obstacle(heads, kv_heads, sizes)


def test_the_record_names_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_kernels, "INSTALLED", True)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    shape = tiny.shape(heads=16, kv_heads=1, sparse=Sparse(block=64, selected=16, window=512))
    assert kernel(shape, gpu, torch.bfloat16, 4096, "flash") == "fla nsa, split gradients + flex"
    assert kernel(shape, gpu, torch.float32, 4096, "efficient") == "masked reference + flex"
    assert kernel(shape, cpu, torch.bfloat16, 4096, "math") == "masked reference"
    few = tiny.shape(sparse=SIZES)
    assert kernel(few, gpu, torch.float32, 4096, "efficient") == "masked reference + flex"
    with pytest.raises(Unsupported, match="here are 2"):
        kernel(few, gpu, torch.bfloat16, 4096, "flash")


def test_the_operators_say_the_shapes_of_what_they_give() -> None:
    """As a compiler asks them, on no device at all: 200 tokens are three blocks and a part."""
    sizes = Sparse(block=64, selected=16, window=512)
    with FakeTensorMode():
        q, k, v = (
            torch.empty(2, heads, 200, 32, dtype=torch.bfloat16, requires_grad=True)
            for heads in (16, 1, 1)
        )
        branches = sparse_branches(q, k, v, *means_of(k, v, sizes), sizes)
        assert [b.shape for b in branches] == [q.shape, q.shape]
        sum(b.sum() for b in branches).backward()
        for x in (q, k, v):
            assert x.grad is not None
            assert (x.grad.shape, x.grad.dtype) == (x.shape, x.dtype)


def behind(q: Tensor, k: Tensor) -> Tensor:
    """Which whole blocks [T, N] each query sees."""
    now = torch.arange(q.shape[1])[:, None]
    return torch.arange(k.shape[1]) < (now + 1) // SMALL.block


def inside(q: Tensor, chosen: Tensor) -> Tensor:
    """Which tokens [B, K, 1, T, T] each query sees in the blocks `chosen` [B, T, K, S]."""
    key = torch.arange(q.shape[1])
    picked = (chosen.unsqueeze(-1) == key // SMALL.block).any(3).transpose(1, 2)
    return (picked & (key <= key[:, None])).unsqueeze(2)


def grouped(x: Tensor, kv_heads: int) -> Tensor:
    """[B, T, heads, D] -> [B, K, G, T, D]."""
    return x.transpose(1, 2).unflatten(1, (kv_heads, -1))


def flat(x: Tensor) -> Tensor:
    """[B, K, G, T, D] -> [B, T, heads, D]."""
    return x.flatten(1, 2).transpose(1, 2).contiguous()


def forward(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    keys, values = k.transpose(1, 2), v.transpose(1, 2)
    out, _ = masked(grouped(q, k.shape[2]), keys, values, seen)
    return flat(out), q.new_zeros(q.shape[:3]).float()


def backward(q: Tensor, k: Tensor, v: Tensor, do: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
    """Softmax's gradient written out: below an operator there is no autograd to ask."""
    heads, scale = k.shape[2], q.shape[-1] ** -0.5
    keys, values = k.transpose(1, 2), v.transpose(1, 2)
    query, down = grouped(q, heads), grouped(do, heads)
    _, weights = masked(query, keys, values, seen)
    slope = down @ values.unsqueeze(2).transpose(-1, -2)
    slope = weights * (slope - (slope * weights).sum(-1, keepdim=True)) * scale
    dk, dv = slope.transpose(-1, -2) @ query, weights.transpose(-1, -2) @ down
    summed = [x.sum(2, keepdim=True) for x in (dk, dv)]
    return flat(slope @ keys.unsqueeze(2)), *(flat(x) for x in summed)


def topk(q: Tensor, k: Tensor, **_: Any) -> Tensor:
    keys, own = k.transpose(1, 2), torch.arange(q.shape[1])[:, None] // SMALL.block
    _, weights = masked(grouped(q, k.shape[2]), keys, keys, behind(q, k))
    chosen = chosen_blocks(weights.sum(2), own, SMALL)
    return chosen.transpose(1, 2).to(torch.int32).contiguous()


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain attention where the operators look for kernels; all [B, T, heads, D]."""
    kernels = {
        "fla.ops.nsa.compression": {
            "parallel_nsa_compression_fwd": lambda q, k, v, **_: forward(q, k, v, behind(q, k)),
        },
        "efficientllm.models.sparse_chosen_kernel": {
            "chosen_gradients": lambda q, k, v, out, lse, do, chosen, _: backward(
                q, k, v, do, inside(q, chosen)
            ),
        },
        "efficientllm.models.sparse_means_kernel": {
            "means_gradients": lambda q, k, v, out, lse, do, _: backward(q, k, v, do, behind(q, k)),
        },
        "fla.ops.nsa.parallel": {
            "parallel_nsa_fwd": lambda q, k, v, block_indices, **_: forward(
                q, k, v, inside(q, block_indices)
            ),
            "parallel_nsa_topk": topk,
        },
    }
    for package in ("fla", "fla.ops", "fla.ops.nsa"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    for name, functions in kernels.items():
        module = ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("length", [3, 22, 24])
def test_the_operators_pass_layouts_and_gradients_on(length: int) -> None:
    """That the kernels compute what these stand-ins do is for a GPU to show."""
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(2, heads, length, 8, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (4, 2, 2)
    ]
    q, k, v = leaves
    found = sparse_branches(q, k, v, *means_of(k, v, SMALL), SMALL)
    expected = sparse_reference(q, k, v, means_of(k, v, SMALL), SMALL)
    torch.testing.assert_close(found, expected)
    down = [torch.randn(q.shape, generator=generator, dtype=torch.float64) for _ in found]
    gradients = torch.autograd.grad(found, leaves, down)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, leaves, down))
