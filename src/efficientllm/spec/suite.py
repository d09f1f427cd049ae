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
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from efficientllm.catalog.backbone import backbone_shape
from efficientllm.catalog.shape import model_names, presets, shape_named
from efficientllm.spec.case import Case
from efficientllm.spec.document import Document, Path_, SpecError, dotted, parse, read
from efficientllm.spec.grid import Draft, axes_of, expand
from efficientllm.spec.model import Backbone, CatalogShape, Product
from efficientllm.spec.overrides import (
    HEADER,
    Overrides,
    not_overridden,
    read_overrides,
    split_key,
)
from efficientllm.spec.problems import explain, located, nearest
from efficientllm.spec.protocol import AnyProtocol, Protocol
from efficientllm.spec.workload import Probe

MAX_CASES = 10_000
MAX_NAME = 200
BLOCK = ("base", "grid")
_MODEL: Path_ = ("model",)


class Suite(NamedTuple):
    """Cases in the order written, each with a name of its own, and how to measure them.

    `left_out` tells what else it would have, were that possible and asked for.
    """

    name: str
    question: str
    protocol: Protocol
    cases: tuple[Case, ...]
    left_out: tuple[str, ...] = ()

    def case(self, name: str) -> Case:
        return next(case for case in self.cases if case.name == name)

    @property
    def doubles(self) -> dict[str, str]:
        """Cases that are an earlier one under another name, with that one's: measured once."""
        first: dict[str, str] = {}
        for case in self.cases:
            first.setdefault(case.case_id, case.name)
        return {c.name: first[c.case_id] for c in self.cases if first[c.case_id] != c.name}

    def only(self, patterns: str) -> Suite:
        """The cases whose names match one of some shell patterns (`train-*,one-mla`).

        What they continue from stays with them. Raises SpecError when nothing matches.
        """
        wanted = [pattern.strip() for pattern in patterns.split(",")]
        keep = {c.case_id for c in self.cases if any(fnmatchcase(c.name, p) for p in wanted)}
        if not keep:
            names = ", ".join(case.name for case in self.cases[:8])
            raise SpecError(f"--only {patterns}: matches no case of {self.name} ({names} ...)")
        for case in reversed(self.cases):
            if case.case_id in keep and isinstance(case.model, Product):
                keep.add(case.model.parent)
        return self._replace(cases=tuple(c for c in self.cases if c.case_id in keep))


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
    given = read_overrides(overrides) if name is None else read_overrides(overrides).naming()
    header = _header(documents[0], source, given.header)
    cases = _cases(documents, source, given)
    title = _words(header.get("suite"), f"{source}: suite") or name or Path(source).stem
    question = _words(header.get("question"), f"{source}: question")
    set_lines = {split_key(key): None for key in given.header}
    try:
        protocol: Protocol = TypeAdapter(AnyProtocol).validate_python(header["protocol"])
    except ValidationError as error:
        lines, prefix = documents[0].lines, ("protocol",)
        raise SpecError(
            explain(error, source, lines, prefix=prefix, set_lines=set_lines, root=Protocol)
        ) from error
    return Suite(title, question, protocol, tuple(cases.values()))


def _cases(documents: list[Document], source: str, given: Overrides) -> dict[str, Case]:
    """Every case of every block, by name; an override goes to the blocks that have its key."""
    cases: dict[str, Case] = {}
    unused, total = given.keys(), 0
    for document in documents:
        _check_block(document, source, first=document is documents[0])
        mine = given.for_workload(_workload_of(document))
        unused -= mine.keys()
        axes = [*not_overridden(axes_of(document, source), mine.keys()), *mine.axes]
        total += math.prod(len(axis) for axis in axes)
        if total > MAX_CASES:
            raise SpecError(f"{source}: {total} cases or more; a suite has at most {MAX_CASES}")
        for draft in expand(document, axes, list(mine.settings), source):
            case = _validated(draft, cases, source)
            cases[case.name] = case
    if unused:
        names = ", ".join(sorted(dotted(key) for key in unused))
        raise SpecError(f"{source}: {names}: no such key in any block")
    return cases


def _workload_of(document: Document) -> str:
    """The kind of a block's workload, as far as it is written."""
    workload = document.value["base"].get("workload")
    kind = workload.get("kind") if isinstance(workload, dict) else workload
    return str(kind)


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


def _validated(draft: Draft, earlier: dict[str, Case], source: str) -> Case:
    value = draft.value
    try:
        case = Case.model_validate(value)
    except ValidationError as error:
        raise SpecError(explain(error, source, draft.lines, set_lines=draft.set_lines)) from error
    _check_model(case, draft, source)
    stem = case.name or case.stage
    name = "-".join([stem, *(re.sub(r"[^\w.:+@-]+", "_", text) for text in draft.labels)])
    where = f"{source}:{draft.lines[()]}" if () in draft.lines else source
    if len(name) > MAX_NAME:
        raise SpecError(f"{where}: a case would be called {name[:40]}...: more than {MAX_NAME}")
    if name in earlier:
        raise SpecError(f"{where}: two cases are called {name}; {_APART}")
    case = case.model_copy(update={"name": name})
    return _with_parent(case, earlier, draft, source)


_APART = (
    "blocks are told apart by a `name:` in their base, values of one key by their last part: the"
    " name of a model, or of a file and what is in it"
)


def _check_model(case: Case, draft: Draft, source: str) -> None:
    """Look the model up in the catalog here, where it is known on which line it was named."""
    if isinstance(case.workload, Probe):
        return
    model, path = case.model, _MODEL
    try:
        if isinstance(model, Backbone):
            path = _MODEL if model.preset in presets() else (*_MODEL, "preset")
            backbone_shape(model)
        elif isinstance(model, CatalogShape):
            path = (*_MODEL, "name")
            shape_named(model.name)
    except SpecError as error:
        what, written = str(error).removeprefix("model: "), draft.value["model"]
        if isinstance(written, str):
            path = _MODEL
            what = f"no model is called {written!r}{nearest(written, model_names())}"
        text = located(path, what, source, draft.lines, draft.set_lines)
        raise SpecError(text) from error


def _productless(parent: Case) -> str:
    if parent.own_attention is not None:
        return (
            f"has an attention of somebody's own ({parent.own_attention.name}), which no saved"
            " model can rebuild: unsupported as a parent; measure generation from random weights,"
            " with model.attention of the generate case itself"
        )
    return "declares no steps, so it makes no product"


def _with_parent(case: Case, earlier: dict[str, Case], draft: Draft, source: str) -> Case:
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
        why = "stands before this one" if parent is None else _productless(parent)
        none = "no case called " if not parent else ""
        hint = nearest(case.model.of, names)
        raise SpecError(f"{where}: model.of: {none}{case.model.of!r} {why}{hint}")
    model = case.model.model_copy(update={"parent": parent.case_id})
    return case.model_copy(update={"model": model})
