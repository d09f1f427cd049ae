"""The front: nobody on it is beaten, everybody off it is."""

from __future__ import annotations

import itertools
import random

import pytest

from efficientllm.analysis.pareto import front, sure_front


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], []),
        ([(1.0, 1.0)], [True]),
        ([(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)], [True, True, True]),
        ([(1.0, 1.0), (2.0, 2.0)], [True, False]),
        ([(1.0, 2.0), (1.0, 3.0)], [True, False]),  # as cheap and worse
        ([(2.0, 1.0), (3.0, 1.0)], [True, False]),  # as good and dearer
        ([(1.0, 1.0), (1.0, 1.0)], [True, True]),  # equals beat nobody
    ],
)
def test_small_sets_by_hand(points: list[tuple[float, float]], expected: list[bool]) -> None:
    assert front(points) == expected


@pytest.mark.parametrize("seed", range(5))
def test_the_front_beats_the_rest_and_not_itself(seed: int) -> None:
    generator = random.Random(seed)
    points = [(float(generator.randrange(12)), float(generator.randrange(12))) for _ in range(40)]
    on = [p for p, is_on in zip(points, front(points), strict=True) if is_on]
    off = [p for p, is_on in zip(points, front(points), strict=True) if not is_on]

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    assert not any(beats(a, b) for a, b in itertools.permutations(on, 2))
    assert all(any(beats(a, b) for a in on) for b in off)


def test_the_order_of_rows_does_not_matter() -> None:
    points = [(1.0, 5.0), (2.0, 4.0), (2.5, 4.5), (3.0, 1.0), (4.0, 0.5), (4.0, 2.0)]
    expected = dict(zip(points, front(points), strict=True))
    for order in itertools.islice(itertools.permutations(points), 0, 720, 37):
        assert dict(zip(order, front(order), strict=True)) == expected


def test_only_decided_differences_put_a_point_surely_on_the_front() -> None:
    costs = [1, 2, 3, 3]

    def cheaper(i: int, j: int) -> bool:
        return costs[i] < costs[j]

    nothing = sure_front(4, cheaper, lambda i, j: False)
    assert nothing == [True, False, False, False]
    # 1 is surely better than everything, 2 than 0 only: 1 costs less and is better than 2
    better = {(1, 0), (1, 2), (1, 3), (2, 0)}
    assert sure_front(4, cheaper, lambda i, j: (i, j) in better) == [True, True, False, False]
    # the same cost, quality undecided: nobody can say
    assert sure_front(2, lambda i, j: False, lambda i, j: False) == [False, False]
    assert sure_front(1, cheaper, lambda i, j: False) == [True]
