"""FlashAttention-4's place in our decoder, with a stand-in for the package.

Its kernels run on a Hopper GPU only; `benchmarks/gradients.py` compares those with the formula.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from efficientllm import assembly
from efficientllm.catalog.shape import Latent, Shape, Sparse
from efficientllm.device import Device
from efficientllm.models import attend, flash4, sparse_rows
from efficientllm.models.decoding import prefill_of
from efficientllm.models.position import Positions
from efficientllm.record import Unsupported
from efficientllm.techniques.build import Build
from tests import tiny

CPU = torch.device("cpu")
HOPPER = torch.device("cuda", 0)
BF16 = torch.bfloat16


def plain(q: Tensor, k: Tensor, v: Tensor, left: int | None) -> Tensor:
    """What the package computes: [B, T, heads, size] in and out, `left` keys before one's own."""
    window = None if left is None else left + 1
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return attend.attend_masked(q, k, v, Positions(), window).transpose(1, 2)


class Package:
    """The two functions that are called, and what they were told."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def _flash_attn_fwd(self, q: Tensor, k: Tensor, v: Tensor, **told: Any) -> tuple[Any, ...]:
        self.calls.append(told)
        assert told["causal"]
        assert told["return_lse"]
        out = plain(q, k, v, told["window_size_left"]).contiguous()
        lse = torch.zeros(q.shape[0], q.shape[2], q.shape[1])
        return out, lse, None, None, None  # more than torch's own hook unpacks

    def _flash_attn_bwd(
        self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, d_out: Tensor, lse: Tensor, **told: Any
    ) -> tuple[Tensor, ...]:
        self.calls.append(told)
        for name, grad in zip("qkv", gradients(q, k, v, out, d_out, told), strict=True):
            told[f"d{name}"].copy_(grad)
        return ()


def gradients(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, d_out: Tensor, told: dict[str, Any]
) -> list[Tensor]:
    """Of attention, written out: an operator's inside is below autograd."""
    groups, scale = q.shape[2] // k.shape[2], q.shape[3] ** -0.5
    q, k, v, out, d_out = (x.transpose(1, 2) for x in (q, k, v, out, d_out))
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    at = torch.arange(q.shape[2])
    back, left = at[:, None] - at, told["window_size_left"]
    seen = (back >= 0) & (back <= (len(at) if left is None else left))
    share = (q @ k.mT * scale).masked_fill(~seen, float("-inf")).softmax(-1)
    d_score = share * (d_out @ v.mT - (d_out * out).sum(-1, keepdim=True)) * scale
    every = (d_score @ k, d_score.mT @ q, share.mT @ d_out)
    shared = [x.unflatten(1, (-1, groups)).sum(2) for x in every[1:]]
    return [x.transpose(1, 2) for x in (every[0], *shared)]


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """The package, installed on a Hopper GPU; nothing is pinned afterwards."""
    stand_in = Package()
    names = ("flash_attn", "flash_attn.cute", "flash_attn.cute.interface")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name in ("_flash_attn_fwd", "_flash_attn_bwd"):
        monkeypatch.setattr(sys.modules[names[-1]], name, getattr(stand_in, name), raising=False)
    monkeypatch.setattr(metadata, "version", lambda name: "4.0.0b36")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    yield stand_in
    flash4.pin(False)


def rows(kv: int = 2, d: int = 8, dv: int = 8, length: int = 12) -> list[Tensor]:
    """q, k, v as a layer's product gives them: heads lie side by side in a token."""
    made = torch.Generator().manual_seed(0)
    sizes = ((4, d), (kv, d), (kv, dv))
    return [
        torch.randn((2, length, heads, size), generator=made).transpose(1, 2).requires_grad_()
        for heads, size in sizes
    ]


@pytest.mark.parametrize(
    ("sizes", "window"),
    [({}, None), ({"kv": 4}, None), ({"kv": 1}, 5), ({"kv": 4, "d": 12}, None), ({}, 1)],
)
def test_output_and_gradients_are_those_of_plain_attention(
    package: Package, sizes: dict[str, int], window: int | None
) -> None:
    inputs = rows(**sizes)
    want = attend.attend_masked(*inputs, Positions(), window)
    got = flash4.attend_flash4(*inputs, window)
    assert got.shape == want.shape
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(want)
    expected = torch.autograd.grad((want * weight).sum(), inputs)
    found = torch.autograd.grad((got * weight).sum(), inputs)
    torch.testing.assert_close(found, expected)
    left = None if window is None else window - 1
    assert [call["window_size_left"] for call in package.calls] == [left, left]


@pytest.mark.parametrize("window", [None, 3])
def test_the_operators_keep_what_the_compiler_relies_on(
    package: Package, window: int | None
) -> None:
    q, k, v = (x.detach().transpose(1, 2).requires_grad_() for x in rows(d=16))
    torch.library.opcheck(flash4._forward, (q, k, v, -1 if window is None else window - 1))


def test_autocast_reaches_it(package: Package) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert flash4.attend_flash4(*rows()).dtype == torch.bfloat16


