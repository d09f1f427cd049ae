"""Which code of ours made a record: version, commit, and a digest of the source itself.

A commit can be looked up; the digest holds where there is no repository (an installed
wheel, a copy on another machine), and is the same wherever the same files are.
"""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
SOURCES = (".py", ".yaml")


def own_code() -> dict[str, str]:
    """Version and source digest; the commit too when it runs from a git checkout."""
    from efficientllm import __version__

    code = {"efficientllm": __version__, "source": source_digest(PACKAGE)}
    root = PACKAGE.parents[1]
    if not (root / ".git").exists():
        return code
    commit = _git(root, "rev-parse", "HEAD")
    if commit:
        changed = _git(root, "status", "--porcelain", "--", "src")
        code["commit"] = commit + ("-dirty" if changed else "")
    return code


@cache
def source_digest(package: Path) -> str:
    """16 hex digits over the names and contents of the package's files."""
    whole = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.suffix in SOURCES:
            name = path.relative_to(package).as_posix()
            whole.update(f"{name}:{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
