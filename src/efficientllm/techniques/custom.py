"""A user's own technique: one function in one file, called with the model.

The function edits the model in place and returns nothing. It runs in the worker, as
whatever it is: a case with one needs `--allow-code`, its content is part of the case's
identity, and its source is kept in the record.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from efficientllm.models.own import load
from efficientllm.record import Reach, Unsupported
from efficientllm.spec.technique import Custom
from efficientllm.techniques.build import Build, bytes_by_kind, touched


def apply_custom(build: Build, technique: Custom) -> Reach:
    """Call the function and tell which parameters it changed."""
    code = load(technique.file, technique.function, technique.sha256)
    if not callable(code.found):
        raise Unsupported(f"{technique.file}: {technique.function} is no function")
    before, size = _states(build.model), sum(bytes_by_kind(build.model).values())
    code.found(build.model)
    changed = [name for name, state in _states(build.model).items() if before.get(name) != state]
    by_kind = touched(changed, build.model)
    return Reach(
        technique=f"custom:{technique.function}",
        parameters=sum(by_kind.values()),
        by_kind=by_kind,
        bytes_before=size,
        bytes_after=sum(bytes_by_kind(build.model).values()),
        source=code.source,
    )


def _states(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """What a change of a parameter would show in."""
    return {
        name: (p.dtype, p.shape, p.requires_grad, type(p.data), p.data_ptr(), p._version)
        for name, p in model.named_parameters()
    }
