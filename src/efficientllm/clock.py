"""Time: the only module that reads a clock or makes a device event.

Two clocks, never mixed:

* `now_ns` is CLOCK_MONOTONIC. It never jumps, and it is the same for every process of
  one machine, so the sampler's readings and the worker's windows share one axis.
* `wall` says when something happened, for people. It is never subtracted.

A `Timeline` marks moments in the order of the *device's* work. On a GPU a mark is an
event on the current stream (resolution about 0.5 microseconds): Python returns long
before the device gets there, and reading a host clock would time the asking, not the
work. Totals still come from the host clock, with the device drained at both edges of a
window; `measure` compares the two.
"""

from __future__ import annotations

import itertools
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


def now_ns() -> int:
    """Nanoseconds on the machine's monotonic clock."""
    return time.monotonic_ns()


def seconds_since(start_ns: int) -> float:
    """Seconds from an earlier `now_ns` until now."""
    return (time.monotonic_ns() - start_ns) / 1e9


def sleep(seconds: float) -> None:
    """Do nothing for so long."""
    time.sleep(seconds)


def wall() -> str:
    """The time of day, UTC, to the second (ISO 8601)."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()


def wall_unix() -> float:
    """Seconds since 1970, for leases that machines without a common boot compare."""
    return time.time()


class Timeline(Protocol):
    """Marks on the device's own order of work."""

    def mark(self) -> Any:
        """Note this moment; costs the device nothing."""

    def reach(self, mark: Any) -> None:
        """Wait until the device has passed the mark, without draining what is queued behind."""

    def drain(self) -> None:
        """Wait until the device has nothing left to do."""

    def seconds(self, marks: list[Any]) -> list[float]:
        """Seconds between consecutive marks, after `drain`."""


class HostTimeline:
    """Where work is done when the call returns (a CPU), the host clock is the device's."""

    def mark(self) -> int:
        return time.perf_counter_ns()

    def reach(self, mark: int) -> None:
        pass

    def drain(self) -> None:
        pass

    def seconds(self, marks: list[int]) -> list[float]:
        return [(b - a) / 1e9 for a, b in itertools.pairwise(marks)]


class DeviceTimeline:
    """Events on the current stream of an accelerator."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> torch.Event:
        import torch

        event = torch.Event(self.device, enable_timing=True)
        event.record()
        return event

    def reach(self, mark: torch.Event) -> None:
        mark.synchronize()

    def drain(self) -> None:
        import torch

        torch.accelerator.synchronize(self.device)

    def seconds(self, marks: list[torch.Event]) -> list[float]:
        return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks)]


def timeline(device: torch.device) -> Timeline:
    """The timeline of a device."""
    return HostTimeline() if device.type == "cpu" else DeviceTimeline(device)
