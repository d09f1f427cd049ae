"""The measuring loop on a made-up device with a made-up clock: every duration is exact.

The device does its work in order and later than it is asked to, as a GPU does; only
`drain` and `reach` make the host wait. So what the loop gets wrong shows as a number.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable

import pytest

from efficientllm import clock, measure
from efficientllm.analysis.checks import flags
from efficientllm.measure import Loop, PointTimeout, Progress
from efficientllm.metrics import View
from efficientllm.record import Window
from efficientllm.spec.protocol import PROFILES, Limits
from efficientllm.steady import BRIEF_UNITS, SETTLE_UNITS
from tests import samples

QUICK = PROFILES["quick"]
ISSUE_S = 1e-5
"""What Python needs to ask for one unit."""


class World:
    """A host clock and a device that is busy until `free`; both in seconds."""

    def __init__(self) -> None:
        self.now = self.free = 100.0
        self.furthest_ahead = 0.0
        self.drains = True

    def mark(self) -> float:
        return max(self.free, self.now)

    def reach(self, mark: float) -> None:
        self.now = max(self.now, mark)

    def drain(self) -> None:
        if self.drains:
            self.now = max(self.now, self.free)

    def seconds(self, marks: list[float]) -> list[float]:
        return [b - a for a, b in itertools.pairwise(marks)]

    def work(self, seconds: float) -> None:
        self.now += ISSUE_S
        self.free = max(self.free, self.now) + seconds
        self.furthest_ahead = max(self.furthest_ahead, self.free - self.now)


class Work:
    """Counts its units; how long one takes is a function of how many there were before."""

    windows: tuple[str, ...] = ("step",)
    brief: frozenset[str] = frozenset()
    settling = 0

    def __init__(
        self, world: World, seconds: Callable[[int], float], budget: int | None = None
    ) -> None:
        self.world, self.seconds, self.budget = world, seconds, budget
        self.done = 0
        self.compiled_at: set[int] = {0}
        self.fails_at: int | None = None

    def unit(self, window: str) -> None:
        self.world.work(self.seconds(self.done))
        self.done += 1

    def check(self) -> None:
        if self.fails_at is not None and self.done > self.fails_at:
            raise ArithmeticError("not finite")

    def counts(self, window: str, units: int) -> dict[str, float]:
        return {"tokens": float(units)}

    def compilations(self) -> int:
        return sum(at < self.done for at in self.compiled_at)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(measure.gc, "collect", lambda: 0)  # slow where much is imported
    monkeypatch.setattr(clock, "now_ns", lambda: round(made.now * 1e9))
    monkeypatch.setattr(clock, "seconds_since", lambda start: made.now - start / 1e9)
    return made


def one_window(work: Work, limits: Limits = QUICK) -> Window:
    (window,) = Loop(work, work.world, limits).measure()
    return window


def codes(window: Window) -> dict[str, str]:
    """Flags of a training record that holds this window."""
    counts = samples.training_window(units=window.units).counts
    window = window.model_copy(update={"counts": counts})
    quick = {"profile": "quick", "trials": None}
    record = samples.record(samples.pretrain(), windows=[window], protocol=quick, readings=())
    return {flag.code: flag.level for flag in flags(View(record, record.points[0]))}


def test_a_window_ends_when_its_time_has_passed_on_the_device(world: World) -> None:
    """Python could ask for half a million units in five seconds; fifty are measured."""
    window = one_window(Work(world, lambda _: 0.1))
    assert 50 <= window.units <= 50 + measure.AHEAD + 1
    assert window.seconds == pytest.approx(0.1 * window.units, abs=1e-3)
    assert window.unit_s == pytest.approx((0.1,) * window.units, rel=1e-3)
    assert "HOST_BOUND" not in codes(window)


def test_python_is_never_more_than_two_units_ahead_inside_a_window(world: World) -> None:
    work = Work(world, lambda _: 0.1)
    loop = Loop(work, world, QUICK)
    steady, ahead = loop._steady, []

    def watched(*arguments: object) -> Window:
        world.drain()
        world.furthest_ahead = 0.0
        window = steady(*arguments)  # type: ignore[arg-type]
        ahead.append(world.furthest_ahead)
        return window

    loop._steady = watched  # type: ignore[method-assign]
    loop.measure()
    assert ahead[0] <= (measure.AHEAD + 1) * 0.1


def test_launches_that_nobody_waits_for_are_caught(world: World) -> None:
    """A host clock read before the device is done tells another time than the device's."""
    world.drains = False
    window = one_window(Work(world, lambda _: 0.1))
    assert sum(window.unit_s) == pytest.approx(0.1 * window.units)
    assert codes(window)["HOST_BOUND"] == "warn"


