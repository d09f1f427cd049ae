"""Running from Python: the same as the command line, with results as values."""

from __future__ import annotations

from pathlib import Path

from efficientllm.machine import choose_gpu
from efficientllm.pin import pin_suite
from efficientllm.results import Results, load
from efficientllm.runner import Events, Options, run_suite
from efficientllm.spec.case import Case
from efficientllm.spec.protocol import Protocol
from efficientllm.spec.suite import Suite, load_suite, one_line_suite
from efficientllm.store import Store

WORKLOADS = ("pretrain", "finetune", "generate")


def run(
    what: str | Suite | Case = "quickstart",
    *overrides: str,
    store: str | Path = "efficientllm-results",
    gpu: int | None = None,
    protocol: str | Protocol = "quick",
    allow_code: bool = False,
) -> Results:
    """Measure what is missing of a suite, a workload or one case; the store's results.

    `what` is a suite's name or file, one of pretrain, finetune and generate with
    `key=value` settings as on the command line, a Suite, or a Case (measured under
    `protocol`). Trials that are already in the store are not repeated.
    """
    suite = pin_suite(_suite(what, overrides, protocol), allow_code=allow_code)
    target = Store(Path(store))
    run_suite(suite, target, Options(gpu=choose_gpu(gpu)), Events())
    return load(target.root)


def _suite(what: str | Suite | Case, overrides: tuple[str, ...], protocol: str | Protocol) -> Suite:
    if isinstance(what, Suite):
        return what
    if isinstance(what, Case):
        wanted = (
            protocol
            if isinstance(protocol, Protocol)
            else Protocol.model_validate({"profile": protocol})
        )
        named = what if what.name else what.model_copy(update={"name": what.stage})
        return Suite(named.name, "", wanted, (named,))
    if what in WORKLOADS:
        return one_line_suite(what, overrides)
    return load_suite(what, overrides)
