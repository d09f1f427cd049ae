"""From a validation error to one sentence a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from efficientllm.spec.case import Case
from efficientllm.spec.document import Path_, dotted


def nearest(word: str, names: Iterable[str]) -> str:
    """`; did you mean X?`, or the list of what there is when nothing is near."""
    known = list(names)
    near = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there is {', '.join(known[:12])}" if known else ""


def explain(
    error: ValidationError,
    source: str,
    lines: dict[Path_, int],
    *,
    prefix: Path_ = (),
    axis_lines: dict[Path_, int] | None = None,
) -> str:
    """Every problem of a case, one a line: file, line, key, what is wrong, what there is."""
    return "\n".join(
        _sentence(dict(problem), source, lines, prefix, axis_lines or {})
        for problem in error.errors(include_url=False)
    )


def _sentence(
    problem: dict[str, Any],
    source: str,
    lines: dict[Path_, int],
    prefix: Path_,
    axis_lines: dict[Path_, int],
) -> str:
    path = (*prefix, *_without_tags(problem["loc"], lines))
    where = source
    line = _line(path, lines)
    if line:
        where += f":{line}"
    axis_line = _line(path, axis_lines, exact=False)
    base_line = _line(path[:1], lines)
    if axis_line and base_line and axis_line != base_line:
        where += f" (base on line {base_line})"
    return f"{where}: {dotted(path)}: {_what(problem)}"


def _line(path: Path_, lines: dict[Path_, int], *, exact: bool = False) -> int | None:
    """The line of a path, or of the nearest thing that contains it."""
    for end in range(len(path), 0 if not exact else len(path) - 1, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return None


@cache
def _tags() -> frozenset[str]:
    """Every value of a `kind`, which pydantic uses as the tag of its union."""
    found: set[str] = set()
    for definition in Case.model_json_schema().get("$defs", {}).values():
        kind = definition.get("properties", {}).get("kind", {})
        found.update(kind.get("enum", [kind["const"]] if "const" in kind else []))
    return frozenset(found)


def _without_tags(loc: tuple[str | int, ...], lines: dict[Path_, int]) -> Path_:
    """pydantic puts the tag of a union into the path; nobody wrote it there."""
    kept: list[str | int] = []
    for part in loc:
        written = (*kept, part) in lines
        if part in _tags() and not written:
            continue
        kept.append(part)
    return tuple(kept)


def _what(problem: dict[str, Any]) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return f"no such key{nearest(str(problem['loc'][-1]), _siblings(problem['loc']))}"
    if kind == "union_tag_invalid":
        known = [name.strip(" '") for name in context["expected_tags"].split(",")]
        return f"no kind is called {context['tag']!r}{nearest(context['tag'], known)}"
    if kind == "union_tag_not_found":
        return "needs a `kind:`"
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(context["error"])
    given = problem.get("input")
    shown = f" (got {given!r:.60})" if not isinstance(given, dict | BaseModel) else ""
    message = str(problem["msg"])
    return message[:1].lower() + message[1:] + shown


def _siblings(loc: tuple[str | int, ...]) -> list[str]:
    """Keys that the place of an unknown key does have."""
    node: dict[str, Any] = Case.model_json_schema()
    definitions = node.get("$defs", {})
    for part in loc[:-1]:
        node = _follow(node, part, definitions)
    return sorted(_resolve(node, definitions).get("properties", {}))


def _resolve(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in node:
        return dict(definitions[node["$ref"].rpartition("/")[2]])
    return node


def _follow(node: dict[str, Any], part: str | int, definitions: dict[str, Any]) -> dict[str, Any]:
    node = _resolve(node, definitions)
    if isinstance(part, int):
        return dict(node.get("items", {}))
    if part in node.get("properties", {}):
        return dict(node["properties"][part])
    mapping = node.get("discriminator", {}).get("mapping", {})
    if part in mapping:
        return {"$ref": mapping[part]}
    for option in node.get("anyOf", []):
        resolved = _resolve(option, definitions)
        if part in resolved.get("properties", {}) or "discriminator" in resolved:
            return dict(resolved)
    return {}
