"""Joules of a window against closed forms: constant power, square waves, ramps, and gaps."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from efficientllm.metrics import Unmeasured, View
from efficientllm.metrics.energy import (
    Energy,
    aec_w,
    energy_j,
    integral,
    j_per_request,
    j_per_step,
    j_per_token,
    net_j_per_token,
    window_energy,
)
from efficientllm.record import Reading, Window
from tests import samples
from tests.samples import SECOND

TICK_S = 0.1


def constant(t: float) -> float:
    """Joules of 300 W since zero."""
    return 300.0 * t


def square(t: float) -> float:
    """Joules of 100 W and 500 W in turn, half a second each, low first."""
    whole, rest = divmod(t, 1.0)
    return 300.0 * whole + 100.0 * min(rest, 0.5) + 500.0 * max(0.0, rest - 0.5)


def series(meter: str, column: str, rows: list[tuple[float, float | None]], **more: Any) -> Reading:
    """Readings at times in seconds."""
    fields = {"device": "gpu", "scope": "board"} | more
    return Reading(
        meter=meter,
        t_ns=tuple(round(t * SECOND) for t, _ in rows),
        columns={column: tuple(value for _, value in rows)},
        **fields,
    )


def counter(
    joules: Callable[[float], float], *, start: float = 0.0, end: float = 40.0, tick: float = TICK_S
) -> Reading:
    """A counter noted when it moves; before that the level that was found, between two steps."""
    found = (start + 0.4 * tick, joules(start))
    steps = [(start + i * tick, joules(start + i * tick)) for i in range(1, round(end / tick) + 1)]
    return series("energy", "energy_j", [found, *(row for row in steps if row[0] <= end)])


def power(watts: Callable[[float], float], *, start: float = 0.0, end: float = 40.0) -> Reading:
    times = [start + i * 0.05 for i in range(round((end - start) / 0.05) + 1)]
    return series("power", "power_w", [(t, watts(t)) for t in times])


def window(start: float, end: float, units: int = 100) -> Window:
    return samples.window(
        "step", units=units, start_ns=round(start * SECOND), end_ns=round(end * SECOND)
    )


def view(over: Window, *readings: Reading, **changes: Any) -> View:
    record = samples.record(samples.pretrain(), windows=[over], readings=readings, **changes)
    return View(record, record.points[0])


def measured(over: Window, *readings: Reading, **changes: Any) -> Energy:
    found = window_energy(view(over, *readings, **changes), over)
    assert isinstance(found, Energy), found
    return found


def missing(over: Window, *readings: Reading, **changes: Any) -> str:
    found = window_energy(view(over, *readings, **changes), over)
    assert isinstance(found, Unmeasured), found
    return found.reason


@pytest.mark.parametrize(("start", "end"), [(5.0, 15.0), (5.03, 15.08), (5.001, 7.01)])
def test_constant_power_is_exact_wherever_the_window_begins(start: float, end: float) -> None:
    found = measured(window(start, end), counter(constant))
    assert found.joules == pytest.approx(300.0 * (end - start), rel=1e-9)
    assert (found.scope, found.source) == ("board", "energy counter")


def test_a_square_wave_is_exact_where_the_edges_meet_steps_of_the_counter() -> None:
    """From 5.2 to 15.8: ten periods of 300 J, 0.3 s at 100 W and 0.3 s at 500 W."""
    assert measured(window(5.2, 15.8), counter(square)).joules == pytest.approx(3180.0)


def test_a_square_wave_is_wrong_by_at_most_a_quarter_of_a_step_at_each_edge() -> None:
    """A line through a step that holds a switch is off by (500 - 100) W x step / 4 at most."""
    moments, worst, bound = random.Random(3), 0.0, 2 * 400.0 * 0.07 / 4
    readings = counter(square, tick=0.07)
    for _ in range(200):
        start = moments.uniform(5, 6)
        end = moments.uniform(8, 30)
        found = measured(window(start, end), readings).joules
        worst = max(worst, abs(found - (square(end) - square(start))))
    assert bound / 4 < worst <= bound


def test_windows_that_meet_add_up() -> None:
    readings = counter(square)
    parts = [measured(window(a, b), readings).joules for a, b in ((5, 9.137), (9.137, 20.01))]
    assert sum(parts) == pytest.approx(measured(window(5, 20.01), readings).joules)


def test_the_level_found_first_is_no_step() -> None:
    """Taken as one it would shift the line: 0.4 of a step at the first edge."""
    readings = counter(constant, start=4.93)
    assert measured(window(5.04, 15.0), readings).joules == pytest.approx(300.0 * 9.96)


def test_a_counter_that_does_not_bracket_the_window_gives_nothing() -> None:
    late = counter(constant, start=5.0)
    early = counter(constant, end=14.9)
    for readings in (late, early):
        reason = missing(window(5.05, 15.0), readings)
        assert reason == "the energy counter was not read over the whole window"


@pytest.mark.parametrize(
    ("start", "end", "tick", "reason"),
    [
        (5.0, 6.99, 0.1, "window of 1.99 s: energy needs 2 s"),
        (5.0, 6.0, 0.1, "window of 1 s: energy needs 2 s"),
        (5.0, 15.0, 0.6, "17 steps of the energy counter: 20 are needed"),
    ],
)
def test_too_short_a_window_or_too_few_steps_is_no_energy(
    start: float, end: float, tick: float, reason: str
) -> None:
    assert missing(window(start, end), counter(constant, tick=tick)) == reason


def test_a_counter_that_goes_backwards_gives_nothing() -> None:
    reset = counter(lambda t: constant(t) if t < 12 else constant(t - 12))
    wrapped = counter(lambda t: constant(t) - (1e9 if t >= 8 else 0.0))
    for readings in (reset, wrapped):
        assert missing(window(5.0, 15.0), readings) == "the energy counter went backwards"


def test_a_counter_that_is_stuck_gives_nothing_and_never_zero() -> None:
    one_level = series("energy", "energy_j", [(1.0, 5000.0)])
    stopped = counter(constant, end=4.5)
    for readings in (one_level, stopped):
        reason = missing(window(5.0, 15.0), readings)
        assert reason == "the energy counter did not move during the window"


def test_a_card_lost_in_the_window_says_so() -> None:
    readings = counter(constant, end=9.0)
    notes = {"energy": "GPU is lost"}
    assert missing(window(5.0, 15.0), readings, notes=notes) == "GPU is lost"


def test_a_sampler_killed_in_the_window_says_so() -> None:
    notes = {"sampler": "the sampler ended before the trial did ()"}
    reason = missing(window(5.0, 15.0), counter(constant, end=9.0), notes=notes)
    assert reason == "the sampler ended before the trial did ()"


def test_without_a_counter_instant_power_is_integrated_and_named_as_that() -> None:
    found = measured(window(5.02, 15.08), power(lambda t: 300.0))
    assert found.joules == pytest.approx(300.0 * 10.06)
    assert found.source == "integral of instant power"


def test_a_ramp_of_power_is_exact_under_the_trapezoid_rule() -> None:
    """20 W/s: the integral of 20 t from 5.01 to 9.99 is 10 (9.99^2 - 5.01^2)."""
    found = integral(power(lambda t: 20.0 * t), round(5.01 * SECOND), round(9.99 * SECOND))
    assert found == pytest.approx(10 * (9.99**2 - 5.01**2))


def test_power_that_does_not_cover_the_window_is_not_integrated() -> None:
    for readings in (power(constant, start=5.1), power(constant, end=14.9)):
        assert integral(readings, 5 * SECOND, 15 * SECOND) is None
    assert missing(window(5.0, 15.0), power(constant, end=14.9)) == "the card counts no energy"


def test_readings_without_a_number_are_passed_over() -> None:
    rows = [(t * 0.5, None if t % 3 == 0 else 200.0) for t in range(1, 80)]
    readings = series("power", "power_w", rows)
    assert integral(readings, 5 * SECOND, 15 * SECOND) == pytest.approx(2000.0)


@pytest.mark.parametrize("key", ["energy", "nvml", "sampler"])
def test_no_energy_says_why(key: str) -> None:
    assert missing(window(5.0, 15.0), notes={key: "because"}) == "because"


def rapl(scope: str, watts: float, start: float = 0.0, end: float = 40.0) -> Reading:
    times = [start + i * 0.05 for i in range(round((end - start) / 0.05) + 1)]
    rows: list[tuple[float, float | None]] = [(t, watts * t) for t in times]
    return series("rapl", "energy_j", rows, scope=scope, device="host")


def test_the_packages_of_a_cpu_are_summed() -> None:
    readings = rapl("package-0", 60.0), rapl("package-1", 45.5)
    found = measured(window(5.0, 15.0), *readings, machine=samples.CPU_MACHINE)
    assert found.joules == pytest.approx(1055.0)
    assert (found.scope, found.source) == ("package-0+package-1", "RAPL")


def test_one_package_that_was_not_read_makes_the_sum_unknown() -> None:
    readings = rapl("package-0", 60.0), rapl("package-1", 45.5, end=9.0)
    reason = missing(window(5.0, 15.0), *readings, machine=samples.CPU_MACHINE)
    assert reason == "the energy counter was not read over the whole window"


def test_of_a_trial_of_two_processes_the_one_that_ran_the_window_counts() -> None:
    readings = rapl("package-0", 60.0, 0.0, 4.0), rapl("package-0", 60.0, 4.5, 40.0)
    found = measured(window(5.0, 15.0), *readings, machine=samples.CPU_MACHINE)
    assert found.joules == pytest.approx(600.0)
    readings = readings[1], readings[0]
    found = measured(window(5.0, 15.0), *readings, machine=samples.CPU_MACHINE)
    assert found.joules == pytest.approx(600.0)


def test_joules_of_a_cpu_never_stand_for_those_of_a_card() -> None:
    notes = {"energy": "not supported by this card or driver (Not Supported)"}
    both = rapl("package-0", 60.0), power(lambda t: 300.0)
    assert measured(window(5.0, 15.0), *both, notes=notes).scope == "board"
    assert missing(window(5.0, 15.0), both[0], notes=notes) == notes["energy"]


def test_a_cpu_without_counters_says_what_it_lacks() -> None:
    notes = {"rapl": "this machine shows no RAPL counters"}
    reason = missing(window(5.0, 15.0), machine=samples.CPU_MACHINE, notes=notes)
    assert reason == notes["rapl"]


def test_training_energy_by_hand() -> None:
    """500 W for 100 steps of 0.1 s of 4 x 1,024 tokens; 120 W when idle."""
    record = samples.record(samples.pretrain(), resolved={"idle_power_w": 120.0})
    of = View(record, record.points[0])
    assert energy_j(of) == pytest.approx(5000.0)
    assert aec_w(of) == pytest.approx(500.0)
    assert j_per_step(of) == pytest.approx(50.0)
    assert j_per_token(of) == pytest.approx(50.0 / 4096)
    assert net_j_per_token(of) == pytest.approx(38.0 / 4096)


def test_net_energy_needs_an_idle_power() -> None:
    record = samples.record(samples.pretrain())
    assert net_j_per_token(View(record, record.points[0])) == Unmeasured(
        "idle power was not measured in this run"
    )


@pytest.mark.parametrize(("batch", "joules"), [(1, 50 + 127 * 5.0), (32, (50 + 127 * 5.0) / 32)])
def test_a_request_is_its_share_of_a_prefill_and_of_127_decode_steps(
    batch: int, joules: float
) -> None:
    """500 W: 0.1 s of prefill are 50 J, 0.01 s of decode 5 J, each for the whole batch."""
    of = samples.case(
        workload={"kind": "generate", "points": {"batch": [batch], "context": [1024]}}
    )
    record = samples.record(of, windows=samples.generate_windows(batch=batch))
    assert j_per_request(View(record, record.points[0])) == pytest.approx(joules)


def test_a_request_without_a_prefill_window_has_no_energy() -> None:
    record = samples.record(windows=samples.generate_windows()[1:])
    assert j_per_request(View(record, record.points[0])) == Unmeasured(
        "prefill: no prefill window was measured"
    )


def test_a_window_without_tokens_has_no_energy_a_token() -> None:
    over = samples.window("step", counts={"samples": 1.0})
    assert j_per_token(view(over, samples.counter())) == Unmeasured("the window holds no tokens")
