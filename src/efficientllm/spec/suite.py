"""A suite: a set of cases, written as `base:` (one case) and `grid:` (what varies).

    suite: attention
    question: What does sharing key and value heads cost and buy?
    protocol: standard
    base:
      model: backbone-0.5B
      workload: {kind: pretrain, sequence_length: 4096}
    grid:
      - model.attention: [mha, gqa, mqa]
      - - {model.preset: 0.5B, workload.batch: 8}
        - {model.preset: 1.5B, workload.batch: 4}

Each entry of `grid` is one axis: a dotted key with its values, or a list of mappings
that set several keys together. The cases are the product of all axes. A file may hold
several documents divided by `---`; each is such a block, and together they are the
suite, so a product in a later block can follow a case of an earlier one. Nothing else
expands: what is written is what runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from efficientllm.spec.case import Case
from efficientllm.spec.document import Document, Path_, SpecError, dotted, parse, read
from efficientllm.spec.model import Product, model_from_name
from efficientllm.spec.overrides import (
    HEADER,
    Setting,
    not_overridden,
    read_overrides,
    split_key,
)
from efficientllm.spec.problems import explain, nearest
from efficientllm.spec.protocol import AnyProtocol, Protocol
from efficientllm.spec.technique import label

MAX_CASES = 10_000
MAX_NAME = 200
BLOCK = ("base", "grid")


class Suite(NamedTuple):
    """Cases in the order written, each with a name of its own, and how to measure them."""

    name: str
    question: str
    protocol: Protocol
    cases: tuple[Case, ...]

    def case(self, name: str) -> Case:
        return next(case for case in self.cases if case.name == name)


class _Draft(NamedTuple):
    """One expanded case before validation: lines of its base, and of what was set over it."""

    value: dict[str, Any]
    lines: dict[Path_, int]
    labels: tuple[str, ...]
    set_lines: dict[Path_, int | None]


def builtin_names() -> list[str]:
    """Names of the suites that come with the package."""
    folder = resources.files("efficientllm") / "suites"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name[-5:] == ".yaml")


def load_suite(name: str, overrides: tuple[str, ...] = ()) -> Suite:
    """A suite of the package by name, or one in a file; overrides are `key=value`."""
    if name in builtin_names():
        text = (resources.files("efficientllm") / "suites" / f"{name}.yaml").read_text("utf-8")
        documents = parse(text, f"{name}.yaml")
        source = f"{name}.yaml"
    elif Path(name).suffix in (".yaml", ".yml"):
        documents, source = read(Path(name)), name
    else:
        hint = nearest(name, [*builtin_names(), "pretrain", "finetune", "generate"])
        raise SpecError(f"no suite or workload is called {name!r}{hint}")
    return _suite(documents, source, overrides)


def one_line_suite(workload: str, overrides: tuple[str, ...]) -> Suite:
    """`run generate model=ID technique=bf16,int4`: a suite without a file."""
    base: dict[str, Any] = {"workload": {"kind": workload}}
    block = Document({"base": base, "grid": []}, {})
    return _suite([block], "command line", overrides, name=workload)


def _suite(
    documents: list[Document], source: str, overrides: tuple[str, ...], name: str | None = None
) -> Suite:
    if not documents:
        raise SpecError(f"{source}: empty; a suite needs at least `base:`")
    settings, axes, header_settings = read_overrides(overrides)
    header = _header(documents[0], source, header_settings)
    cases: dict[str, Case] = {}
    total = 0
    overridden = {s.key for s in (*settings, *(s for axis in axes for s in axis[0]))}
    for document in documents:
        _check_block(document, source, first=document is documents[0])
        block_axes = [*not_overridden(_axes(document, source), overridden), *axes]
        total += math.prod(len(axis) for axis in block_axes)
        if total > MAX_CASES:
            raise SpecError(f"{source}: {total} cases or more; a suite has at most {MAX_CASES}")
        for draft in _expand(document, block_axes, settings, source):
            case = _validated(draft, cases, source)
            cases[case.name] = case
    title = _words(header.get("suite"), f"{source}: suite") or name or Path(source).stem
    question = _words(header.get("question"), f"{source}: question")
    set_lines = {split_key(key): None for key in header_settings}
    try:
        protocol: Protocol = TypeAdapter(AnyProtocol).validate_python(header["protocol"])
    except ValidationError as error:
        lines, prefix = documents[0].lines, ("protocol",)
        raise SpecError(
            explain(error, source, lines, prefix=prefix, set_lines=set_lines, root=Protocol)
        ) from error
    return Suite(title, question, protocol, tuple(cases.values()))


def _header(document: Document, source: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What concerns the suite as a whole; the command line's word is the last."""
    if not isinstance(document.value, dict):
        raise SpecError(f"{source}:1: a suite is a mapping with `base:`")
    header = {"protocol": "quick"} | {k: v for k, v in document.value.items() if k in HEADER}
    for key, value in settings.items():
        whole, dot, part = key.partition(".")
        before = header.get(whole)
        if dot:
            value = (before if isinstance(before, dict) else {"profile": before}) | {part: value}
        header[whole] = value
    return header