def test_a_device_that_waits_for_python_is_as_slow_as_python(world: World) -> None:
    """Units of 1 ms that Python takes 10 ms to ask for."""
    work = Work(world, lambda _: 0.001)
    slow = work.unit

    def unit(window: str) -> None:
        world.now += 0.01
        slow(window)

    work.unit = unit  # type: ignore[method-assign]
    window = one_window(work)
    assert window.seconds == pytest.approx(0.01001 * window.units, rel=0.01)
    assert window.unit_s[5] == pytest.approx(0.01001, rel=0.01)


def test_the_first_slow_calls_are_in_no_window(world: World) -> None:
    """The cold call compiles for 30 s, two more record a graph in a second each."""
    slow = {0: 30.0, 1: 1.0, 2: 1.0}
    window = one_window(Work(world, lambda i: slow.get(i, 0.01)))
    assert window.first_call_s == pytest.approx(30.0)
    assert max(window.unit_s) < 0.0101
    assert window.converged
    assert window.seconds == pytest.approx(5.0, abs=0.05), "compiling is not the cap's business"


def test_a_recompilation_inside_the_window_makes_it_invalid(world: World) -> None:
    work = Work(world, lambda i: 1.0 if i == 110 else 0.1)
    work.compiled_at |= {60}
    window = one_window(work)
    assert window.warmup_units < 60 < window.warmup_units + window.units
    assert window.recompiles == 1
    assert codes(window)["RECOMPILE"] == "invalid"


def test_a_recompilation_in_warm_up_only_prolongs_it(world: World) -> None:
    still = one_window(Work(world, lambda _: 0.1))
    work = Work(world, lambda _: 0.1)
    work.compiled_at |= {still.warmup_units - 1}
    window = one_window(work)
    assert window.warmup_units > still.warmup_units
    assert (window.recompiles, window.converged) == (0, True)


def test_work_that_never_settles_is_measured_and_flagged(world: World) -> None:
    window = one_window(Work(world, lambda i: 0.05 * 1.03 ** min(i, 100)))
    assert not window.converged
    assert window.units >= QUICK.min_units
    assert codes(window)["WARMUP_NOT_CONVERGED"] == "warn"


@pytest.mark.parametrize(
    ("unit_s", "units"), [(0.01, 500), (0.1, 50), (0.5, 20), (1.0, 20), (2.0, 20)]
)
def test_a_quick_window_has_twenty_units_and_five_seconds(
    world: World, unit_s: float, units: int
) -> None:
    window = one_window(Work(world, lambda _: unit_s))
    assert units <= window.units <= units + measure.AHEAD
    assert "WINDOW_SHORT" not in codes(window)


@pytest.mark.parametrize("unit_s", [3.0, 5.0, 10.0, 19.9])
def test_what_exceeds_the_cap_is_cut_to_no_less_than_three_units_and_flagged(
    world: World, unit_s: float
) -> None:
    start = world.now
    window = one_window(Work(world, lambda _: unit_s))
    assert 3 <= window.units < 20
    assert codes(window)["WINDOW_SHORT"] == "warn"
    assert world.now - start <= max(QUICK.cap_seconds + 2 * unit_s, 10.01 * unit_s)


def test_three_units_that_do_not_fit_under_the_cap_are_a_timeout(world: World) -> None:
    start = world.now
    with pytest.raises(PointTimeout, match=r"one unit takes 20\.1 s: three do not fit"):
        one_window(Work(world, lambda _: 20.1))
    assert world.now - start < 10 * 20.1


def test_a_slow_cold_call_alone_is_no_timeout(world: World) -> None:
    window = one_window(Work(world, lambda i: 300.0 if i == 0 else 0.1))
    assert window.units >= 50


@pytest.mark.parametrize(("profile", "unit_s"), [("quick", 0.001), ("smoke", 100.0)])
def test_declared_work_is_done_exactly(world: World, profile: str, unit_s: float) -> None:
    """For every budget from 1 to 40, however long a unit takes: never cut, never prolonged."""
    for budget in range(1, 41):
        work = Work(world, lambda _: unit_s, budget)
        window = one_window(work, PROFILES[profile])
        assert work.done == budget
        assert window.warmup_units + window.units == budget
        if budget >= 5:
            assert window.units >= budget * 0.7 - 1
            assert window.units >= 3


def test_a_declared_budget_that_is_too_small_is_short_and_not_extended(world: World) -> None:
    window = one_window(Work(world, lambda _: 1.0, budget=12))
    assert codes(window)["WINDOW_SHORT"] == "warn"


