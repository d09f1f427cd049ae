"""Who else keeps the processor busy while a trial is measured.

On a CPU every other process takes time from the one that is measured; beside a GPU a busy
host delays what Python asks of it. Read from /proc: the busy time of the processors that
this process may use (time stolen by a hypervisor included), less that of the worker and of all it
has started, which share the worker's session.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NamedTuple

from efficientllm import clock

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ROUNDED_S = 0.25
"""What rounding to ticks may add up to, over all processes of a session."""


class _Busy(NamedTuple):
    t_ns: int
    all_s: float
    own_s: float


class HostLoad:
    """Processors that others kept busy since the last read, as a number of them."""

    name = "host_load"
    device: Literal["host"] = "host"
    scope = "machine"
    columns = ("others_cpus",)
    period_s = 0.5

    def __init__(self, pid: int) -> None:
        self._sessions = {pid, os.getsid(0)}
        self._cpus = os.sched_getaffinity(0)
        self._last = self._busy()

    def read(self) -> tuple[float | None, ...] | None:
        now, last = self._busy(), self._last
        self._last = now
        seconds = (now.t_ns - last.t_ns) / 1e9
        if seconds <= 0:
            return None
        own, busy = now.own_s - last.own_s, now.all_s - last.all_s
        # An orphan that ends takes its time out of `own_s`, and one of another session that is
        # reaped here brings all of its own: what others did is then not known.
        known = 0 <= own <= busy + ROUNDED_S
        return (max(0.0, busy - own) / seconds if known else None,)

    def _busy(self) -> _Busy:
        return _Busy(clock.now_ns(), _processors(self._cpus), _sessions(self._sessions))


def _processors(cpus: set[int]) -> float:
    """Busy seconds of these processors since the machine started."""
    total = 0.0
    for line in (PROC / "stat").read_text("ascii").splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus:
            user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
            total += user + nice + system + irq + softirq + steal
    return total / TICKS_PER_S


def _sessions(leaders: set[int]) -> float:
    """Seconds that these sessions have computed: the live processes, and children they reaped."""
    total = 0
    for folder in PROC.glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended between the listing and the look
        if int(fields[3]) in leaders:
            total += sum(map(int, fields[11:15]))  # its own time, and that of children who ended
    return total / TICKS_PER_S
