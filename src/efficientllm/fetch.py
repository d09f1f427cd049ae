"""Filling caches where there is a network, so that trials never need one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from efficientllm import hub
from efficientllm.spec.case import Case
from efficientllm.spec.model import Checkpoint, is_local
from efficientllm.spec.suite import Suite
from efficientllm.spec.text import Hub

PATTERNS = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.py"]


def fetch_suite(suite: Suite) -> Iterator[str]:
    """Download every checkpoint and text of a suite at its pinned commit; a line for each."""
    nothing = True
    for line in (*fetch_checkpoints(suite.cases), *fetch_texts(suite.cases)):
        nothing = False
        yield line
    if nothing:
        yield f"{suite.name} needs nothing from a network"


def fetch_checkpoints(cases: Iterable[Case]) -> Iterator[str]:
    """Download the checkpoints of cases; a line for each."""
    from huggingface_hub import snapshot_download

    seen: set[tuple[str, str]] = set()
    for case in cases:
        model = case.model
        if not isinstance(model, Checkpoint) or is_local(model.source):
            continue
        name = model.source.partition("@")[0]
        if (name, model.commit) in seen:
            continue
        seen.add((name, model.commit))
        snapshot_download(name, revision=model.commit, allow_patterns=PATTERNS)
        hub.keep_name(model.source, model.commit, hub.MODEL)
        yield f"{name}@{model.commit[:7]} is in the hub's cache"


def fetch_texts(cases: Iterable[Case], *, missing: bool = False) -> Iterator[str]:
    """Download as much of each dataset as cases read of it; a line for each.

    With `missing`, only what is not in the cache. Raises SpecError, saying what to do, where
    something is neither here nor to be had.
    """
    texts: dict[str, Hub] = {}
    for case in cases:
        quality = case.quality.data if case.quality is not None else None
        for text in (getattr(case.workload, "data", None), quality):
            if isinstance(text, Hub):
                texts.setdefault(hub.what_is_read(text), text)
    for text in texts.values():
        if not (missing and hub.is_here(text)):
            yield hub.take(text)
