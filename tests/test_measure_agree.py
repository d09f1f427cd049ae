"""When two blocks of unit times are one steady state: made-up blocks on both sides of the line."""

from __future__ import annotations

import pytest

from efficientllm.steady import agree

STEADY = [1.00, 1.01, 0.99, 1.00, 1.02]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (STEADY, STEADY, True),
        (STEADY, [1.019 * s for s in STEADY], True),
        (STEADY, [1.021 * s for s in STEADY], False),
        (STEADY, [0.979 * s for s in STEADY], False),
        # equal medians, but a quarter of the later block is 6 % slower
        ([1.0] * 20, [1.0] * 12 + [1.06] * 8, False),
        ([1.0] * 20, [1.0] * 12 + [1.04] * 8, True),
        ([1.0] * 20, [0.94] * 8 + [1.0] * 12, False),
        # one outlier in twenty is no change of state
        ([1.0] * 20, [1.0] * 19 + [3.0], True),
        (STEADY[:2], STEADY, False),
        (STEADY, [], False),
    ],
)
def test_blocks_agree_within_two_percent_in_the_middle_and_five_at_the_quartiles(
    before: list[float], after: list[float], expected: bool
) -> None:
    assert agree(before, after) == expected


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_agreement_is_a_matter_of_shares_and_not_of_seconds(scale: float) -> None:
    near, far = ([f * s * scale for s in STEADY] for f in (1.01, 1.03))
    assert agree([s * scale for s in STEADY], near)
    assert not agree([s * scale for s in STEADY], far)
