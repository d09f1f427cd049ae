"""Trees of processes, read from /proc."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path


def descendants(pid: int) -> set[int]:
    """Living processes below one, through any number of sessions and groups."""
    parents = {child: parent for child in _all() if (parent := _parent(child)) is not None}
    found: set[int] = set()
    level = {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level} - found
        found |= level
    return found


def servers(pid: int) -> set[int]:
    """Fork servers below a process; their forks carry the same command line and are none."""
    looks = _alike(pid)
    return {child for child in looks if _parent(child) not in looks}


def forks(pid: int) -> set[int]:
    """What fork servers below a process have forked.

    Told apart by who is whose parent: numbers of processes start over at some time.
    """
    looks = _alike(pid)
    return {child for child in looks if _parent(child) in looks}


def alive(pids: Iterable[int]) -> set[int]:
    """Those that still run; a process that has ended and waits to be collected does not."""
    return {pid for pid in pids if _state(pid) not in ("", "Z", "X")}


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for something that should happen soon; fail with what did not."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)


def _alike(pid: int) -> set[int]:
    return {child for child in descendants(pid) if _looks_like_server(child)}


def _looks_like_server(pid: int) -> bool:
    try:
        return b"efficientllm.forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _all() -> set[int]:
    return {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}


def _fields(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _state(pid: int) -> str:
    fields = _fields(pid)
    return fields[0] if fields else ""


def _parent(pid: int) -> int | None:
    fields = _fields(pid)
    return int(fields[1]) if fields else None
