"""Meters: observers that know nothing of workloads.

A sampled meter is read by the sampler process; it gives one row of numbers at a time and
says how often that is worth doing. The allocator's own counters are read in the worker.
"""

from __future__ import annotations

from typing import Literal, Protocol

READINGS = "readings.jsonl"
"""What the sampler writes in a trial's folder."""


class Meter(Protocol):
    """One thing that can be read again and again."""

    @property
    def name(self) -> str:
        """What is measured, the same for every kind of device."""

    @property
    def device(self) -> Literal["gpu", "host"]:
        """What is read."""

    @property
    def scope(self) -> str:
        """What the number covers: board, module, package, device, process."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the numbers in a row, with their units."""

    @property
    def period_s(self) -> float:
        """Seconds between two reads that make sense."""

    def read(self) -> tuple[float | None, ...] | None:
        """One value for each column, or None when nothing new is there to note."""


class MeterGone(RuntimeError):
    """The meter stopped answering for good (device lost); the text says why."""
