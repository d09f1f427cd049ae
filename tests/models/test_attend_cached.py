"""Decoding over a cache in parts: put together, and by the kernel where there is a GPU."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from efficientllm.models import attend_cached
from efficientllm.models.attend_cached import (
    PRODUCTS,
    SPLIT,
    attend_cache,
    attend_latents,
    attend_products,
    chunk_of,
    decoding,
    tiles,
)
from efficientllm.models.position import Positions
from tests.models import kernels
from tests.models.kernels import with_triton

CUDA = torch.device("cuda")
BF16 = torch.bfloat16


def parts_by_hand(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    slot: Tensor,
    bias: Tensor | None,
    slopes: Tensor | None,
    chunk: int,
    width: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """What the kernel is to give, one query and one part at a time."""
    batch, kv_heads, group, _ = q.shape
    slots, at = k.shape[2], int(slot)
    parts = -(-slots // chunk)
    out = torch.zeros(batch, kv_heads, parts, group, width)
    lse = torch.full((batch, kv_heads, parts, group), -math.inf)
    for part in range(parts):
        seen = [j for j in range(part * chunk, min(slots, (part + 1) * chunk)) if j <= at]
        if not seen:
            continue
        keys = k[:, :, seen]
        scores = torch.einsum("bkgd,bkjd->bkgj", q, keys) * scale
        back = torch.tensor([(at - j) % slots for j in seen])
        if bias is not None:
            scores += bias.view(kv_heads, group, -1)[:, :, back.clamp(max=bias.shape[1] - 1)]
        if slopes is not None:
            scores -= slopes.view(kv_heads, group, 1) * back
        values = keys[..., :width] if v is None else v[:, :, seen]
        out[:, :, part] = torch.einsum("bkgj,bkje->bkge", scores.softmax(-1), values)
        lse[:, :, part] = scores.logsumexp(-1)
    return out, lse


def together_by_hand(out: Tensor, lse: Tensor, dtype: torch.dtype) -> Tensor:
    """Parts weighted by their log-sum-exps."""
    return (out * lse.softmax(dim=2).unsqueeze(-1)).sum(2).to(dtype)


def drawn(*size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small caches go in parts of 4 slots, by the formula above instead of the kernel."""
    monkeypatch.setattr(attend_cached, "decoding", lambda *_: SPLIT)
    monkeypatch.setattr(attend_cached, "LEAST_CHUNK", 4)
    monkeypatch.setattr(attend_cached, "_parts", parts_by_hand)
    monkeypatch.setattr(attend_cached, "_together", together_by_hand)


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("at", [0, 3, 6, 18, 47], ids=lambda at: f"position {at}")
@pytest.mark.parametrize("adds", ["", "bias", "slopes"])
def test_parts_put_together_are_the_whole(at: int, adds: str) -> None:
    """Also where parts are still empty, and in a ring that has gone round."""
    q, k, v = drawn(2, 6, 1, 8, seed=0), drawn(2, 2, 19, 8, seed=1), drawn(2, 2, 19, 8, seed=2)
    positions = Positions(
        slot=torch.tensor([at]),
        bias=drawn(6, 5, seed=3) if adds == "bias" else None,
        slopes=drawn(6, seed=4).abs() if adds == "slopes" else None,
    )
    expected = attend_products(q, k, v, positions, 8**-0.5)
    torch.testing.assert_close(attend_cache(q, k, v, positions), expected)


@pytest.mark.usefixtures("in_parts")
def test_latents_are_keys_and_values_at_once() -> None:
    q, latent = drawn(2, 6, 1, 12, seed=0), drawn(2, 1, 19, 12, seed=1)
    positions = Positions(slot=torch.tensor([9]))
    expected = attend_products(q, latent, latent[..., :8], positions, 0.3)
    torch.testing.assert_close(attend_latents(q, latent, 8, positions, 0.3), expected)


def test_sizes_that_the_kernel_does_not_take_go_by_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attend_cached, "INSTALLED", True)
    assert decoding(CUDA, BF16, 4, 128, 128) == SPLIT
    assert decoding(CUDA, BF16, 16, 512, 512, 64) == SPLIT
    assert decoding(CUDA, torch.float32, 4, 128, 128) == PRODUCTS
    assert decoding(torch.device("cpu"), BF16, 4, 128, 128) == PRODUCTS
    assert decoding(CUDA, BF16, 4, 80, 80) == PRODUCTS
    assert decoding(CUDA, BF16, 128, 512, 512, 64) == PRODUCTS, "too much for one program"
    assert decoding(CUDA, BF16, 16, 1024, 1024, 64) == PRODUCTS, "more than a card's memory"
    monkeypatch.setattr(attend_cached, "INSTALLED", False)
    assert decoding(CUDA, BF16, 4, 128, 128) == PRODUCTS


