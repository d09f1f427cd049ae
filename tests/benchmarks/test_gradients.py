from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from efficientllm.models.vector import VectorLinear
from tests.benchmarks.outside import imported


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with imported("gradients", monkeypatch) as module:
        yield module


TOKENS = 2048


def causal_like() -> Tensor:
    """Vectors that shrink to nothing along the row, as gradients of causal keys do."""
    lengths = (1 / torch.arange(1, TOKENS + 1) - 1 / (TOKENS + 1)).sqrt()
    return torch.randn(TOKENS, 64, generator=torch.Generator().manual_seed(0)) * lengths[:, None]


def test_the_error_is_that_of_the_worst_tile(gradients: Any) -> None:
    right = torch.zeros(40, 2)  # tiles of 16, 16 and 8 tokens
    right[0], right[39] = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 12.0])
    found = right.clone()
    found[1, 0] = 0.5
    found[38, 0] = 0.6
    assert gradients.error(found, right) == pytest.approx(0.1)


def test_a_tile_of_nothing_counts_as_a_hundredth_of_the_mean(gradients: Any) -> None:
    right = torch.zeros(32, 2)
    right[0, 0] = 2.0**0.5  # root mean square of both tiles: 1
    found = right.clone()
    found[20, 0] = 0.005
    assert gradients.error(found, right) == pytest.approx(0.5)


def test_a_loss_is_a_tile_of_its_own(gradients: Any) -> None:
    assert gradients.error(torch.tensor(5.1), torch.tensor(5.0)) == pytest.approx(0.02)


def test_rounding_is_within_and_faults_are_not(gradients: Any) -> None:
    right, most = causal_like(), gradients.TOLERANCE[torch.bfloat16]
    assert gradients.error(right.bfloat16(), right) < most
    tail, one = right.clone(), right.clone()
    tail[-16:], one[1000] = 0, 0
    assert (tail - right).norm() / right.norm() < 0.003  # which would not be seen as a whole
    for fault in (tail, one, right * 1.03, right.roll(1, 0)):
        assert gradients.error(fault, right) > most


def test_a_value_that_is_not_finite_is_no_error_but_a_failure(gradients: Any) -> None:
    right = causal_like()
    assert math.isnan(gradients.error(right.index_fill(0, torch.tensor(9), math.nan), right))


def test_the_gradient_of_every_input_that_asks_is_compared(gradients: Any) -> None:
    inputs = {"x": torch.randn(16, 4).requires_grad_(), "y": torch.randn(16, 4).requires_grad_()}
    inputs["told"] = torch.ones(4)

    def right(x: Tensor, y: Tensor, told: Tensor) -> Tensor:
        return x * y * told

    def wrong(x: Tensor, y: Tensor, told: Tensor) -> Tensor:
        return (x * y.detach() + x.detach() * (2 * y - y.detach())) - (x * y).detach()

    found = gradients.errors(gradients.Check(wrong, right, inputs, ""))
    assert found.keys() == {"out", "d x", "d y"}
    assert found["out"] < 1e-5
    assert found["d x"] < 1e-5
    assert found["d y"] == pytest.approx(1.0, rel=1e-4)


def test_a_kernel_that_breaks_is_a_row_and_not_the_tables_end(gradients: Any) -> None:
    def broken(device: torch.device, dtype: torch.dtype) -> Any:
        raise RuntimeError("no kernel image")

    row = gradients.row("broken", broken, torch.float32)
    assert row["verdict"] == "FAILED: no kernel image"


def test_a_product_with_one_row_is_called_as_a_layer_is(
    gradients: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel needs a card, the way to it does not."""
    checks = sys.modules["decode_checks"]

    def taken(layer: torch.nn.Linear) -> int:
        layer.__class__ = VectorLinear
        monkeypatch.setattr("efficientllm.models.vector._multiply", torch.nn.functional.linear)
        return 1

    monkeypatch.setattr(checks, "take_vectors", taken)
    cpu, half = torch.device("cpu"), torch.bfloat16
    check = checks.one_row(cpu, half, rows=64, columns=32)
    assert gradients.errors(check)["out"] < gradients.TOLERANCE[half]

    def each(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bhtk,hnk->bhtn", x, weight)

    monkeypatch.setattr("efficientllm.models.vector._multiply_each", each)
    for across in (True, False):
        check = checks.one_row_each(cpu, half, across=across)
        assert gradients.errors(check)["out"] < gradients.TOLERANCE[half]


def test_a_sparse_prefill_is_checked_in_its_own_type_against_float32(
    gradients: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernels need a card, the way to them does not; a wrong gate is seen."""
    checks, cpu, half = sys.modules["decode_checks"], torch.device("cpu"), torch.bfloat16
    monkeypatch.setattr(checks, "rows_fit", lambda *_: True)
    for wrong in (0.0, 1.0):

        def rows(*given: Any, wrong: float = wrong) -> torch.Tensor:
            q, k, v, means, near, gates, sizes = given
            assert q.dtype == half
            branches = (*checks.sparse_reference(q, k, v, means, sizes), near)
            return checks.gated(gates + wrong, branches)  # type: ignore[no-any-return]

        monkeypatch.setattr(checks, "attend_sparse_rows", rows)
        error = gradients.errors(checks.prefilled_sparse(cpu, half, d=64))["out"]
        assert (error < gradients.TOLERANCE[half]) == (wrong == 0.0)
