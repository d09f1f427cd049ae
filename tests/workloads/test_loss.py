"""Every kind of loss is the same number with the same gradients."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from efficientllm.record import Unsupported
from efficientllm.workloads import loss as losses
from efficientllm.workloads.batches import IGNORED
from efficientllm.workloads.loss import loss_of, resolve, slice_rows
from tests.models.kernels import DEVICE, DTYPE, agree, with_triton

N, C, V = 37, 16, 50


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, C, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, C, generator=generator).requires_grad_()
    targets = torch.randint(0, V, (N,), generator=generator)
    targets[::5] = IGNORED
    return hidden, weight, targets


def rows(count: int) -> int:
    """CHUNK_BYTES at which a slice holds `count` rows of float32 logits."""
    return 4 * V * count


def test_the_loss_is_the_sum_of_minus_log_probabilities_of_scored_targets() -> None:
    weight = torch.tensor([[0.0, 0.0], [math.log(2.0), 0.0], [math.log(5.0), 0.0]])
    hidden = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])  # 1:2:5, 1:2:5, 1:1:1
    targets = torch.tensor([2, IGNORED, 0])
    expected = -math.log(5 / 8) - math.log(1 / 3)
    for kind in ("plain", "chunked"):
        assert loss_of(kind)(hidden, weight, targets).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [1, 2, 7, N - 1, N, 10 * N])
def test_slices_of_any_size_give_the_plain_loss_and_gradients(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_BYTES", rows(size))
    found = []
    for kind in ("plain", "chunked"):
        hidden, weight, targets = inputs()
        value = loss_of(kind)(hidden, weight, targets)
        (value * 0.25).backward()  # an outer factor must reach both gradients
        found.append((value.detach(), hidden.grad, weight.grad))
    for plain, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, plain, rtol=1e-5, atol=1e-5)


def test_a_slice_never_holds_more_logits_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_BYTES", rows(3))
    widest = []
    real = losses._turn_into_gradient

    def watched(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        widest.append(logits.shape[0])
        return real(logits, targets)

    monkeypatch.setattr(losses, "_turn_into_gradient", watched)
    loss_of("chunked")(*inputs())
    assert max(widest) == 3
    assert sum(widest) == N


@pytest.mark.parametrize(
    ("positions", "expected"),
    [(32_768, 4096), (16_384, 4096), (1000, 1000), (32_769, 3641), (4_421, 2211)],
)
def test_slices_are_of_one_size_where_that_can_be(positions: int, expected: int) -> None:
    assert slice_rows(positions, 151_936, 2) == expected


def test_ignored_targets_give_no_gradient() -> None:
    hidden, weight, targets = inputs()
    loss_of("chunked")(hidden, weight, targets).backward()
    assert hidden.grad is not None
    silent = targets == IGNORED
    assert hidden.grad[silent].abs().max() == 0
    assert hidden.grad[~silent].abs().sum(dim=1).min() > 0


def test_a_batch_of_ignored_targets_costs_nothing() -> None:
    hidden, weight, targets = inputs()
    value = loss_of("chunked")(hidden, weight, torch.full_like(targets, IGNORED))
    value.backward()
    assert value == 0
    assert hidden.grad is not None
    assert hidden.grad.abs().max() == 0


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_their_own() -> None:
    hidden, weight, targets = inputs()
    loss_of("plain")(hidden, weight, targets).backward()
    expected = hidden.grad
    hidden, weight, targets = inputs()
    loss_of("chunked")(hidden, weight.requires_grad_(False), targets).backward()
    assert weight.grad is None
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-5, atol=1e-5)


def test_bf16_hidden_states_meet_a_float32_head_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_BYTES", rows(8))
    found = []
    for kind in ("plain", "chunked"):
        hidden, weight, targets = inputs(torch.bfloat16)
        value = loss_of(kind)(hidden, weight, targets)
        value.backward()
        assert value.dtype == torch.float32
        assert hidden.grad is not None
        assert weight.grad is not None
        assert hidden.grad.dtype == torch.bfloat16
        assert weight.grad.dtype == torch.float32
        found.append((value.detach(), hidden.grad.float(), weight.grad))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=0)
    for plain, chunked in zip(found[0][1:], found[1][1:], strict=True):
        assert (chunked - plain).norm() / plain.norm() < 0.01  # one rounding to bf16


def test_a_bf16_head_gets_its_gradient_rounded_once_with_the_outer_factor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(losses, "CHUNK_BYTES", rows(8) // 2)
    hidden, weight, targets = inputs(torch.bfloat16)
    head = weight.detach().bfloat16().requires_grad_()
    factor = 1.0 + 2.0**-8 - 2.0**-12  # bf16 has no number between 1 and 1 + 2^-7
    (loss_of("chunked")(hidden, head, targets) * factor).backward()
    exact, same = hidden.detach().float().requires_grad_(), head.detach().float().requires_grad_()
    (loss_of("plain")(exact, same, targets) * factor).backward()
    assert head.grad is not None
    assert same.grad is not None
    assert head.grad.dtype == torch.bfloat16
    agree(head.grad, same.grad, 0.01)
    along = (head.grad.float() * same.grad).sum() / same.grad.square().sum()
    assert abs(along - 1) < 1e-3, "not a factor for all"


def test_an_outer_factor_is_not_rounded_to_half_precision_for_the_hidden_states() -> None:
    """All rounded alike would be a systematic error of all gradients below the head."""
    found = []
    for factor in (1.0, 1 / 1000.3):  # 0.12 % from the next number of bf16
        hidden, weight, targets = inputs(torch.bfloat16)
        (loss_of("chunked")(hidden, weight.detach(), targets) * factor).backward()
        assert hidden.grad is not None
        found.append(hidden.grad.float().norm() / factor)
    assert found[1] == pytest.approx(float(found[0]), rel=3e-4)


def test_autocast_changes_neither_side_of_the_comparison() -> None:
    found = []
    for kind in ("plain", "chunked"):
        hidden, weight, targets = inputs()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss_of(kind)(hidden, weight, targets)
        value.backward()
        found.append((value.detach(), hidden.grad, weight.grad))
    for plain, chunked in zip(*found, strict=True):
        assert (chunked - plain).norm() / plain.norm() < 0.01


@pytest.mark.parametrize(
    ("wanted", "vocab", "expected"),
    [
        ("auto", 4096, "plain"),
        ("auto", 151_936, "chunked"),
        ("plain", 151_936, "plain"),
        ("chunked", 4096, "chunked"),
        ("liger", 4096, "liger"),
    ],
)
def test_auto_slices_large_vocabularies_and_obeys_what_is_asked(
    wanted: str, vocab: int, expected: str
) -> None:
    assert resolve(wanted, vocab) == expected


def test_kernels_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(Unsupported, match="liger needs the package liger-kernel"):
        loss_of("liger")


def drawn_logits(count: int, vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [n, V] of usual sizes, one row of large ones, and targets of which some count not."""
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(count, vocab, generator=generator)
    logits[1] = 80 * torch.randn(vocab, generator=generator) - 200
    targets = torch.randint(0, vocab, (count,), generator=generator)
    targets[2::3] = IGNORED
    targets[0] = vocab - 1
    return logits.to(DEVICE, DTYPE), targets.to(DEVICE)


