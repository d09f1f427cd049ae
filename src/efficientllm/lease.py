"""Leases: which of several processes may do one thing.

A lease is a file made with O_EXCL that names its holder. It is stale when that process is
known dead on this boot, or when its heartbeat is older than two minutes (another machine
on a shared disk, or another container on this one). A stopped process still holds what it
holds.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from efficientllm import clock

STALE_SECONDS = 120.0
BEAT_SECONDS = 10.0


class Lease:
    """A held lease; `beat` keeps it alive, `release` gives it back."""

    def __init__(self, path: Path, holder: dict[str, Any]) -> None:
        self.path = path
        self._holder = holder

    def beat(self) -> None:
        if not self._mine():
            return
        self._holder["beat"] = clock.wall_unix()
        temporary = self.path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(self._holder), "utf-8")
        temporary.replace(self.path)

    def release(self) -> None:
        if self._mine():
            self.path.unlink(missing_ok=True)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Keep the lease alive from a thread that does nothing else."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(BEAT_SECONDS):
                try:
                    self.beat()
                except OSError:
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _mine(self) -> bool:
        """Whether nobody has taken it over, as another host may after two silent minutes."""
        try:
            now = json.loads(self.path.read_text("utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(now, dict) and {**now, "beat": 0} == {**self._holder, "beat": 0}

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _place() -> str:
    """This boot and this namespace of process ids: where a pid means something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process began, in ticks since boot, to tell a reused pid; empty for a dead one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


def take(path: Path) -> Lease | None:
    """A lease of that file, or None while a living process holds it."""
    holder = {
        "boot": _place(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "beat": clock.wall_unix(),
    }
    with _one_at_a_time(path.parent):
        if path.exists() and not _is_stale(path):
            return None
        path.unlink(missing_ok=True)
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(holder, file)
        except FileExistsError:  # a host of a shared disk without locks was faster
            return None
    return Lease(path, holder)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Judge and replace a lease without another process of this host in between.

    The lock falls with its process. Where the disk has no locks, O_EXCL still decides
    who takes a free lease; only two hosts breaking the same stale one could collide.
    """
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        yield


def _is_stale(path: Path) -> bool:
    try:
        holder = json.loads(path.read_text("utf-8"))
        age = clock.wall_unix() - float(holder["beat"])
    except FileNotFoundError:
        return True
    except (ValueError, KeyError, TypeError):
        # Being written this instant, or left half-written by a kill.
        return _age(path) > 10.0
    if holder.get("boot") == _place() and holder["boot"]:
        return bool(_started(int(holder["pid"])) != holder.get("started"))
    return age > STALE_SECONDS


def _age(path: Path) -> float:
    try:
        return clock.wall_unix() - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
