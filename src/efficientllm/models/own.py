"""A user's own code: one name out of one file, run as whatever it is.

A case carries the file's SHA-256, taken when it was planned. What is run here is what was
planned or nothing: a file that has changed since is refused. Nothing of the file's folder is
put on the import path, because only the file itself is identified by its digest.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

from efficientllm.record import Unsupported

_PREFIX = "efficientllm_own_"
"""Modules made of users' files are called so, and with them `__module__` of their classes."""

THEIRS = (Exception, SystemExit)
"""What a user's code may raise: leaving the process is one more way to fail."""


class OwnCode(NamedTuple):
    """What a name stands for in a file, and the file's text."""

    found: Any
    source: str


def load(file: str, name: str, sha256: str) -> OwnCode:
    """Run a file and take a name out of it.

    Raises Unsupported when the file is gone, has changed, cannot be run or has no such name.
    """
    try:
        content = Path(file).expanduser().read_bytes()
    except OSError as error:
        raise Unsupported(f"{file}: cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise Unsupported(f"{file}: has changed since the case was planned; run again")
    module = ModuleType(_PREFIX + sha256[:16])
    module.__file__ = file
    sys.modules[module.__name__] = module  # dataclasses and pickle look a class's module up
    try:
        exec(compile(content, file, "exec"), module.__dict__)
    except THEIRS as error:
        raise Unsupported(f"{file}: cannot be run: {told(error)}") from error
    if not hasattr(module, name):
        raise Unsupported(f"{file}: has no {name}")
    return OwnCode(getattr(module, name), content.decode("utf-8", "replace"))


def load_module(file: str, name: str, sha256: str) -> OwnCode:
    """Run a file and take a `torch.nn.Module` class out of it; raises as `load` does."""
    code = load(file, name, sha256)
    if not (isinstance(code.found, type) and issubclass(code.found, nn.Module)):
        raise Unsupported(f"{file}: {name} is no class of torch.nn.Module")
    return code


def told(error: BaseException) -> str:
    """An exception in one line, with the last line of a user's file that it came through."""
    line = line_of(error)
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" + (f" (its line {line})" if line else "")


def line_of(error: BaseException) -> int | None:
    """The last line of a user's file that an exception came through; None if it met none."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__", "")).startswith(_PREFIX):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def is_own(module: nn.Module) -> bool:
    """Whether a module's class stands in a user's file: what it initialises itself stays."""
    return type(module).__module__.startswith(_PREFIX)
