"""How numbers are written."""

from __future__ import annotations

import pytest

from efficientllm.analysis.stats import Interval
from efficientllm.analysis.table import Cell, rows
from efficientllm.report.columns import column, first_columns, number, with_half_width
from tests import samples


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234567.8, "1,234,568"),
        (203.4, "203"),
        (20.34, "20.3"),
        (2.034, "2.03"),
        (0.02034, "0.0203"),
        (0.00002034, "2.03e-05"),
        (-5.5, "-5.50"),
    ],
)
def test_three_digits_that_matter(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (203.4, 1.26, "203.4 ±1.3"),
        (203.4, 4.0, "203 ±4"),
        (0.61234, 0.0043, "0.612 ±0.004"),
        (4736.2, 120.0, "4,736 ±120"),
    ],
)
def test_the_half_width_decides_the_decimals(value: float, half: float, text: str) -> None:
    cell = Cell(Interval(value, value - half, value + half, 3, "trials"))
    assert with_half_width(cell) == text


def test_no_interval_shows_the_value_and_nothing_shows_a_dash() -> None:
    assert with_half_width(Cell(Interval(16.2, None, None, 1, "none"))) == "16.2"
    assert with_half_width(Cell(None, "no counter")) == "-"


def test_small_columns_change_their_unit_for_all_rows_alike() -> None:
    table = rows([samples.record()])
    shown = column("tpot_s", table)
    assert shown.heading == "time per output token (ms)"
    assert shown.text(table[0]) == "10.0"
    assert column("ttft_s", table).unit == "s"


def test_a_gpu_shows_the_allocators_peak_and_a_cpu_the_process() -> None:
    gpu = rows([samples.record()])
    cpu = rows([samples.record(machine=samples.CPU_MACHINE, readings=())])
    keys = {c.metric.key for c in first_columns("generate", gpu)}
    assert "peak_allocated_gib" in keys
    assert "host_peak_rss_gib" not in keys
    keys = {c.metric.key for c in first_columns("generate", cpu)}
    assert "host_peak_rss_gib" in keys