class Points(Work):
    windows = ("prefill", "decode", "request")
    brief = frozenset({"request"})

    def __init__(self, world: World, seconds: dict[str, float]) -> None:
        super().__init__(world, lambda _: 0.0)
        self.by_window = seconds

    def unit(self, window: str) -> None:
        self.world.work(self.by_window[window])
        self.done += 1


def test_the_windows_of_a_point_come_in_order_and_the_check_is_brief(world: World) -> None:
    work = Points(world, {"prefill": 0.2, "decode": 0.01, "request": 1.0})
    windows = Loop(work, world, QUICK).measure()
    assert [w.name for w in windows] == ["prefill", "decode", "request"]
    assert windows[0].units >= 25
    assert windows[1].units >= 500
    assert windows[2].units == BRIEF_UNITS
    for a, b in itertools.pairwise(windows):
        assert a.end_ns <= b.start_ns


def test_a_request_that_checks_others_is_asked_for_when_the_one_before_has_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise what Python needs for a prefill hides behind the steps of the last request."""
    work = Points(world, {"prefill": 0.5, "decode": 0.5, "request": 0.5})
    monkeypatch.setattr("tests.test_measure.ISSUE_S", 0.25)
    prefill, _, request = Loop(work, world, QUICK).measure()
    assert request.unit_s == pytest.approx([0.75] * request.units), "0.25 s to ask, 0.5 s to do"
    assert prefill.unit_s[1:] == pytest.approx([0.5] * (prefill.units - 1))


def test_long_units_are_fewer_in_a_window_that_only_checks_others(world: World) -> None:
    *_, check = Loop(
        Points(world, {"prefill": 1, "decode": 1, "request": 6.0}), world, QUICK
    ).measure()
    assert check.units == 2
    *_, check = Loop(
        Points(world, {"prefill": 1, "decode": 1, "request": 1.5}), world, QUICK
    ).measure()
    assert check.units == 4


def test_where_two_blocks_cannot_agree_in_time_no_long_one_is_tried(world: World) -> None:
    work = Points(world, {"prefill": 4.0, "decode": 0.01, "request": 4.0})
    prefill, *_ = Loop(work, world, QUICK).measure()
    assert (prefill.warmup_units, prefill.converged) == (3, False), "the cold call and two more"
    assert prefill.units >= 3


def test_a_slow_first_unit_does_not_keep_the_next_ones_from_agreeing(world: World) -> None:
    work = Work(world, lambda n: 6.0 if n < 2 else 0.2)
    window = one_window(work)
    assert window.converged


def test_the_windows_of_a_point_share_its_cap(world: World) -> None:
    """Two windows that would take 40 s each, and a check, under a cap of 60."""
    start = world.now
    work = Points(world, {"prefill": 2.0, "decode": 2.0, "request": 0.5})
    windows = Loop(work, world, QUICK).measure()
    assert all(3 <= w.units < 20 for w in windows)
    assert world.now - start < QUICK.cap_seconds


def test_a_window_that_cannot_do_three_units_is_left_out_and_the_others_are_measured(
    world: World,
) -> None:
    """A prefill of 15 s must not take the decode numbers of its point with it."""
    start = world.now
    loop = Loop(Points(world, {"prefill": 15.0, "decode": 0.01, "request": 16.0}), world, QUICK)
    (decode,) = loop.measure()
    assert (decode.name, decode.converged) == ("decode", True)
    assert decode.seconds >= QUICK.min_seconds
    assert loop.left_out["prefill"].startswith("one unit takes 15 s: three do not fit")
    assert loop.left_out["request"] == "it checks windows that were left out"
    assert world.now - start < QUICK.cap_seconds, "two prefills show that a third is too many"


def test_a_slow_window_leaves_the_next_at_least_half_its_due(world: World) -> None:
    loop = Loop(Points(world, {"prefill": 9.0, "decode": 0.2, "request": 11.0}), world, QUICK)
    prefill, decode, request = loop.measure()
    assert (prefill.units, prefill.warmup_units) == (3, 3)
    assert decode.units >= QUICK.min_units
    assert decode.seconds >= QUICK.min_seconds
    assert 1 <= request.units < BRIEF_UNITS


def test_a_unit_that_went_wrong_ends_the_window_at_once(world: World) -> None:
    work = Work(world, lambda _: 0.1)
    work.fails_at = 60
    with pytest.raises(ArithmeticError):
        one_window(work)
    assert work.done <= 60 + measure.AHEAD + 1


def test_garbage_is_collected_again_after_a_window_that_failed(world: World) -> None:
    work = Work(world, lambda _: 0.1)
    work.fails_at = 60
    with pytest.raises(ArithmeticError):
        one_window(work)
    assert gc.isenabled()


def test_progress_is_told_about_once_a_second(world: World) -> None:
    told: list[Progress] = []
    Loop(Work(world, lambda _: 0.01), world, QUICK, told.append).measure()
    assert 4 <= len(told) <= 5
    assert [p.done for p in told] == sorted(p.done for p in told)


@pytest.mark.parametrize("budget", [5, 8, 24, 40, 60, 200, None])
def test_what_is_done_once_at_the_beginning_is_in_no_window(
    world: World, budget: int | None
) -> None:
    """As capturing a graph in the fourth step, which is far longer than a step."""
    work = Work(world, lambda done: 0.2 if done == 3 else 0.03 if done < 3 else 0.014, budget)
    work.settling = 4
    window = one_window(work)
    slow = [s for s in window.unit_s if s > 0.02]
    # Of five declared steps three are measured, whatever they hold.
    assert len(slow) == (2 if budget == 5 else 0)
    assert budget is None or work.done == budget


def test_long_undeclared_units_settle_before_the_window_too(world: World) -> None:
    work = Work(world, lambda done: 9.0 if done == 3 else 6.0)
    work.settling = 4
    assert max(one_window(work, PROFILES["smoke"]).unit_s) == pytest.approx(6.0, rel=1e-3)


class Paused(Work):
    """Declared work with interludes of five seconds, in which the device is busy as well."""

    def __init__(self, world: World, budget: int, interludes: list[int], unit_s: float = 0.1):
        super().__init__(world, lambda _: unit_s, budget)
        self.interludes = {at: lambda: self._interlude() for at in interludes}
        self.seen: list[tuple[int, float]] = []

    def _interlude(self) -> None:
        assert self.world.now >= self.world.free, "the device was not drained"
        self.seen.append((self.done, self.world.now))
        self.world.work(5.0)
        self.world.drain()

    def window(self) -> Window:
        (window,) = Loop(self, self.world, QUICK, interludes=self.interludes).measure()
        return window


@pytest.mark.parametrize("every", [1, 2, 3, 7, 10, 40, 100])
def test_interludes_come_when_due_and_are_in_no_unit_and_no_window(
    world: World, every: int
) -> None:
    due = list(range(every, 101, every))
    work = Paused(world, 100, due)
    window = work.window()
    assert work.done == 100
    assert [done for done, _ in work.seen] == due
    assert window.units >= 1
    assert window.unit_s == pytest.approx((0.1,) * window.units, rel=1e-3)
    assert window.seconds == pytest.approx(0.1 * window.units, abs=1e-3)
    for _, moment in work.seen:
        assert moment + 5.0 < window.start_ns / 1e9 + 1e-6 or moment > window.end_ns / 1e9 - 1e-6
    assert window.warmup_s == pytest.approx(0.1 * (window.warmup_units - 1), abs=1e-3)


def test_the_window_is_the_longest_stretch_between_interludes(world: World) -> None:
    work = Paused(world, 200, [60, 180])
    window = work.window()
    assert window.units == 120 - SETTLE_UNITS
    first = work.seen[0][1] + 5.0 + SETTLE_UNITS * 0.1
    assert window.start_ns / 1e9 == pytest.approx(first, abs=1e-3)
    assert window.end_ns / 1e9 == pytest.approx(work.seen[1][1], abs=1e-3)


def test_counts_of_a_window_are_those_of_its_own_units(world: World) -> None:
    """They are asked for before anything else is done."""
    work, asked = Paused(world, 200, [60, 180]), []

    def counts(window: str, units: int) -> dict[str, float]:
        asked.append((work.done, units))
        return {"tokens": float(units)}

    work.counts = counts  # type: ignore[method-assign]
    work.window()
    assert asked == [(180, 120 - SETTLE_UNITS)]


def test_what_an_interlude_compiles_is_not_the_windows(world: World) -> None:
    work = Paused(world, 200, [60, 180])
    compile_more = work._interlude

    def interlude() -> None:
        compile_more()
        work.compiled_at.add(work.done - 1)

    work._interlude = interlude  # type: ignore[method-assign]
    assert work.window().recompiles == 0


def test_work_that_fails_outside_the_window_ends_there(world: World) -> None:
    work = Paused(world, 200, [60, 180])
    work.fails_at = 185
    with pytest.raises(ArithmeticError):
        work.window()
    assert work.done <= 200
    assert gc.isenabled()


def test_progress_counts_every_unit_of_declared_work(world: World) -> None:
    told: list[Progress] = []
    work = Paused(world, 300, [100])
    Loop(work, world, QUICK, told.append, work.interludes).measure()
    assert [p.done for p in told] == sorted(p.done for p in told)
    assert (told[-1].total, max(p.done for p in told) > 200) == (300, True)
