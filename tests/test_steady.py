"""Blocks that agree, and the longest stretch that nothing interrupts."""

from __future__ import annotations

import pytest

from efficientllm.steady import agree, in_vain, longest_stretch


def test_blocks_agree_within_two_percent_of_the_median_and_five_of_the_quartiles() -> None:
    base = [1.0, 1.0, 1.0, 1.0, 1.0]
    assert agree(base, [1.019] * 5)
    assert not agree(base, [1.021] * 5)
    assert not agree(base, [0.979] * 5)
    spread = [0.94, 0.94, 1.0, 1.04, 1.04]
    assert not agree(base, spread), "the lower quartile is 6 % off"
    assert agree(base, [0.96, 0.96, 1.0, 1.04, 1.04])


def test_two_units_are_too_few_to_agree() -> None:
    assert not agree([1.0, 1.0], [1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("done", "interludes", "total", "expected"),
    [
        (10, [], 50, (10, 50)),
        (10, [50], 50, (10, 50)),  # due when everything is done
        (10, [5], 50, (10, 50)),  # long ago
        (10, [45], 50, (10, 45)),
        (10, [20], 50, (23, 50)),  # the three units after one settle
        (10, [10], 50, (13, 50)),
        (10, [20, 30, 40], 50, (10, 20)),  # the only one that nothing went before
        (10, [10, 20, 30], 40, (13, 20)),  # the first of equals
        (10, [14], 18, (10, 14)),
        (10, [12, 17], 17, (14, 17)),  # settling leaves a window its least
        (10, [11, 12, 13], 14, (10, 11)),
        (50, [], 50, (50, 50)),
        (50, [50], 50, (50, 50)),
    ],
)
def test_the_longest_stretch_has_no_interlude_inside_and_settles_after_one(
    done: int, interludes: list[int], total: int, expected: tuple[int, int]
) -> None:
    assert longest_stretch(done, interludes, total) == expected


def test_a_block_is_in_vain_where_no_other_one_fits_that_could_agree_with_it() -> None:
    assert in_vain([1.0], 3, 2.9)
    assert not in_vain([1.0], 3, 3.1)
    assert in_vain([9.0, 2.0], 3, 5.9), "the last unit tells how long they are now"
    assert not in_vain([1.0, 1.0, 1.0], 3, 0.1), "this one may agree with the block before"
