"""Filling caches where there is a network, so that trials never need one."""

from __future__ import annotations

from collections.abc import Iterator

from efficientllm.spec.model import Checkpoint, is_local
from efficientllm.spec.suite import Suite

PATTERNS = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.py"]


def fetch_suite(suite: Suite) -> Iterator[str]:
    """Download every checkpoint of a suite at its pinned commit; one line for each."""
    from huggingface_hub import snapshot_download

    seen: set[tuple[str, str]] = set()
    for case in suite.cases:
        model = case.model
        if not isinstance(model, Checkpoint) or is_local(model.source):
            continue
        name = model.source.partition("@")[0]
        if (name, model.commit) in seen:
            continue
        seen.add((name, model.commit))
        snapshot_download(name, revision=model.commit, allow_patterns=PATTERNS)
        yield f"{name}@{model.commit[:7]} is in the hub's cache"
    if not seen:
        yield f"{suite.name} needs nothing from a network"