def _words(value: Any, where: str) -> str:
    """A line of text for people."""
    if isinstance(value, dict | list) or not str(value).isprintable():
        raise SpecError(f"{where}: needs a line of text")
    return "" if value is None else str(value)[:1000]


def _check_block(document: Document, source: str, *, first: bool) -> None:
    allowed = (*HEADER, *BLOCK) if first else BLOCK
    if not isinstance(document.value, dict):
        line = document.lines.get((), 1)
        raise SpecError(f"{source}:{line}: a block of a suite is a mapping with `base:`")
    for key in document.value:
        if key not in allowed:
            line = document.lines.get((key,), 1)
            raise SpecError(f"{source}:{line}: {key}: no such key{nearest(key, allowed)}")
    if not isinstance(document.value.get("base"), dict):
        line = document.lines.get(("base",), document.lines.get((), 1))
        raise SpecError(f"{source}:{line}: base: needs a mapping that describes one case")


def _axes(document: Document, source: str) -> list[list[list[Setting]]]:
    """Each axis as its alternatives, each alternative as the settings it makes."""
    grid = document.value.get("grid") or []
    if not isinstance(grid, list):
        raise SpecError(f"{source}:{document.lines[('grid',)]}: grid: needs a list of axes")
    return [_axis(axis, ("grid", i), document.lines, source) for i, axis in enumerate(grid)]


def _axis(axis: Any, path: Path_, lines: dict[Path_, int], source: str) -> list[list[Setting]]:
    line = lines.get(path)
    try:
        if isinstance(axis, dict) and len(axis) == 1:
            ((name, values),) = axis.items()
            if isinstance(values, list) and values:
                key = split_key(name)
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


def _expand(
    document: Document, axes: list[list[list[Setting]]], fixed: list[Setting], source: str
) -> Iterator[_Draft]:
    base_lines = {path[1:]: n for path, n in document.lines.items() if path[:1] == ("base",)}
    for combination in product(*axes):
        value = _copy(document.value["base"])
        labels = tuple(_label(alternative) for alternative in combination)
        settings = [*fixed, *(s for alternative in combination for s in alternative)]
        settings.sort(key=lambda setting: len(setting.key))  # a whole before its parts
        for setting in settings:
            _set(value, setting, source)
        yield _Draft(value, base_lines, labels, {s.key: s.line for s in settings})


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


def _label(alternative: list[Setting]) -> str:
    return "-".join(_label_of(setting.value) for setting in alternative)


def _label_of(value: Any) -> str:
    if isinstance(value, dict):
        inner = [f"{k}{_label_of(v)}" for k, v in value.items() if k != "kind"]
        return "-".join([str(value.get("kind", "")), *inner]).strip("-")
    if isinstance(value, list):
        return "+".join(_label_of(item) for item in value)
    return "none" if value is None else str(value)


def _validated(draft: _Draft, earlier: dict[str, Case], source: str) -> Case:
    value = draft.value
    try:
        case = Case.model_validate(value)
    except ValidationError as error:
        raise SpecError(explain(error, source, draft.lines, set_lines=draft.set_lines)) from error
    stem = case.name or case.stage
    name = "-".join([stem, *(re.sub(r"[^\w.:+@-]+", "_", text) for text in draft.labels)])
    where = f"{source}:{draft.lines[()]}" if () in draft.lines else source
    if len(name) > MAX_NAME:
        raise SpecError(f"{where}: a case would be called {name[:40]}...: more than {MAX_NAME}")
    if name in earlier:
        raise SpecError(f"{where}: two cases are called {name}; give a block's base a `name:`")
    case = case.model_copy(update={"name": name})
    return _with_parent(case, earlier, draft, source)


def _with_parent(case: Case, earlier: dict[str, Case], draft: _Draft, source: str) -> Case:
    """Embed the parent's id, so a product's id changes whenever its ancestry does."""
    if not isinstance(case.model, Product) or case.model.parent:
        return case
    names = [c.name for c in earlier.values() if c.makes_product]
    parent = earlier.get(case.model.of)
    if parent is None or not parent.makes_product:
        line = draft.set_lines.get(("model", "of")) or draft.lines.get(
            ("model", "of"), draft.lines.get(("model",), 0)
        )
        where = f"{source}:{line}" if line else source
        why = "declares no steps, so it makes no product" if parent else "stands before this one"
        none = "no case called " if not parent else ""
        hint = nearest(case.model.of, names)
        raise SpecError(f"{where}: model.of: {none}{case.model.of!r} {why}{hint}")
    model = case.model.model_copy(update={"parent": parent.case_id})
    return case.model_copy(update={"model": model})


def describe(case: Case) -> str:
    """A case in a few words: technique or attention, then the model."""
    model = case.model
    name = getattr(model, "name", None) or getattr(model, "of", None) or ""
    if model.kind == "backbone":
        name = f"backbone {model.preset} {model.attention.kind}"
    elif model.kind == "checkpoint":
        name = model.source
    return f"{label(case.technique)} {name}".strip()
