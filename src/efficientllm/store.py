"""The store: an append-only directory of records, safe to share between processes.

    <store>/<machine class>/<case_id>/<round>-<attempt>.json     one immutable file a trial
    <store>/artifacts/<case_id>/<seed>/                          weights that children need
    <store>/quarantine/                                          files that did not load
    <store>/work/                                                trials under way, leases, caches

A record is written once, by the one process that holds the lease of its (case, round):
to a temporary file in the same directory, flushed to the disk, linked under its name
(which fails if the name is taken), and the directory flushed. A kill at any moment
leaves a whole record or none. A file that is no record, or that lies where it does not
belong, is moved to quarantine, or skipped where nothing can be moved, and named in
`Store.refused`; symbolic links are not followed out of the store.

Two processes agree through leases (`lease.py`).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from efficientllm import clock
from efficientllm.durable import flush
from efficientllm.failure import StoreError as StoreError
from efficientllm.lease import Lease as Lease
from efficientllm.lease import take
from efficientllm.record import Record, Trial
from efficientllm.seal import CorruptRecord, from_bytes, to_bytes

_RESERVED = ("artifacts", "quarantine", "work")


class Entry(NamedTuple):
    """A record and the file it came from."""

    record: Record
    path: Path


ABANDONED_S = 86_400.0


class Store:
    """A directory of records. Opening one creates nothing until something is written.

    Raises StoreError where a file lies in its place.
    """

    def __init__(self, root: Path) -> None:
        if root.exists() and not root.is_dir():
            raise StoreError(f"{root}: a file, and a store is a folder: choose one with --store")
        self.root = root
        self.refused: dict[Path, str] = {}
        """Files that this object met and could not use, each with one line on it."""

    @property
    def work(self) -> Path:
        return self.root / "work"

    def clear_abandoned(self) -> None:
        """Remove trials' folders that runs have left in `work`, after a day without a word.

        A trial that is under way, on another host of a shared disk too, writes all the time.
        """
        for folder in self.work.glob("trial-*"):
            with suppress(OSError):
                newest = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
                if clock.wall_unix() - newest > ABANDONED_S:
                    shutil.rmtree(folder)

    def artifact(self, case_id: str, seed: int) -> Path:
        """Where the weights that a case made from a seed are kept."""
        return self.root / "artifacts" / safe_name(case_id) / str(int(seed))

    def entries(self) -> Iterator[Entry]:
        """Every record that loads, oldest file first; the rest is moved to quarantine."""
        return self._load(self._files())

    def of_case(self, case_id: str) -> list[Entry]:
        """The records of one case, on any machine class."""
        return list(self._load(sorted(self.root.glob(f"*/{safe_name(case_id)}/*.json"))))

    def names_of(self, case_id: str) -> tuple[str, ...]:
        """Names of a case's record files, to see whether anything is new."""
        found = self.root.glob(f"*/{safe_name(case_id)}/*.json")
        return tuple(sorted(f"{path.parent.parent.name}/{path.name}" for path in found))

    def path_of(self, machine: str, trial: Trial) -> Path:
        """Where a trial's record is, or will be."""
        folder = self.root / safe_name(machine) / safe_name(trial.case_id)
        return folder / f"{int(trial.round)}-{int(trial.attempt)}.json"

    def quarantined(self) -> list[tuple[Path, str]]:
        """Files that did not load, with the reason each was moved away."""
        reasons = self.root / "quarantine"
        return [
            (path, path.with_suffix(".reason").read_text("utf-8"))
            for path in sorted(reasons.glob("*.json"))
            if path.with_suffix(".reason").exists()
        ]

    def put(self, record: Record) -> Path:
        """Write a record for good; StoreError if it cannot be, or if its name is taken."""
        path = self.path_of(record.machine.name, record.trial)
        if _linked(path):
            raise StoreError(f"{path}: a symbolic link leads out of the store; remove it")
        try:
            new = not path.parent.exists()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_once(path, to_bytes(record))
            for folder in (path.parents[1], path.parents[2]) if new else ():
                flush(folder)
        except OSError as error:
            raise StoreError(_disk_message(path, error)) from error
        return path

    def lease(self, name: str) -> Lease | None:
        """The exclusive right to a name, or None while a living process holds it."""
        folder = self.work / "leases"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return take(folder / f"{safe_name(name)}.json")
        except OSError as error:
            raise StoreError(_disk_message(folder, error)) from error

    def _files(self) -> Iterator[Path]:
        try:
            classes = sorted(p for p in self.root.iterdir() if p.name not in _RESERVED)
        except FileNotFoundError:
            return
        for folder in classes:
            if folder.is_dir() and not folder.is_symlink():
                yield from sorted(folder.glob("*/*.json"))

    def _load(self, paths: Iterable[Path]) -> Iterator[Entry]:
        for path in paths:
            if _linked(path):
                continue
            try:
                yield Entry(self._read(path), path)
            except FileNotFoundError:
                continue
            except CorruptRecord as error:
                self._quarantine(path, str(error))
            except OSError as error:
                raise StoreError(f"{path}: cannot be read ({error.strerror})") from error

    def _read(self, path: Path) -> Record:
        record = from_bytes(path.read_bytes())
        if self.path_of(record.machine.name, record.trial) != path:
            raise CorruptRecord("a record of something else: it does not belong under this name")
        return record

    def _quarantine(self, path: Path, reason: str) -> None:
        """Move a file away; another process that reads the same store may be faster.

        Its reason is written first, so that no file lies there without one. Where the store
        cannot be written, reading must still be possible: the file is skipped.
        """
        folder = self.root / "quarantine"
        target = folder / f"{path.parent.name[:16]}-{path.stem}-{os.getpid()}-{clock.now_ns()}.json"
        try:
            folder.mkdir(exist_ok=True)
            target.with_suffix(".reason").write_text(f"{path.name}: {reason}\n", "utf-8")
            path.replace(target)
            self.refused[path] = f"{path}: moved to quarantine: {reason}"
        except FileNotFoundError:
            target.with_suffix(".reason").unlink(missing_ok=True)
        except OSError as error:
            with suppress(OSError):
                target.with_suffix(".reason").unlink(missing_ok=True)
            why = error.strerror
            self.refused[path] = f"{path}: skipped: {reason} (it cannot be moved: {why})"


def safe_name(name: str) -> str:
    """A name as one path component: no separators, no dots in front, at most 120 characters."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_.+") else "_" for c in name)
    kept = kept.lstrip(".")[:120]
    if not kept:
        raise StoreError(f"{name!r} cannot name a file")
    return kept


def write_once(path: Path, content: bytes) -> None:
    """Create a file whole and durable, or raise; FileExistsError if it is there already."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{clock.now_ns()}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


def require_space(root: Path, needed_bytes: int) -> None:
    """StoreError when the disk under the store has less than that free."""
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if free < needed_bytes:
        raise StoreError(
            f"{root}: {free / 2**20:.0f} MiB free, {needed_bytes / 2**20:.0f} MiB needed; make room"
            " or choose another place with --store"
        )


def _linked(path: Path) -> bool:
    """Whether a record's file, or a folder between it and the store's root, is a link."""
    return any(part.is_symlink() for part in (path, *path.parents[:2]))


def _disk_message(path: Path, error: OSError) -> str:
    if error.errno == errno.EEXIST:
        return f"{path}: there is a record already, and records are never replaced"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path}: the disk is full; nothing was changed, make room and run again"
    return f"{path}: cannot be written ({error.strerror})"