@with_triton
@pytest.mark.parametrize("vocab", [1, 50, 64, 129, 1000])
@pytest.mark.parametrize("columns", [64, 8192])
def test_the_kernel_turns_logits_into_their_gradient(
    vocab: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vocabularies below one reading and above it, that are multiples of it and are not."""
    from efficientllm.workloads import cross_kernel

    monkeypatch.setattr(cross_kernel, "COLUMNS", columns)
    logits, targets = drawn_logits(7, vocab)
    exact = logits.float().clone()
    right = losses._turn_into_gradient(exact, targets)
    found = cross_kernel.turn_into_gradient(logits, targets, IGNORED)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-4)
    if vocab > 1:
        agree(logits, exact)
    assert logits[targets == IGNORED].abs().max() == 0


@with_triton
def test_rows_of_ignored_targets_alone_cost_nothing_in_the_kernel() -> None:
    from efficientllm.workloads.cross_kernel import turn_into_gradient

    logits, targets = drawn_logits(4, 50)
    assert turn_into_gradient(logits, torch.full_like(targets, IGNORED), IGNORED) == 0
    assert logits.abs().max() == 0


@with_triton
def test_the_kernel_asks_for_rows_side_by_side() -> None:
    from efficientllm.workloads.cross_kernel import turn_into_gradient

    logits, targets = drawn_logits(4, 50)
    with pytest.raises(AssertionError, match="one after the other"):
        turn_into_gradient(logits[:, ::2], targets, IGNORED)


@with_triton
@pytest.mark.parametrize("size", [5, N])
def test_the_loss_by_the_kernel_is_the_plain_one(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_BYTES", rows(size))
    monkeypatch.setattr(losses, "in_half_on_gpu", lambda *_: True)
    monkeypatch.setattr(losses, "_turn_into_gradient", None)
    found = []
    for kind in ("plain", "chunked"):
        hidden, weight, targets = (x.detach().to(DEVICE) for x in inputs())
        hidden.requires_grad_()
        weight.requires_grad_()
        value = loss_of(kind)(hidden, weight, targets)
        (value * 3.0).backward()
        found.append((value.detach(), hidden.grad, weight.grad))
    for plain, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, plain, rtol=1e-5, atol=1e-4)


def test_the_kernel_is_for_half_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere, and without Triton, the reference is what runs."""
    asked = []

    def reference(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        asked.append(logits.dtype)
        return logits.sum()

    monkeypatch.setattr(losses, "_turn_into_gradient", reference)
    for dtype in (torch.float32, torch.bfloat16):
        losses._turn(torch.zeros(2, 3, dtype=dtype), torch.zeros(2, dtype=torch.long))
    monkeypatch.setattr(losses, "in_half_on_gpu", lambda *_: True)
    monkeypatch.setattr(losses, "INSTALLED", False)
    losses._turn(torch.zeros(2, 3, dtype=torch.float16), torch.zeros(2, dtype=torch.long))
    assert asked == [torch.float32, torch.bfloat16, torch.float16]
