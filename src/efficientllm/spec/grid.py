"""The grid of a suite: axes, and the cases that their product gives, before validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import PurePath
from typing import Any, NamedTuple

from efficientllm.spec.document import Document, Path_, SpecError, dotted
from efficientllm.spec.model import model_from_name
from efficientllm.spec.overrides import Axis, Setting, repeated, split_key
from efficientllm.spec.text import text_from_name


class Draft(NamedTuple):
    """One expanded case before validation: lines of its base, and of what was set over it."""

    value: dict[str, Any]
    lines: dict[Path_, int]
    labels: tuple[str, ...]
    set_lines: dict[Path_, int | None]


def axes_of(document: Document, source: str) -> list[Axis]:
    """Each axis as its alternatives, each alternative as the settings it makes."""
    grid = document.value.get("grid") or []
    if not isinstance(grid, list):
        raise SpecError(f"{source}:{document.lines[('grid',)]}: grid: needs a list of axes")
    return [_axis(axis, ("grid", i), document.lines, source) for i, axis in enumerate(grid)]


def _axis(axis: Any, path: Path_, lines: dict[Path_, int], source: str) -> Axis:
    line = lines.get(path)
    try:
        if isinstance(axis, dict) and len(axis) == 1:
            ((name, values),) = axis.items()
            if isinstance(values, list) and values:
                key = split_key(name)
                if twice := repeated(values):
                    raise SpecError(f"{name}: {twice} stands there twice")
                where = [lines.get((*path, name, i), line) for i in range(len(values))]
                return [[Setting(key, v, w)] for v, w in zip(values, where, strict=True)]
        if isinstance(axis, list) and axis and all(isinstance(m, dict) and m for m in axis):
            return [
                [Setting(split_key(k), v, lines.get((*path, i, k), line)) for k, v in m.items()]
                for i, m in enumerate(axis)
            ]
    except SpecError as error:
        raise SpecError(f"{source}:{line}: {error}") from error
    raise SpecError(
        f"{source}:{line}: an axis is one `key: [values]`, or a list of mappings that set keys"
        " together"
    )


def expand(
    document: Document, axes: list[Axis], fixed: list[Setting], source: str
) -> Iterator[Draft]:
    """Every case of a block: the base, the fixed settings, one alternative of each axis."""
    base_lines = {path[1:]: n for path, n in document.lines.items() if path[:1] == ("base",)}
    labelled = [list(zip(axis, _labels(axis), strict=True)) for axis in axes]
    for combination in product(*labelled):
        value = _copy(document.value["base"])
        labels = tuple(label for _, label in combination)
        settings = [*fixed, *(s for alternative, _ in combination for s in alternative)]
        settings.sort(key=lambda setting: len(setting.key))  # a whole before its parts
        for setting in settings:
            _set(value, setting, source)
        yield Draft(value, base_lines, labels, {s.key: s.line for s in settings})


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _set(value: dict[str, Any], setting: Setting, source: str) -> None:
    *parents, last = setting.key
    target = value
    for depth, part in enumerate(parents):
        inner = target.get(str(part))
        if part == "model" and depth == 0:
            inner = model_from_name(inner)
        elif part == "data" and inner not in ("files", "hub"):
            inner = text_from_name(inner)
        if isinstance(inner, str):
            inner = {"kind": inner}
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            where = f"{source}:{setting.line}" if setting.line else source
            raise SpecError(f"{where}: {dotted(setting.key)}: {part} is not a mapping")
        target[str(part)] = inner
        target = inner
    target[str(last)] = setting.value


def _labels(axis: Axis) -> list[str]:
    """A label for each alternative; code of one's own bears its file's name where it must.

    So `custom:v1.py:A` is `A`, and beside `custom:v2.py:A` it is `v1-A`.
    """
    short = [_label(alternative, _label_of) for alternative in axis]
    return [
        _label(alternative, _longer) if short.count(label) > 1 else label
        for alternative, label in zip(axis, short, strict=True)
    ]


def _label(alternative: list[Setting], of: Callable[[Any], str]) -> str:
    return "-".join(of(setting.value) for setting in alternative)


def _longer(value: Any) -> str:
    if not (isinstance(value, str) and value.startswith("custom:")):
        return _label_of(value)
    file, _, name = value.removeprefix("custom:").rpartition(":")
    return f"{PurePath(file).stem}-{name}"


def _label_of(value: Any) -> str:
    if isinstance(value, dict):
        inner = [f"{k}{_label_of(v)}" for k, v in value.items() if k != "kind"]
        return "-".join([str(value.get("kind", "")), *inner]).strip("-")
    if isinstance(value, list):
        return "+".join(_label_of(item) for item in value)
    if isinstance(value, str) and value.startswith("custom:"):
        return value.rpartition(":")[2]  # of code of one's own, what it is called in its file
    if isinstance(value, str):
        return value.rstrip("/").rpartition("/")[2]  # of a path or a hub id, the name
    return "none" if value is None else str(value)
