"""The loop in which work, clock and meters meet: cold call, warm-up, steady window.

A *unit* is the smallest repeated piece of work (an optimizer step, a prefill, one decode
step). For each kind of window a point goes through

1. the cold call, timed alone: it holds compilation and first allocations;
2. warm-up in blocks, until two consecutive blocks agree (median within 2 %, quartiles
   within 5 %) and nothing was compiled in the last one, or until the cap;
3. the steady window: the device is drained, the clock read, units are issued without
   draining in between, the device is drained, the clock read.

Inside a window each unit gets a mark on the device's timeline, and Python never runs more
than two units ahead, so the window ends when its time has passed on the device and not
when Python believes so. In a window that only checks others it is never ahead: a request
that is asked for while the one before still runs would hide the time that Python needs.
Nothing else happens there: no printing, no garbage collection, no meter in this process.

What exceeds the protocol's cap is cut, never below three units (two in a window that only
checks others). A window that cannot do three is left out, with its reason, and the others are
measured; a point without any is a timeout, and the trial goes on with the next. Work with a
declared number of units (training steps) does exactly that many: warm-up and window are ranges
of them.

Declared work may have *interludes*: calls that are due after so many units, and that no
clock is to see. What they do is the caller's business; here they are only kept apart. The
device is drained before one, no window spans one, and the window is the longest stretch of
units after warm-up without any. The units around it are done untimed. The other way, to
stop the clock and go on, would add up pieces: joules and samples between two moments
belong to the units of a window only if nothing else ran between these moments.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from efficientllm import clock
from efficientllm.clock import Timeline
from efficientllm.record import Window
from efficientllm.spec.protocol import Limits
from efficientllm.steady import MIN_UNITS, agree, brief, in_vain, longest_stretch, sufficient

AHEAD = 2
"""Units that Python may be ahead of the device."""

LONGEST_BLOCK = 20
BLOCK_SECONDS = 0.5
WARMUP_SHARE = 0.25
"""At most this part of a window's time, or of a declared number of units, is warm-up."""


class Work(Protocol):
    """What `measure` asks of a workload; satisfied structurally."""

    @property
    def windows(self) -> tuple[str, ...]:
        """Kinds of window at a point, in order."""

    @property
    def brief(self) -> frozenset[str]:
        """Windows that only check others: a handful of units is enough for them."""

    @property
    def budget(self) -> int | None:
        """Units the work declares and must do exactly, or None."""

    @property
    def settling(self) -> int:
        """Units at the beginning that also do what is done once, and so are in no window."""

    def unit(self, window: str) -> None:
        """Issue one unit; may return before the device is done."""

    def check(self) -> None:
        """Raise if a unit that has finished went wrong (a loss that is not finite)."""

    def counts(self, window: str, units: int) -> dict[str, float]:
        """Raw totals of the last `units` units (tokens, samples, pairs ...)."""

    def compilations(self) -> int:
        """Graphs compiled so far in this process; a change inside a window voids it."""


class PointTimeout(RuntimeError):
    """Three units do not fit under the protocol's cap, in any window of the point."""


class _TooSlow(Exception):
    """Three units of a window do not fit."""


class Progress(NamedTuple):
    """What a person waiting wants to know."""

    window: str
    done: int
    total: int


class _Block(NamedTuple):
    seconds: list[float]
    compiled: bool


