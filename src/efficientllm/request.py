"""From the words of a command line to a suite: by name, from a file, or written out in them."""

from __future__ import annotations

from efficientllm.pin import pin_suite
from efficientllm.spec.suite import Suite, load_suite, one_line_suite

WORKLOADS = ("pretrain", "finetune", "generate")


def asked_suite(what: list[str] | None, *, allow_code: bool, gpu: bool, only: str = "*") -> Suite:
    """The suite that is asked for, its content pinned; the quickstart where nothing is named.

    Cases beside those that match `only` stay where they can be pinned: they may have a say in
    a micro-batch.
    """
    words = list(what or [])
    name = "quickstart" if not words or "=" in words[0] else words.pop(0)
    if name == "quickstart" and gpu:
        name = "quickstart-gpu"
    make = one_line_suite if name in WORKLOADS else load_suite
    return pin_suite(make(name, tuple(words)), allow_code=allow_code, only=only)
