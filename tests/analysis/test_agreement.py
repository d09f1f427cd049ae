"""Kendall's tau: counted by hand, and as scipy has it where scipy is exact."""

from __future__ import annotations

import itertools
import math

import pytest

from efficientllm.analysis.agreement import kendall


def test_four_things_by_hand() -> None:
    assert kendall([1, 2, 3, 4], [10, 20, 30, 40]) == (1.0, pytest.approx(2 / 24))
    assert kendall([1, 2, 3, 4], [4, 3, 2, 1]) == (-1.0, pytest.approx(2 / 24))
    # one neighbour swapped: 5 of 6 pairs agree; 1 + 3 orders lie so far out on either side
    assert kendall([1, 2, 3, 4], [1, 2, 4, 3]) == (pytest.approx(4 / 6), pytest.approx(8 / 24))


def test_ties_are_divided_out() -> None:
    # told apart: 3 pairs of x, 2 of y; both of them agree; 2 of the 3 distinct orders of y do so
    found = kendall([1, 2, 3], [1, 1, 2])
    assert found == (pytest.approx(2 / math.sqrt(6)), pytest.approx(2 / 3))


@pytest.mark.parametrize(
    ("x", "y"), [([], []), ([1.0], [2.0]), ([1.0, 1.0], [1.0, 2.0]), ([1.0, 2.0], [3.0, 3.0])]
)
def test_what_tells_nothing_apart_has_no_tau(x: list[float], y: list[float]) -> None:
    assert kendall(x, y) is None


def test_with_four_variants_only_full_agreement_or_reversal_is_below_a_tenth() -> None:
    found = [kendall(range(4), order) for order in itertools.permutations(range(4))]
    assert {tau for tau, p in (f for f in found if f) if p < 0.1} == {1.0, -1.0}
    three = [kendall(range(3), order) for order in itertools.permutations(range(3))]
    assert min(p for _, p in (f for f in three if f)) == pytest.approx(1 / 3)


def test_as_scipy_has_it() -> None:
    from scipy import stats  # four seconds, which every process that collects tests would take

    for order in itertools.permutations(range(5)):
        expected = stats.kendalltau(range(5), order, method="exact")
        assert kendall(range(5), order) == (
            pytest.approx(expected.statistic),
            pytest.approx(expected.pvalue),
        )


def test_lists_that_do_not_pair_or_have_too_many_orders_are_refused() -> None:
    with pytest.raises(ValueError, match="two lists of one length"):
        kendall([1], [1, 2])
    with pytest.raises(ValueError, match="of 8 at most"):
        kendall(range(9), range(9))
