"""Pinning: what a case names from outside gets the name of its content.

Before anything is planned, a hub revision becomes a commit and a local folder or file a
SHA-256, because a path or a branch says where something was, not what it was.
"""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path
from typing import Any

from efficientllm import hub
from efficientllm.budget import with_tokens
from efficientllm.catalog.shape import shape_named
from efficientllm.content import TEXT_FILES, digest_of
from efficientllm.documents import text_files
from efficientllm.matching import matched_shape
from efficientllm.spec.architecture import CustomAttention
from efficientllm.spec.case import Case
from efficientllm.spec.document import SpecError
from efficientllm.spec.model import Backbone, CatalogShape, Checkpoint, is_local
from efficientllm.spec.problems import nearest
from efficientllm.spec.suite import Suite
from efficientllm.spec.technique import Custom, Techniques
from efficientllm.spec.text import SUFFIXES, Files, Hub, Text
from efficientllm.spec.workload import Probe

CHECKPOINT_FILES = (".safetensors", ".json", ".py", ".model", ".txt")


def pin_suite(suite: Suite, *, allow_code: bool = False, only: str = "*") -> Suite:
    """Every case with its content pinned; children follow their parents' new ids.

    Raises SpecError where one cannot be; one that is not asked for (`Suite.only`) is left out,
    and the suite tells so, because it has no say in a `micro_batch: fit` then.
    """
    ids: dict[str, str] = {}
    cases = []
    left_out: dict[str, str] = {}
    asked = {case.name for case in suite.only(only).cases}
    for case in suite.cases:
        try:
            pinned = pin(with_tokens(case, suite), allow_code=allow_code)
        except SpecError as error:
            if case.name in asked:
                raise
            left_out.setdefault(str(error), case.name)
            continue
        parent = getattr(pinned.model, "parent", "")
        if parent in ids:
            model = pinned.model.model_copy(update={"parent": ids[parent]})
            pinned = pinned.model_copy(update={"model": model})
        # model_copy carries the cached id along; take it from a fresh value.
        pinned = Case.model_validate(pinned.model_dump())
        ids[case.case_id] = pinned.case_id
        cases.append(pinned)
    told = (f"{name} is not asked for and left out: {why}" for why, name in left_out.items())
    return suite._replace(cases=tuple(cases), left_out=tuple(told))


def pin(case: Case, *, allow_code: bool = False) -> Case:
    """One case with commits and digests filled in; raises SpecError with what to do."""
    update: dict[str, Any] = {"model": _pin_model(case, allow_code=allow_code)}
    if case.custom:
        update["technique"] = _pin_techniques(case, allow_code=allow_code)
    data = getattr(case.workload, "data", None)
    if isinstance(data, Files | Hub):
        update["workload"] = case.workload.model_copy(update={"data": _pin_text(data)})
    if case.quality is not None and isinstance(case.quality.data, Files | Hub):
        update["quality"] = case.quality.model_copy(update={"data": _pin_text(case.quality.data)})
    return case.model_copy(update=update)


def _pin_model(case: Case, *, allow_code: bool) -> Any:
    model = case.model
    if isinstance(model, Backbone):
        matched_shape(model)  # raises for a preset that there is not, or sizes that do not fit
        model = _pin_attention(case, model, allow_code=allow_code)
    if isinstance(model, CatalogShape) and not isinstance(case.workload, Probe):
        model = model.model_copy(update={"name": shape_named(model.name).name})  # as published
    if isinstance(model, Backbone | CatalogShape) and model.tokenizer != "auto":
        path = Path(model.tokenizer).expanduser()
        return model.model_copy(update={"tokenizer_sha256": digest_of(path, (".json", ".bpe"))})
    if not isinstance(model, Checkpoint):
        return model
    if model.allow_code and not allow_code:
        raise SpecError(
            f"{case.name}: model.allow_code runs somebody's Python on this machine; say"
            " --allow-code on the command line as well"
        )
    if is_local(model.source):
        folder = Path(model.source).expanduser()
        if not (folder / "config.json").exists() and not (folder / "adapter_config.json").exists():
            raise SpecError(f"model: {model.source}: no checkpoint there (no config.json)")
        return model.model_copy(update={"sha256": _checkpoint_digest(folder)})
    commit = model.commit or hub.commit_of(model.source, hub.MODEL)
    return model.model_copy(update={"commit": commit})


