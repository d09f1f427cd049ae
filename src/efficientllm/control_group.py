"""The control group whose memory a process shares: what limits it, and who was ended for it.

Interface: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PROCESSES = Path("/proc")
HOST = Path("/proc/vmstat")


def limits() -> Iterator[int]:
    """Bytes that this process's control group, and those above it, may use: set limits only."""
    for folder in _folders("self"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            if limit := first_line(folder / name, r"(\d+)"):
                yield int(limit)


def kill_count(pid: int) -> Path:
    """The file that counts whom the kernel has ended for memory beside this process, and itself.

    That of its own group, which other groups of the host do not touch; the host's where no
    group keeps one. To be asked for while the process lives; of a dead one, ours is taken.
    """
    folders = _folders(str(pid)) or _folders("self")
    names = ("memory.events", "memory.oom_control")
    counts = [folder / name for folder in folders for name in names]
    return next((path for path in counts if _kills(path)), HOST)


def memory_kills(count: Path) -> int:
    """How many processes a file of `kill_count` has counted; 0 when it cannot be read."""
    return int(_kills(count) or 0)


def first_line(path: Path, pattern: str) -> str | None:
    """What the pattern's group matches as a whole line of a file; None when nothing does."""
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return None
    found = re.search(rf"^{pattern}$", text, re.MULTILINE)
    return found.group(1) if found else None


def _kills(path: Path) -> str | None:
    return first_line(path, r"oom_kill (\d+)")


def _folders(process: str) -> list[Path]:
    """A process's memory group and those above it, as they are mounted here; none of a dead one.

    A container may see its own group as the root of the mount and read a path from outside.
    """
    told = PROCESSES / process / "cgroup"
    first = first_line(told, r"\d+:(?:[^:]+,)?memory(?:,[^:]+)?:/(.*)")
    root = ROOT / "memory" if first is not None else ROOT
    inside = first if first is not None else first_line(told, r"0::/(.*)")
    if inside is None:
        return []
    own = root if ".." in Path(inside).parts else root / inside
    return [folder for folder in (own, *own.parents) if folder.is_relative_to(root)]
