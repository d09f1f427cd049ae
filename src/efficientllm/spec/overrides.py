"""`key=value` on the command line: settings, axes and what concerns the suite as a whole.

A comma list is an axis, under `points.` it makes points. `steps=10` means the workload's
steps, `protocol=standard` and `protocol.trials=5` the suite's protocol.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from efficientllm.spec.canonical import Spec
from efficientllm.spec.case import Case
from efficientllm.spec.document import Path_, SpecError, dotted, parse
from efficientllm.spec.problems import nearest
from efficientllm.spec.workload import Finetune, Generate, Pretrain

HEADER = ("suite", "question", "protocol")


class Setting(NamedTuple):
    """One key that is set to a value, and the line it stands on (none: the command line)."""

    key: Path_
    value: Any
    line: int | None


Axis = list[list[Setting]]


class Overrides(NamedTuple):
    """What the command line sets: single values, axes, and the suite's own header."""

    settings: tuple[Setting, ...]
    axes: tuple[Axis, ...]
    header: dict[str, Any]

    def for_workload(self, kind: str) -> Overrides:
        """The part that a block with this workload can take: `steps=10` is nothing to generate."""
        return self._replace(
            settings=tuple(s for s in self.settings if _takes(kind, s.key)),
            axes=tuple(axis for axis in self.axes if _takes(kind, axis[0][0].key)),
        )

    def keys(self) -> set[Path_]:
        """Every key that is set."""
        return {s.key for s in (*self.settings, *(axis[0][0] for axis in self.axes))}

    def naming(self) -> Overrides:
        """With model and technique as axes, so that they stand in the cases' names."""
        named = [s for s in self.settings if s.key in (("model",), ("technique",))]
        axes = ([[s]] for s in sorted(named, key=lambda s: s.key))
        rest = tuple(s for s in self.settings if s not in named)
        return self._replace(settings=rest, axes=(*axes, *self.axes))


def read_overrides(overrides: tuple[str, ...]) -> Overrides:
    """Split `key=value` into settings, axes (comma lists) and header values."""
    settings: list[Setting] = []
    axes: list[Axis] = []
    header: dict[str, Any] = {}
    for item in overrides:
        text, equals, value_text = item.partition("=")
        if not equals or not text:
            raise SpecError(f"{item!r}: settings are written key=value")
        key = _full_key(split_key(text))
        values = _values(value_text, item)
        if key[0] in HEADER:
            if len(values) > 1 or len(key) > 1 + (key[0] == "protocol"):
                raise SpecError(f"{item!r}: {key[0]} is one value for the whole suite")
            header[dotted(key)] = values[0]
        elif key[:2] == ("workload", "points") and len(key) > 2:
            settings.append(Setting(key, values, None))
        elif len(values) == 1:
            settings.append(Setting(key, values[0], None))
        elif twice := repeated(values):
            raise SpecError(f"{item!r}: {twice} stands there twice")
        else:
            axes.append([[Setting(key, value, None)] for value in values])
    return Overrides(tuple(settings), tuple(axes), header)


def repeated(values: list[Any]) -> str:
    """The first value that stands twice in a list, as it reads; empty where none does."""
    shown = [repr(value) for value in values]
    return next((text for i, text in enumerate(shown) if text in shown[:i]), "")


_CASE_KEYS = frozenset(Case.model_fields)
_WORKLOADS: dict[str, type[Spec]] = {
    "pretrain": Pretrain,
    "finetune": Finetune,
    "generate": Generate,
}
_WORKLOAD_KEYS = frozenset(key for kind in _WORKLOADS.values() for key in kind.model_fields)


def _takes(kind: str, key: Path_) -> bool:
    """Whether a workload of this kind has the key; keys outside the workload always fit."""
    if key[0] != "workload" or len(key) < 2 or kind not in _WORKLOADS:
        return True
    return key[1] in _WORKLOADS[kind].model_fields


def _full_key(key: Path_) -> Path_:
    """`steps=10` and `points.batch=1` mean the workload's; `protocol=` the suite's."""
    if key[0] in _CASE_KEYS or key[0] in HEADER:
        return key
    if key[0] not in _WORKLOAD_KEYS:
        known = [*sorted(_CASE_KEYS), *HEADER, *sorted(_WORKLOAD_KEYS)]
        raise SpecError(f"{dotted(key)}: no such setting{nearest(str(key[0]), known)}")
    return ("workload", *key)


def _values(text: str, item: str) -> list[Any]:
    """A comma list outside brackets and quotes; each part is a YAML value."""
    parts = re.findall(r"(?:[^,\[\]{}\"']|\[[^\]]*\]|\{[^}]*\}|\"[^\"]*\"|'[^']*')+", text)
    if ",".join(parts) != text:
        raise SpecError(f"{item!r}: a comma or a bracket too many, or a quote left open")
    return [_command_line_value(part, item) for part in parts] or [""]


def _command_line_value(part: str, item: str) -> Any:
    documents = parse(part, f"{item!r}")
    if len(documents) > 1:
        raise SpecError(f"{item!r}: one value, not {len(documents)} documents")
    return documents[0].value if documents else None


def split_key(text: str) -> Path_:
    """`a.b` as a path."""
    parts = tuple(str(text).split("."))
    if not all(parts):
        raise SpecError(f"{text!r} is no key; write it like model.preset")
    return parts


def not_overridden(axes: list[Axis], overridden: set[Path_]) -> list[Axis]:
    """Axes without the keys that the command line sets: its word is the last."""
    kept = []
    for axis in axes:
        left = [
            [s for s in settings if not any(s.key[: len(k)] == k for k in overridden)]
            for settings in axis
        ]
        if left == axis:
            kept.append(axis)
            continue
        values = [[(s.key, s.value) for s in settings] for settings in left]
        different = [left[i] for i in range(len(left)) if values[i] not in values[:i]]
        if any(different):
            kept.append(different)
    return kept