def _checkpoint_digest(folder: Path) -> str:
    """A folder's content; an adapter's with that of the weights it belongs to."""
    own = digest_of(folder, CHECKPOINT_FILES)
    adapter = folder / "adapter_config.json"
    if (folder / "config.json").exists() or not adapter.exists():
        return own
    try:
        base = str(json.loads(adapter.read_text("utf-8")).get("base_model_name_or_path") or "")
    except ValueError as error:
        raise SpecError(f"{adapter}: not JSON ({error})") from error
    if not base:
        raise SpecError(f"{adapter}: names no base model")
    if not is_local(base):
        return hashlib.sha256(f"{own} {hub.commit_of(base, hub.MODEL)}".encode()).hexdigest()
    path = Path(base).expanduser()
    return hashlib.sha256(f"{own} {digest_of(path, CHECKPOINT_FILES)}".encode()).hexdigest()


def _pin_attention(case: Case, model: Backbone, *, allow_code: bool) -> Backbone:
    attention = model.attention
    if not isinstance(attention, CustomAttention):
        return model
    if not allow_code:
        raise SpecError(
            f"{case.name or 'model'}: attention custom runs your Python file on this machine; say"
            " --allow-code on the command line as well"
        )
    pinned = attention.model_copy(update=_own_file(attention.file, attention.name, "attention"))
    return model.model_copy(update={"attention": pinned})


def _own_file(file: str, name: str, what: str) -> dict[str, str]:
    """Where a user's file is and its digest; it is read here, and run in the worker only."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise SpecError(f"{what}: {file}: there is no such file")
    content = path.read_bytes()
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError) as error:
        raise SpecError(f"{what}: {file}: is not Python ({error})") from error
    defined = [n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)]
    if name not in (*defined, *_bound(tree)):
        raise SpecError(f"{what}: {file}: has no {name}{nearest(name, defined)}")
    return {"file": str(path.resolve()), "sha256": hashlib.sha256(content).hexdigest()}


def _bound(tree: ast.Module) -> list[str]:
    """Names that a file imports or assigns, wherever it does."""
    nodes = list(ast.walk(tree))
    imported = [n.asname or n.name for n in nodes if isinstance(n, ast.alias)]
    stored = [n for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    return [*imported, *(n.id for n in stored)]


def _pin_techniques(case: Case, *, allow_code: bool) -> Techniques:
    if not allow_code:
        raise SpecError(
            f"{case.name}: technique custom runs your Python file on this machine; say"
            " --allow-code on the command line as well"
        )
    pinned = []
    for technique in case.technique:
        if isinstance(technique, Custom):
            path = _own_file(technique.file, technique.function, "technique")
            technique = technique.model_copy(update=path)
        pinned.append(technique)
    return tuple(pinned)


def _pin_text(text: Files | Hub) -> Text:
    if isinstance(text, Hub):
        commit = text.commit or hub.commit_of(text.source, hub.DATASET)
        return text.model_copy(update={"commit": commit})
    path = Path(text.path).expanduser()
    if not path.exists():
        raise SpecError(
            f"data: {text.path}: there is nothing at this path; a dataset of the hub is written"
            " hub:NAME"
        )
    if not text.path or not (path.is_file() or (path.is_dir() and text_files(path))):
        raise SpecError(f"data: {text.path}: no text there (looked for {', '.join(SUFFIXES)})")
    return text.model_copy(update={"sha256": digest_of(path, TEXT_FILES)})
