"""Blocks of a window add up to the window."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from efficientllm import record as r
from efficientllm.metrics import BY_KEY, Unmeasured, View
from efficientllm.metrics.view import divided, mean_over
from tests import samples


def uneven(units: int) -> r.Window:
    """A window whose units differ, and whose host time is a little more than their sum."""
    generator = random.Random(units)
    unit_s = tuple(generator.uniform(0.05, 0.3) for _ in range(units))
    window = samples.training_window(units=units)
    return window.model_copy(
        update={"unit_s": unit_s, "end_ns": window.start_ns + round(1.01e9 * sum(unit_s))}
    )


@pytest.mark.parametrize("count", [1, 3, 7, 10])
@pytest.mark.parametrize("units", [10, 37, 100])
def test_parts_of_a_window_add_up_to_it(units: int, count: int) -> None:
    window = uneven(units)
    parts = divided(window, count)
    assert tuple(s for p in parts for s in p.unit_s) == window.unit_s
    assert max(p.units for p in parts) - min(p.units for p in parts) <= 1
    assert all(p.counts["tokens"] == pytest.approx(4096 * p.units) for p in parts)
    for key, total in window.counts.items():
        assert sum(p.counts[key] for p in parts) == pytest.approx(total)
    assert parts[0].start_ns == window.start_ns
    assert parts[-1].end_ns == pytest.approx(window.end_ns, abs=10)
    for a, b in pairwise(parts):
        assert a.end_ns == b.start_ns
    assert sum(p.seconds for p in parts) == pytest.approx(window.seconds)


@pytest.mark.parametrize("key", ["train_tokens_per_s", "mfu", "j_per_token"])
def test_rates_of_blocks_average_to_the_rate_of_the_whole(key: str) -> None:
    window = uneven(100)
    record = samples.record(samples.pretrain(), windows=[window])
    view = View(record, record.points[0])
    whole, blocks = BY_KEY[key](view), view.blocks(5)
    assert not isinstance(whole, Unmeasured)
    weighted = 0.0
    for block in blocks:
        value, stretch = BY_KEY[key](block), block.window("step")
        assert not isinstance(value, Unmeasured)
        assert isinstance(stretch, r.Window)
        weight = stretch.counts["tokens"] if key == "j_per_token" else stretch.seconds
        total = window.counts["tokens"] if key == "j_per_token" else window.seconds
        weighted += value * weight / total
    assert weighted == pytest.approx(whole)


def test_every_window_of_a_point_is_divided() -> None:
    record = samples.record()
    blocks = View(record, record.points[0]).blocks(4)
    for name, units in (("prefill", 25), ("decode", 250)):
        for block in blocks:
            window = block.window(name)
            assert isinstance(window, r.Window)
            assert window.units == units


def test_the_series_of_the_process_that_measured_is_taken() -> None:
    record = samples.record()  # decode runs from second 30 to 40
    early = samples.counter(seconds=20.0)
    shifted = samples.counter(seconds=15.0)
    moved = tuple(t + 28 * samples.SECOND for t in shifted.t_ns)
    late = shifted.model_copy(update={"t_ns": moved})
    record = samples.record(readings=(early, late))
    assert View(record, record.points[0]).series("energy") == late


def test_a_mean_over_samples_weighs_each_until_the_next() -> None:
    reading = r.Reading(
        meter="m",
        device="gpu",
        t_ns=(0, 10, 40, 100),
        columns={"x": (1.0, 2.0, None, 5.0)},
    )
    assert mean_over(reading, "x", 0, 100) == pytest.approx((1 * 10 + 2 * 90) / 100)
    assert mean_over(reading, "x", 5, 50) == 2.0  # one sample alone is the mean
    assert mean_over(reading, "x", 41, 99) is None