class Loop:
    """Measures the windows of one point."""

    def __init__(
        self,
        work: Work,
        timeline: Timeline,
        limits: Limits,
        progress: Callable[[Progress], None] = lambda _: None,
        interludes: Mapping[int, Callable[[], None]] | None = None,
    ) -> None:
        self.work, self.timeline, self.limits = work, timeline, limits
        self.progress = progress
        self._interludes = interludes or {}
        """What is due after so many units of declared work."""
        self._done = 0
        self.left_out: dict[str, str] = {}
        """Windows that were not measured, and why."""
        self._start_ns = clock.now_ns()
        self._cold_s = 0.0

    def measure(self) -> list[Window]:
        """The windows of the point that fit, in the order the work names them."""
        windows = []
        for index, name in enumerate(self.work.windows):
            if name in self.work.brief and self.left_out:
                self.left_out[name] = "it checks windows that were left out"
                continue
            try:
                windows.append(self._window(index))
            except _TooSlow as error:
                self.left_out[name] = str(error)
        if not windows:
            raise PointTimeout(next(iter(self.left_out.values())))
        return windows

    def _window(self, index: int) -> Window:
        name = self.work.windows[index]
        share = self._share(index)
        (cold_s,) = self._timed_block(name, 1).seconds
        self._cold_s += cold_s  # compilation is paid once and is not the cap's business
        if name in self.work.brief:  # the windows before have warmed everything
            return self._steady(name, brief(cold_s, share), cold_s, [], True)
        budget = self.work.budget
        blocks, converged = self._warm_up(name, share, budget)
        warm = [s for block in blocks for s in block.seconds]
        typical = statistics.median(blocks[-1].seconds if blocks else [cold_s])
        if budget is None:
            self._untimed(name, self.work.settling)
            room = share - sum(warm) - typical * AHEAD  # what is under way when it stops
            stop = sufficient(self.limits, room)
            return self._steady(name, stop, cold_s, warm, converged)
        settled = min(self.work.settling, budget - MIN_UNITS)
        start, end = longest_stretch(max(self._done, settled), self._interludes, budget)
        self._untimed(name, start)
        window = self._steady(name, lambda units, _: units >= end - start, cold_s, warm, converged)
        self._untimed(name, budget)
        return window

    def _untimed(self, name: str, until: int) -> None:
        """Units that are in no window, with the interludes among them."""
        size = 1
        while self._done < until:
            seconds = self._timed_block(name, min(until - self._done, size)).seconds
            size = self._block_size(seconds[-1])
            self.progress(Progress(name, self._done, self.work.budget or 0))

    def _block_size(self, unit_s: float) -> int:
        """Units of about BLOCK_SECONDS, so that a sign of life is never far."""
        return max(1, min(LONGEST_BLOCK, round(BLOCK_SECONDS / max(unit_s, 1e-6))))

    def _before_interlude(self) -> int | None:
        """Units until the next interlude; None when there is none to come."""
        later = [at for at in self._interludes if at > self._done]
        return min(later) - self._done if later else None

    def _interlude(self) -> None:
        """Do what is due now; the device has been drained."""
        due = self._interludes.get(self._done)
        if due is not None:
            due()

    def _share(self, index: int) -> float:
        """A window's part of the cap: its share of what is left, and half its due at least."""
        count = len(self.work.windows)
        spent = clock.seconds_since(self._start_ns) - self._cold_s
        left = (self.limits.cap_seconds - spent) / (count - index)
        return max(left, self.limits.cap_seconds / (2 * count))

    def _must_fit(self, unit_s: float, share: float) -> None:
        if MIN_UNITS * unit_s > max(share, self.limits.cap_seconds / 2):
            raise _TooSlow(
                f"one unit takes {unit_s:.3g} s: three do not fit under the cap of"
                f" {self.limits.cap_seconds:.0f} s a point"
            )

    def _warm_up(self, name: str, share: float, budget: int | None) -> tuple[list[_Block], bool]:
        blocks: list[_Block] = []
        start = clock.now_ns()
        most = None if budget is None else max(0, min(int(budget * WARMUP_SHARE), budget - 4))
        probe = self._timed_block(name, 1) if most is None or most >= 1 else None
        if probe is None:
            return blocks, False
        blocks.append(probe)
        if budget is None:
            self._must_fit(probe.seconds[0], share)
        size = max(MIN_UNITS, self._block_size(probe.seconds[0]))
        while True:
            done = sum(len(block.seconds) for block in blocks)
            if most is not None and done + size > most:
                return blocks, False
            left = share * WARMUP_SHARE - clock.seconds_since(start)
            if left < 0 and 1 + done >= MIN_UNITS and budget is None:
                return blocks, False
            alone = budget is None and (left < 0 or in_vain(blocks[-1].seconds, size, left))
            blocks.append(self._timed_block(name, 1 if alone else size))
            if budget is not None:
                self.progress(Progress(name, self._done, budget))
            steady = len(blocks) > 2 and agree(blocks[-2].seconds, blocks[-1].seconds)
            if steady and not blocks[-1].compiled:
                return blocks, True

    def _timed_block(self, name: str, units: int) -> _Block:
        """At most so many units, up to the next interlude, which follows them untimed."""
        before = self.work.compilations()
        units = min(units, self._before_interlude() or units)
        marks = [self.timeline.mark()]
        for _ in range(units):
            self.work.unit(name)
            marks.append(self.timeline.mark())
        self.timeline.drain()
        self.work.check()
        block = _Block(self.timeline.seconds(marks), self.work.compilations() > before)
        self._done += units
        self._interlude()
        return block

    def _steady(
        self,
        name: str,
        enough: Callable[[int, float], bool],
        first_call_s: float,
        warm: list[float],
        converged: bool,
    ) -> Window:
        compiled = self.work.compilations()
        gc.collect()
        gc.disable()
        try:
            marks, start_ns, end_ns = self._run(name, enough)
        finally:
            gc.enable()
        self.work.check()
        unit_s = self.timeline.seconds(marks)
        window = Window(
            name=name,
            start_ns=start_ns,
            end_ns=end_ns,
            unit_s=tuple(round(s, 9) for s in unit_s),
            counts=self.work.counts(name, len(unit_s)),
            first_call_s=first_call_s,
            warmup_units=1 + len(warm),
            warmup_s=sum(warm),
            converged=converged,
            recompiles=self.work.compilations() - compiled,
        )
        self._done += len(unit_s)
        self._interlude()
        return window

    def _run(
        self, name: str, enough: Callable[[int, float], bool]
    ) -> tuple[list[object], int, int]:
        self.timeline.drain()
        start_ns = clock.now_ns()
        marks = [self.timeline.mark()]
        told = start_ns
        ahead = 0 if name in self.work.brief else AHEAD
        while not enough(len(marks) - 1, clock.seconds_since(start_ns)):
            self.work.unit(name)
            marks.append(self.timeline.mark())
            if len(marks) > ahead:
                self.timeline.reach(marks[-1 - ahead])
                self.work.check()
            if clock.now_ns() - told > 1_000_000_000:
                told = clock.now_ns()
                done = self._done + len(marks) - 1
                self.progress(Progress(name, done, self.work.budget or 0))
        self.timeline.drain()
        return marks, start_ns, clock.now_ns()
