"""A user's own technique: one function in one file, called with the model.

The function edits the model in place and returns nothing. It runs in the worker, as
whatever it is: a case with one needs `--allow-code`, its content is part of the case's
identity, and its source is kept in the record.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from efficientllm.record import Reach, Unsupported
from efficientllm.spec.technique import Custom
from efficientllm.techniques.build import Build, bytes_by_kind, touched


def apply_custom(build: Build, technique: Custom) -> Reach:
    """Call the function and tell which parameters it changed."""
    content = Path(technique.file).expanduser().read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != technique.sha256:
        raise Unsupported(f"{technique.file}: has changed since the case was planned; run again")
    function = _function(technique)
    before, size = _states(build.model), sum(bytes_by_kind(build.model).values())
    function(build.model)
    changed = [name for name, state in _states(build.model).items() if before.get(name) != state]
    by_kind = touched(changed, build.model)
    return Reach(
        technique=f"custom:{technique.function}",
        parameters=sum(by_kind.values()),
        by_kind=by_kind,
        bytes_before=size,
        bytes_after=sum(bytes_by_kind(build.model).values()),
        source=content.decode("utf-8", "replace"),
    )


def _function(technique: Custom) -> Callable[[nn.Module], None]:
    spec = importlib.util.spec_from_file_location("custom_technique", technique.file)
    if spec is None or spec.loader is None:
        raise Unsupported(f"{technique.file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, technique.function, None)
    if not callable(function):
        raise Unsupported(f"{technique.file}: has no function {technique.function}")
    found: Callable[[nn.Module], None] = function
    return found


def _states(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """What a change of a parameter would show in."""
    return {
        name: (p.dtype, p.shape, p.requires_grad, type(p.data), p.data_ptr(), p._version)
        for name, p in model.named_parameters()
    }
