"""Stand-ins that processes under test find by PYTHONPATH, with no hook in the package.

`lay_out` makes the folder that goes on that path. A stand-in for a library is found by
its name. One that changes a library is copied as `sitecustomize.py`, which Python imports
by itself when it starts.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent


def lay_out(
    folder: Path, *, customize: str | None = None, card: dict[str, Any] | None = None
) -> Path:
    """A folder for PYTHONPATH: a `sitecustomize` of that name, and a card with that scenario."""
    folder.mkdir(parents=True, exist_ok=True)
    if customize is not None:
        shutil.copy(HERE / f"{customize}.py", folder / "sitecustomize.py")
    if card is not None:
        shutil.copy(HERE / "pynvml.py", folder / "pynvml.py")
        (folder / "scenario.json").write_text(json.dumps(card), "utf-8")
    return folder


def card_of(folder: Path) -> ModuleType:
    """The card of a folder as a module of this process."""
    spec = importlib.util.spec_from_file_location("pynvml", folder / "pynvml.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.nvmlInit()
    return module


def put_on_path(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let this process and those it starts find the stand-ins of a folder."""
    monkeypatch.setenv("PYTHONPATH", str(folder))
    if (folder / "pynvml.py").exists():
        monkeypatch.setitem(sys.modules, "pynvml", card_of(folder))
