"""Conditions hold, are broken, or are exceeded without being decided."""

from __future__ import annotations

import pytest

from efficientllm.analysis.compare import Comparison, compare
from efficientllm.analysis.condition import check_condition
from efficientllm.analysis.table import Row
from efficientllm.metrics import View
from efficientllm.spec.case import Case
from efficientllm.spec.document import SpecError
from tests import samples
from tests.analysis.test_compare import BF16, INT8, row


def decoding(a: float, b: float, trials: int = 3) -> Comparison:
    return compare(row(BF16, (a,) * trials), row(INT8, (b,) * trials))


@pytest.mark.parametrize(
    ("found", "condition", "status"),
    [
        (decoding(0.01, 0.02), "slower>5%", "broken"),
        (decoding(0.01, 0.02), " slower > 5 ", "broken"),
        (decoding(0.01, 0.02), "slower>150%", "held"),
        (decoding(0.01, 0.005), "slower>5%", "held"),
        (decoding(0.01, 0.02, trials=1), "slower>5%", "undecided"),
        (decoding(0.01, 0.0101, trials=1), "slower>5%", "held"),
        (decoding(0.01, 0.01), "larger>0%", "held"),
        (decoding(0.01, 0.01015), "slower>1%", "broken"),  # within the band of 2 %, and certain
    ],
)
def test_a_condition_is_judged(found: Comparison, condition: str, status: str) -> None:
    assert check_condition(found, condition).status == status


def test_what_is_broken_or_undecided_says_by_how_much_and_why() -> None:
    broken = check_condition(decoding(0.01, 0.02), "slower>5%")
    assert broken.text == "tokens/s in all: 100.0% slower, the limit is 5.0%"
    undecided = check_condition(decoding(0.01, 0.02, trials=1), "slower>5%")
    assert undecided.text.endswith(
        "but undecided: 1 of the three pairs of trials it takes (protocol=standard)"
    )


@pytest.mark.parametrize("condition", ["slower", "slower>1.2.3%", "faster>5%", "slower>-1%", ""])
def test_a_condition_that_cannot_be_read_is_refused(condition: str) -> None:
    with pytest.raises(SpecError, match="write it like 'slower>5%'"):
        check_condition(decoding(0.01, 0.01), condition)


def test_a_condition_about_what_nobody_measured_is_refused() -> None:
    found = decoding(0.01, 0.01)
    bare = found._replace(lines=tuple(x for x in found.lines if x.metric.key != "bits_per_byte"))
    with pytest.raises(SpecError, match="neither row has bits_per_byte"):
        check_condition(bare, "worse>1%")


def test_an_interval_that_straddles_the_limit_decides_nothing() -> None:
    found = compare(row(BF16, (0.01, 0.01, 0.01)), row(INT8, (0.0101, 0.0106, 0.0112)))
    assert check_condition(found, "slower>5%").status == "undecided"


def test_an_invalid_side_decides_nothing() -> None:
    """Nor is it known that a condition holds."""
    for found in (decoding(0.01, 0.02), decoding(0.01, 0.005)):
        invalid = (x._replace(verdict="ambiguous", why="one side is invalid") for x in found.lines)
        told = check_condition(found._replace(lines=tuple(invalid)), "slower>5%")
        assert told == ("undecided", "undecided: one side is invalid")


def on_a_cpu(case: Case, peak_bytes: int) -> Row:
    """Three trials of which only the memory of the host is known."""
    records = [samples.record(case, round_=i, machine=samples.CPU_MACHINE) for i in range(3)]
    memory = {"host_peak_rss": peak_bytes}
    points = [record.points[0].model_copy(update={"memory": memory}) for record in records]
    return Row(
        tuple(
            View(record.model_copy(update={"points": (point,)}), point)
            for record, point in zip(records, points, strict=True)
        )
    )


def test_where_no_device_has_memory_that_of_the_host_is_judged() -> None:
    found = compare(on_a_cpu(BF16, 2 << 30), on_a_cpu(INT8, 3 << 30))
    assert check_condition(found, "larger>40%").status == "broken"
    assert check_condition(found, "larger>60%").status == "held"
