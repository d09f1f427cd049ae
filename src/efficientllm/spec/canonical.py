"""What a spec is, and what makes two of them the same.

A spec is a frozen value: a plan for work, never the work itself. Two specs are the same
when they ask for the same work, so identity is taken from *content*: the SHA-256 of a
canonical JSON text in which

* keys are sorted and every field that equals its default is left out, so that a field
  added later with a default changes no released id (the golden table in
  `tests/golden/case_ids.json` holds this);
* every `kind` carries its `rev`, raised by hand when the meaning of that kind changes;
* fields marked with `local()` are left out: names and paths say where to look, not what
  was found there. What was found enters as a digest or a commit.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

T = TypeVar("T")


class Spec(BaseModel):
    """Base of every spec: frozen, closed to unknown keys, strict about types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    rev: ClassVar[int] = 1
    """Raised when the same fields come to mean different work."""


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Many = Annotated[tuple[T, ...], BeforeValidator(_as_tuple)]
"""A sequence; JSON and YAML write it as a list."""


def local(default: Any = None, **constraints: Any) -> Any:
    """A field that helps to find or name things and is no part of identity."""
    return Field(default=default, json_schema_extra={"identity": False}, **constraints)


def canonical(value: Any) -> Any:
    """The part of a spec that identifies it, as plain JSON values."""
    if isinstance(value, Spec):
        return _canonical_fields(value)
    if isinstance(value, tuple | list):
        return [canonical(item) for item in value]
    if isinstance(value, dict):
        return {key: canonical(item) for key, item in value.items()}
    return value + 0.0 if isinstance(value, float) else value  # -0.0 is 0.0


def _canonical_fields(spec: Spec) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, info in type(spec).model_fields.items():
        value = getattr(spec, name)
        extra = info.json_schema_extra
        if isinstance(extra, dict) and extra.get("identity") is False:
            continue
        if name == "kind":
            fields["kind"], fields["rev"] = value, spec.rev
        elif value != info.get_default(call_default_factory=True):
            fields[name] = canonical(value)
    return fields


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a spec or of plain JSON values."""
    text = json.dumps(
        canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.sha256(text.encode("ascii")).hexdigest()
