"""A training under way as one file, from which another process goes on to the same losses.

The tensors (what learns, the optimizer's moments, losses, random number generators) are the
body of a safetensors file, the rest is JSON in its header; nothing in it can run code. It is
one file because renaming one makes it whole or absent, which two could not be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from efficientllm.durable import flush

FACTS = "facts"


class Snapshot(NamedTuple):
    """What the steps to come depend on, beside the case and its seed."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class Unreadable(ValueError):
    """A file that is no snapshot."""


def save(snapshot: Snapshot, path: Path) -> None:
    """Write a snapshot whole and durable in the place of an earlier one, or raise OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    tensors = {name: t.detach().cpu().contiguous() for name, t in snapshot.tensors.items()}
    try:
        _write(tensors, {FACTS: json.dumps(snapshot.facts, allow_nan=False)}, part)
        flush(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    flush(path.parent)


def _write(tensors: dict[str, Tensor], header: dict[str, str], path: Path) -> None:
    try:
        save_file(tensors, path, metadata=header)
    except SafetensorError as error:  # a full disk is one of these
        raise OSError(f"{path.name}: the checkpoint cannot be written ({error})") from error


def load(path: Path) -> Snapshot | None:
    """The snapshot at a path, on the host; None without one, Unreadable if it is something else."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()[FACTS])
            return Snapshot({name: file.get_tensor(name) for name in file.keys()}, facts)  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"{path.name}: no checkpoint of a training ({error})") from error
