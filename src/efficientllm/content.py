"""What files hold, as a digest: a path says where something was, not what it was.

Digests of large files are remembered by path, size and time of change, so planning stays fast.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from efficientllm.durable import replace
from efficientllm.spec.document import SpecError

TEXT_FILES = (".txt", ".md", ".jsonl", ".zst", ".parquet")
"""Endings of what counts in a folder of text."""


def digest_of(path: Path, suffixes: tuple[str, ...]) -> str:
    """SHA-256 over names and contents of a file, or of a folder's files with these suffixes.

    Raises SpecError where there is nothing.
    """
    if not path.exists():
        raise SpecError(f"{path}: there is nothing at this path")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    total = hashlib.sha256()
    for file in files:
        if file == path or file.name.endswith(suffixes):
            relative = file.name if file == path else file.relative_to(path).as_posix()
            total.update(f"{relative}\0{_file_digest(file)}\n".encode())
    return total.hexdigest()


def _file_digest(path: Path) -> str:
    stat = path.stat()
    if stat.st_size < 1 << 20:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    known = _known_digests()
    if key not in known:
        with path.open("rb") as file:
            known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        _remember(known)
    return known[key]


def _cache_file() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "efficientllm" / "digests.json"


def _known_digests() -> dict[str, str]:
    try:
        known = json.loads(_cache_file().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(known: dict[str, str]) -> None:
    path = _cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, json.dumps(known).encode())
    except OSError:
        return  # only speed is lost
