"""What has been written outlives a power cut once it is flushed to the disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Write a file that stands whole or as it was before; OSError, with its name, if it fails."""
    if path.exists() and not path.is_file():
        path.write_bytes(content)  # a pipe or a device
        return
    target = path.resolve()  # a link stays one
    beside = target.with_name(f".efficientllm-{os.getpid()}")
    try:
        beside.write_bytes(content)
        if target.exists():
            shutil.copymode(target, beside)
        beside.replace(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        beside.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, survive a power cut; OSError if it fails."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