def test_whole_rows_go_there_when_pinned_and_nothing_else_does(package: Package) -> None:
    q, k, v = (x.detach() for x in rows())
    attend.attend(q, k, v)
    assert not package.calls
    flash4.pin(True)
    written_out = attend.attend_masked(q, k, v, Positions(), None)
    torch.testing.assert_close(attend.attend(q, k, v), written_out)
    assert len(package.calls) == 1
    attend.attend(q, k, v, Positions(slopes=torch.ones(4)))
    attend.attend(q, k, v, window=5)
    with attend.scored_only():
        attend.attend(q, k, v)
    assert len(package.calls) == 1


def test_windows_go_there_where_it_is_faster(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash4, "WINDOW_PAYS", 8 * 5)
    flash4.pin(True)
    q, k, v = (x.detach() for x in rows())
    for window in (4, 5, 6):
        want = attend.attend_masked(q, k, v, Positions(), window)
        torch.testing.assert_close(attend.attend(q, k, v, window=window), want)
    assert [call["window_size_left"] for call in package.calls] == [4, 5]


def test_the_record_names_what_attends_within_windows(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_rows, "INSTALLED", True)
    sliding = tiny.shape(head_dim=64, sliding_window=512)
    narrow = tiny.shape(head_dim=64, sliding_window=256)
    sizes = Sparse(block=64, selected=16, window=512)
    sparse = tiny.shape(heads=16, kv_heads=1, head_dim=64, sparse=sizes)
    names = []
    for on in (True, False):
        flash4.pin(on)
        names += [attend.kernel(x, HOPPER, BF16, 4096, "?") for x in (sliding, narrow, sparse)]
        names.append(prefill_of(sparse, HOPPER, BF16, "?"))
    assert names == [
        *("flash4", "flex", "nsa branches + flash4", "nsa rows + flash4"),
        *("flex", "flex", "nsa branches + flex", "nsa rows + flex"),
    ]


SHAPE = tiny.shape(heads=8, kv_heads=2, head_dim=64)
LATENT = Latent(q_rank=0, kv_rank=64, qk_nope_dim=64, qk_rope_dim=32, v_dim=64)


@pytest.mark.parametrize(
    "shape", [SHAPE, tiny.shape(heads=2, kv_heads=2, head_dim=48, latent=LATENT)]
)
def test_it_is_pinned_by_auto_and_by_name_on_hopper(package: Package, shape: Shape) -> None:
    device = Device(HOPPER, graphs=True)
    for wanted in ("auto", "flash4"):
        flash4.pin(False)
        assert attend.pin(wanted, device, BF16, 1000, shape) == "flash4"
        assert flash4.attends(64, None)


def test_another_back_end_unpins_it(package: Package) -> None:
    flash4.pin(True)
    assert attend.pin("math", Device(CPU, graphs=False), BF16, 128, SHAPE) == "cpu"
    assert not flash4.attends(64, None)


@pytest.mark.parametrize(
    ("device", "dtype", "shape", "why"),
    [
        (CPU, BF16, SHAPE, "Hopper"),
        (HOPPER, torch.float32, SHAPE, "in bf16 only, and this is torch.float32"),
        (HOPPER, BF16, tiny.shape(heads=8, kv_heads=2, head_dim=48), "these are 48/48 by 4"),
        (HOPPER, BF16, tiny.shape(heads=6, kv_heads=2, head_dim=64), "these are 64/64 by 3"),
    ],
)
def test_where_it_cannot_run_auto_takes_another_and_asking_says_why(
    package: Package, device: torch.device, dtype: torch.dtype, shape: Shape, why: str
) -> None:
    assert not flash4.chosen("auto", device, dtype, shape)
    with pytest.raises(Unsupported, match=why):
        flash4.chosen("flash4", device, dtype, shape)


def refused(match: str) -> None:
    """`auto` takes another kernel, and asking for this one says why."""
    assert not flash4.chosen("auto", HOPPER, BF16, SHAPE)
    with pytest.raises(Unsupported, match=match):
        flash4.chosen("flash4", HOPPER, BF16, SHAPE)


def test_another_card_is_told(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
        refused("capability 9")
    monkeypatch.setattr(torch.version, "hip", "7.0")  # whose cards have numbers of their own
    refused("NVIDIA")


def test_without_the_package_one_is_told_what_to_install(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    refused(r"pip install 'efficientllm\[flash4\]'")


def test_a_package_that_does_not_load_is_found_out_before_anything_runs(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> ModuleType:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(flash4.importlib, "import_module", broken)
    refused("cannot be imported .OSError: libcudart.so.13")


@pytest.mark.parametrize(("custom", "decoder"), [("Mine", True), ("", False)])
def test_code_that_is_not_ours_cannot_ask_for_it(
    package: Package, monkeypatch: pytest.MonkeyPatch, custom: str, decoder: bool
) -> None:
    monkeypatch.setattr(assembly, "ours", lambda build: decoder)
    shape = SHAPE.model_copy(update={"custom": custom})
    build = Build(torch.nn.Linear(1, 1), shape, HOPPER, weights_random=True)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="own layers only"):
        assembly.pinned(build, "flash4", Device(HOPPER, graphs=True), BF16, 128)
