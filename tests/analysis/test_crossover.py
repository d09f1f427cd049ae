"""Crossings: brackets between measured contexts, decided only where intervals part."""

from __future__ import annotations

import pytest

from efficientllm.analysis.crossover import Crossing, crossings, order
from efficientllm.analysis.stats import Interval


def cost(value: float, half: float = 0.1, basis: str = "trials") -> Interval:
    return Interval(value, value - half, value + half, 3, basis)  # type: ignore[arg-type]


def curve(*values: float, half: float = 0.1) -> dict[int, Interval]:
    return {4096 * 4**i: cost(value, half) for i, value in enumerate(values)}


def test_an_order_that_turns_between_two_contexts_is_bracketed_by_them() -> None:
    found = crossings({"mla": curve(2, 2.5, 3), "gqa": curve(1, 4, 12)})
    assert found == [Crossing("mla", "gqa", 4096, 16384, decided=True)]


def test_the_one_that_costs_less_further_on_is_named_first_whatever_the_order_given() -> None:
    assert crossings({"gqa": curve(1, 4), "mla": curve(2, 2.5)}) == crossings(
        {"mla": curve(2, 2.5), "gqa": curve(1, 4)}
    )


def test_overlapping_intervals_leave_the_turn_undecided_and_say_where() -> None:
    (found,) = crossings({"a": curve(2, 2.5), "b": curve(1, 2.6)})
    assert (found.first, found.low, found.high, found.decided) == ("a", 4096, 16384, False)
    assert found.why == "their intervals overlap at 16,384 tokens"


def test_an_undecided_context_widens_the_bracket_to_the_decided_ones() -> None:
    # decided at 4,096 and at 65,536; in between the intervals overlap
    assert crossings({"a": curve(2, 2.5, 3), "b": curve(1, 2.45, 9)}) == [
        Crossing("a", "b", 4096, 65536, decided=True)
    ]


def test_within_one_run_nothing_is_decided() -> None:
    a = {4096: cost(1, basis="within-run"), 16384: cost(4)}
    b = {4096: cost(2), 16384: cost(2)}
    (found,) = crossings({"a": a, "b": b})
    assert not found.decided
    assert found.why == "fewer than three trials at 4,096 tokens"


def test_no_turn_is_no_crossing_and_only_shared_contexts_count() -> None:
    assert crossings({"a": curve(1, 2, 3), "b": curve(2, 3, 4)}) == []
    # b ran out of memory at 16,384: the bracket spans what both have
    a, b = curve(2, 2.5, 3), curve(1, 2, 9)
    del b[16384]
    assert crossings({"a": a, "b": b}) == [Crossing("a", "b", 4096, 65536, decided=True)]
    assert crossings({"a": curve(1), "b": {65536: cost(5)}}) == []


def test_two_turns_are_two_brackets_and_decided_ones_come_first() -> None:
    found = crossings({"a": curve(1, 3, 1), "b": curve(2, 2, 2), "c": curve(2.05, 1.95, 5)})
    assert {(x.first, x.second, x.low) for x in found if x.decided} == {
        ("b", "a", 4096),
        ("c", "a", 4096),
        ("a", "b", 16384),
        ("a", "c", 16384),
    }
    decided = [x.decided for x in found]
    assert decided == sorted(decided, reverse=True)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (cost(1), cost(2), -1),
        (cost(2), cost(1), 1),
        (cost(1), cost(1.15), 0),
        (cost(1, 0.5), cost(2, 0.5), 0),  # they touch
        (Interval(1, None, None, 1, "none"), cost(2), 0),
    ],
)
def test_an_order_needs_intervals_apart(a: Interval, b: Interval, expected: int) -> None:
    assert order(a, b) == expected
