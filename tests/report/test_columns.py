"""How numbers are written."""

from __future__ import annotations

import pytest

from efficientllm.analysis.stats import Interval
from efficientllm.analysis.table import Cell, rows
from efficientllm.report.columns import (
    column,
    first_columns,
    number,
    small_print,
    with_half_width,
)
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


def test_the_small_print_is_in_the_columns_unit_and_says_what_was_counted() -> None:
    row = rows([samples.record()])[0]
    times, shares = column("tpot_s", [row]), column("mfu", [row])
    within = Interval(0.02, 0.019, 0.021, 10, "within-run")
    assert small_print(within, times) == "95 %: 19.0 to 21.0 ms over 10 blocks of one run"
    three = Interval(0.3, 0.29, 0.31, 3, "trials")
    assert small_print(three, shares) == "95 %: 29.0 to 31.0 % over 3 trials"
    assert small_print(Interval(1.0, None, None, 2, "none"), times) == "no interval; 2 trials"
    assert small_print(Interval(1.0, None, None, 2, "exact"), times) == "counted, not sampled"


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
