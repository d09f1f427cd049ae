"""Arrays that take long to make, kept on disk between trials: tokens, and what was selected.

Tens of trials read the same text with the same tokenizer, and 36 million tokens take a
CPU half a minute. A file is named after the digest of everything that decides its content,
is written beside its place and renamed, and ends in the SHA-256 of what stands before it,
so one that is torn, cut or altered is made again and never read. It is mapped into memory,
not copied. The least recently used files go when there are more than KEPT_BYTES.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efficientllm.durable import flush
from efficientllm.spec.canonical import digest

Numbers = NDArray[np.uint32]

KEPT_BYTES = 16 << 30
_SEAL = 8
"""Numbers of 32 bits that a SHA-256 takes."""


def kept(folder: Path | None, kind: str, key: list[Any], make: Callable[[], Numbers]) -> Numbers:
    """The array [n] that `make` gives, from the folder if it was made before with this key.

    `key` holds JSON values. Without a folder, or where it cannot be written, nothing is kept.
    """
    if folder is None:
        return make()
    path = folder / f"{kind}-{digest([kind, *key])[:32]}.npy"
    found = _read(path)
    if found is None:
        found = make()
        _write(path, found)
    return found


def _read(path: Path) -> Numbers | None:
    """A file's numbers, if they are what was written."""
    try:
        whole = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if whole.ndim != 1 or whole.dtype != np.uint32 or len(whole) < _SEAL:
        return None
    numbers, seal = whole[:-_SEAL], whole[-_SEAL:]
    if _seal(numbers).tobytes() != seal.tobytes():
        return None
    try:
        os.utime(path)  # the time of its last use
    except OSError:
        pass
    return numbers


def _write(path: Path, numbers: Numbers) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    try:
        with temporary.open("wb") as file:
            np.save(file, np.concatenate([numbers, _seal(numbers)]), allow_pickle=False)
        flush(temporary)
        temporary.replace(path)
        _make_room(path)
    except OSError:  # a full disk costs time and no trial
        temporary.unlink(missing_ok=True)


def _seal(numbers: Numbers) -> Numbers:
    content = hashlib.sha256(np.ascontiguousarray(numbers).view(np.uint8).data)
    return np.frombuffer(content.digest(), dtype=np.uint32)


def _make_room(newest: Path) -> None:
    """Remove what was not used for longest, until the rest fits; never what was just made."""
    files = sorted(newest.parent.glob("*.npy"), key=lambda path: path.stat().st_mtime_ns)
    size = sum(path.stat().st_size for path in files)
    for path in files:
        if size <= KEPT_BYTES:
            return
        if path != newest:
            size -= path.stat().st_size
            path.unlink(missing_ok=True)