@pytest.mark.parametrize(
    ("group", "size", "width", "read", "taken"),
    [
        (4, 128, 128, 256, (64, 3)),
        (1, 64, 64, 128, (64, 3)),
        (1, 256, 256, 512, (64, 2)),
        (16, 288, 256, 288, (32, 3)),
        (16, 576, 512, 576, (32, 3)),
        (32, 576, 512, 576, (32, 2)),
        (128, 128, 128, 256, (64, 2)),
        (16, 1088, 1024, 1088, None),
    ],
)
def test_a_program_takes_what_fits_into_the_smallest_cards(
    group: int, size: int, width: int, read: int, taken: tuple[int, int] | None
) -> None:
    assert tiles(group, size, width, read) == taken
    if taken is not None:
        slots, stages = taken
        held = (stages - 1) * slots * read * 2 + max(16, group) * (size + slots) * 2
        assert held <= 99 * 1024


@pytest.mark.parametrize("pairs", [1, 4, 8, 512, 4096])
@pytest.mark.parametrize("slots", [64, 1152, 65_664])
def test_parts_are_enough_to_fill_a_card_and_no_more(pairs: int, slots: int) -> None:
    chunk = chunk_of(pairs, slots)
    parts = -(-slots // chunk)
    assert chunk % attend_cached.LEAST_CHUNK == 0
    assert pairs * parts <= max(attend_cached.PROGRAMS, pairs)
    assert chunk == attend_cached.LEAST_CHUNK or pairs * parts >= attend_cached.PROGRAMS / 2


def test_the_operator_says_the_shapes_of_what_it_gives() -> None:
    with FakeTensorMode():
        q, k = torch.empty(2, 4, 8, 64, dtype=BF16), torch.empty(2, 4, 300, 64, dtype=BF16)
        out, lse = attend_cached._parts(
            q, k, k, torch.zeros(1, dtype=torch.long), None, None, 128, 64, 0.1
        )
    assert out.shape == (2, 4, 3, 8, 64)
    assert lse.shape == (2, 4, 3, 8)
    assert out.dtype == lse.dtype == torch.float32


@pytest.fixture
def by_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that are decoded by the kernel on a GPU are so everywhere."""
    monkeypatch.setattr(attend_cached, "decoding", lambda *_: SPLIT)


@with_triton
@pytest.mark.usefixtures("by_kernel")
@pytest.mark.parametrize("adds", ["", "bias", "slopes"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (8, 2), (16, 1)])
def test_the_kernel_gives_what_products_give(heads: int, kv_heads: int, adds: str) -> None:
    fused = kernels.drawn(2, 1, heads + 5, 64, seed=heads)  # as one product gives q, k and v
    q = fused.transpose(1, 2)[:, :heads]
    k, v = (kernels.drawn(2, kv_heads, 200, 64, seed=seed) for seed in (1, 2))
    for at in (0, 127, 128, 199, 470):  # the last two: all, and round again
        positions = Positions(
            slot=torch.tensor([at], device=q.device),
            bias=drawn(33, heads, seed=3).to(q.device).T if adds == "bias" else None,
            slopes=drawn(heads, seed=4).abs().to(q.device) if adds == "slopes" else None,
        )
        exact = attend_products(q.float(), k.float(), v.float(), positions, 0.125)
        kernels.agree(attend_cache(q, k, v, positions), exact)


@with_triton
def test_the_kernel_says_each_parts_log_sum_exp_with_its_biases() -> None:
    """What all keys gain alike is in it, though the kernel adds that to none of them."""
    from efficientllm.models.split_kernel import attend_parts

    q, k, v = (kernels.drawn(1, 2, n, 16, seed=seed) for seed, n in enumerate((3, 400, 400)))
    slot = torch.tensor([310], device=q.device)
    bias = kernels.drawn(7, 6, seed=3).T + 3
    found = attend_parts(q, k, v, slot, bias, None, 128, 16, 0.25)
    low = (x.float().cpu() for x in (q, k, v))
    expected = parts_by_hand(*low, slot, bias.float().cpu(), None, 128, 16, 0.25)
    for mine, exact in zip(found, expected, strict=True):
        full = exact.isfinite()  # a part that holds nothing says so by its log-sum-exp
        assert full.equal(mine.isfinite().cpu())
        kernels.agree(mine.cpu()[full], exact[full])


@with_triton
@pytest.mark.usefixtures("by_kernel")
@pytest.mark.parametrize(("rank", "rest"), [(256, 32), (512, 64)])
def test_the_kernel_reads_latents_once_for_keys_and_values(rank: int, rest: int) -> None:
    size = rank + rest
    q, latent = kernels.drawn(2, 16, 1, size, seed=0), kernels.drawn(2, 1, 300, size, seed=1)
    positions = Positions(slot=torch.tensor([270], device=q.device))
    low = latent.float()
    exact = attend_products(q.float(), low, low[..., :rank], positions, 0.06)
    kernels.agree(attend_latents(q, latent, rank, positions, 0.06), exact)


@with_triton
@pytest.mark.parametrize(("parts", "filled"), [(1, 1), (33, 17), (129, 65), (300, 300)])
def test_the_merging_kernel_is_its_formula(parts: int, filled: int) -> None:
    from efficientllm.models.merge_kernel import merge

    out, lse = kernels.drawn(2, 2, parts, 4, 16, seed=0), 3 * kernels.drawn(2, 2, parts, 4, seed=1)
    out, lse = out.float(), lse.float()
    lse[:, :, filled:] = -math.inf
    found = merge(out, lse, None, (parts,), torch.float32)
    expected = together_by_hand(out, lse, torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
