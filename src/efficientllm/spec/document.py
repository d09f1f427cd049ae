"""YAML as people mean it: YAML 1.2 core types, one document or several, nothing clever.

PyYAML resolves scalars by YAML 1.1 (`1e-5` is a string, `no` is false, `12:30` is 750,
`010` is 8) and lets a later key silently replace an earlier one. Here its parser is kept
and its resolution is not. Anchors, aliases, tags, tabs and duplicate keys are refused,
because a study must read the same to everybody. Every value keeps its line, so that an
error can say where it stands.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

MAX_BYTES = 1 << 18
MAX_DEPTH = 32
MAX_EVENTS = 20_000
"""What the parser may meet in one file; more takes it longer than anybody wants to wait."""

_NULL = re.compile(r"^(?:null|Null|NULL|~|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?[0-9]+$")
_FLOAT = re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$")
_NOT_FINITE = re.compile(r"^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$")

Path_ = tuple[str | int, ...]


class SpecError(ValueError):
    """Something a user wrote cannot be used; the text says where, what and what to do."""


class Document(NamedTuple):
    """One YAML document: plain values and the line of each, by path."""

    value: Any
    lines: dict[Path_, int]


def read(path: Path) -> list[Document]:
    """Parse a file; every error names the file."""
    if path.exists() and not path.is_file():
        raise SpecError(f"{path}: not a file")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise SpecError(f"{path}: {size} bytes; a suite has at most {MAX_BYTES}")
        raw = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    return parse(text, str(path))


def parse(text: str, source: str) -> list[Document]:
    """Parse YAML text into documents, or raise SpecError with file and line."""
    if text.startswith("\ufeff"):
        raise SpecError(f"{source}:1: starts with a byte-order mark; save it without one")
    for number, line in enumerate(text.splitlines(), 1):
        if "\t" in line[: len(line) - len(line.lstrip())]:
            raise SpecError(f"{source}:{number}: indented with a tab; use spaces")
    try:
        _refuse_clever_features(text, source)
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise SpecError(f"{source}{line}: not YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = f":{text.count(chr(10), 0, error.position) + 1}"
        sign = f"U+{error.character:04X}"
        raise SpecError(f"{source}{line}: not YAML: {sign} has no place in a text") from error
    return [_document(node, source) for node in nodes if node is not None]


def scalar(text: str) -> Any:
    """The value of a plain (unquoted) scalar under YAML 1.2's core schema."""
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text.lower() == "true"
    if _INT.match(text):
        if len(text) > 40:
            raise ValueError("an integer of more than 40 digits")
        return int(text)
    if _FLOAT.match(text):
        return float(text)
    if _NOT_FINITE.match(text):
        raise ValueError(f"{text} is not a finite number")
    return text


def _refuse_clever_features(text: str, source: str) -> None:
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if number > MAX_EVENTS:
            raise SpecError(f"{source}:{line}: more than {MAX_EVENTS} values; divide the file")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise SpecError(f"{source}:{line}: anchors and aliases are not used here; repeat it")
        if tag := getattr(event, "tag", None):
            raise SpecError(f"{source}:{line}: tags such as {tag} are not used here")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise SpecError(f"{source}:{line}: nested more than {MAX_DEPTH} deep")


def _document(node: yaml.Node, source: str) -> Document:
    lines: dict[Path_, int] = {}
    return Document(_value(node, (), lines, source), lines)


def _value(node: yaml.Node, path: Path_, lines: dict[Path_, int], source: str) -> Any:
    line = node.start_mark.line + 1
    lines[path] = line
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, i), lines, source) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, lines, source)
    assert isinstance(node, yaml.ScalarNode)
    if node.style is not None:  # quoted or block: always a string
        return node.value
    try:
        return scalar(node.value)
    except ValueError as error:
        raise SpecError(f"{source}:{line}: {dotted(path)}: {error}") from error


def _mapping(
    node: yaml.MappingNode, path: Path_, lines: dict[Path_, int], source: str
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise SpecError(f"{source}:{line}: a key must be a word")
        key = key_node.value
        if key in result:
            first = lines[(*path, key)]
            raise SpecError(f"{source}:{line}: {key} stands here and on line {first}")
        result[key] = _value(value_node, (*path, key), lines, source)
        lines[(*path, key)] = line
    return result


def dotted(path: Path_) -> str:
    """A path as people write it: `workload.points.batch`."""
    return ".".join(str(part) for part in path) or "(top)"
