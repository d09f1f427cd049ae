"""From a validation error to one sentence a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
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
    set_lines: Mapping[Path_, int | None] | None = None,
    root: type[BaseModel] = Case,
) -> str:
    """Every problem, one a line: file, line, key, what is wrong, what there is.

    `lines` are those of what was written, `set_lines` those of the axes that replaced
    parts of it (None: the command line). `root` is what was being read.
    """
    return "\n".join(
        _sentence(dict(problem), source, lines, prefix, set_lines or {}, root)
        for problem in error.errors(include_url=False)
    )


def _sentence(
    problem: dict[str, Any],
    source: str,
    lines: dict[Path_, int],
    prefix: Path_,
    set_lines: Mapping[Path_, int | None],
    root: type[BaseModel],
) -> str:
    path = (*prefix, *_as_written(problem, lines))
    what = _what(problem, root)
    key, colon, rest = what.partition(": ")
    if not path and colon and key in root.model_fields:  # a rule of the whole names its part
        path, what = (key,), rest
    return located(path, what, source, lines, set_lines)


def located(
    path: Path_,
    what: str,
    source: str,
    lines: dict[Path_, int],
    set_lines: Mapping[Path_, int | None],
) -> str:
    """What is wrong with a key, with the file, the line and the key in front."""
    shown = f"{dotted(path)}: " if path else ""
    return f"{_where(path, source, lines, set_lines)}: {shown}{what}"


def _where(
    path: Path_,
    source: str,
    lines: dict[Path_, int],
    set_lines: Mapping[Path_, int | None],
) -> str:
    """Where a path was written; for an expanded case the axis, and the base beside it."""
    base = next((lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in lines), None)
    above = [key for key in set_lines if path[: len(key)] == key]
    below = [key for key in set_lines if key[: len(path)] == path]
    if not above and not (below and path):
        return f"{source}:{base}" if base else source
    line = set_lines[max(above, key=len) if above else below[0]]
    if line is None:
        return "command line" + (f" (base on {source}:{base})" if base else "")
    return f"{source}:{line}" + (f" (base on line {base})" if base else "")


@cache
def _tags() -> frozenset[str]:
    """Every value of a `kind`, which pydantic uses as the tag of its union."""
    found: set[str] = set()
    for definition in Case.model_json_schema().get("$defs", {}).values():
        kind = definition.get("properties", {}).get("kind", {})
        found.update(kind.get("enum", [kind["const"]] if "const" in kind else []))
    return frozenset(found)


def _as_written(problem: dict[str, Any], lines: dict[Path_, int]) -> Path_:
    """The path as a person would write it.

    pydantic puts the tag of a union into it, and the index of a technique that was written
    as one word; nobody wrote either.
    """
    loc = problem["loc"]
    kept: list[str | int] = []
    for position, part in enumerate(loc):
        own = position == len(loc) - 1 and problem["type"] in ("extra_forbidden", "missing")
        if own or (*kept, part) in lines or not (isinstance(part, int) or part in _tags()):
            kept.append(part)
    return tuple(kept)


def _what(problem: dict[str, Any], root: type[BaseModel]) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return f"no such key{nearest(str(problem['loc'][-1]), _siblings(problem['loc'], root))}"
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


def _siblings(loc: tuple[str | int, ...], root: type[BaseModel]) -> list[str]:
    """Keys that the place of an unknown key does have."""
    node: dict[str, Any] = root.model_json_schema()
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
