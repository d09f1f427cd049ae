"""Running from Python: the same as the command line, with results as values."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from efficientllm.machine import choose_gpu
from efficientllm.pin import pin_suite
from efficientllm.results import Results, load
from efficientllm.runner import Events, Options, run_suite
from efficientllm.spec.case import Case
from efficientllm.spec.document import SpecError
from efficientllm.spec.protocol import Protocol
from efficientllm.spec.suite import Suite, load_suite, one_line_suite
from efficientllm.spec.technique import Custom
from efficientllm.store import Store

WORKLOADS = ("pretrain", "finetune", "generate")


def run(
    what: str | Suite | Case = "quickstart",
    *overrides: str,
    store: str | Path = "efficientllm-results",
    gpu: int | None = None,
    protocol: str | Protocol = "quick",
    allow_code: bool = False,
    apply: Callable[[Any], None] | None = None,
) -> Results:
    """Measure what is missing of a suite, a workload or one case; the store's results.

    `what` is a suite's name or file, one of pretrain, finetune and generate with
    `key=value` settings as on the command line, a Suite, or a Case (measured under
    `protocol`). Trials that are already in the store are not repeated.

    `apply` is a technique of your own: a function at the top of a module that changes the
    model it is given. It is added to every case, after the built-in techniques.
    """
    suite = _suite(what, overrides, protocol)
    if apply is not None:
        suite = _with_technique(suite, apply)
    suite = pin_suite(suite, allow_code=allow_code or apply is not None)
    target = Store(Path(store))
    run_suite(suite, target, Options(gpu=choose_gpu(gpu)), Events())
    return load(target.root)


def _with_technique(suite: Suite, apply: Callable[[Any], None]) -> Suite:
    """Every case with the function added as a custom technique."""
    file = inspect.getsourcefile(apply)
    if file is None or apply.__qualname__ != apply.__name__:
        raise SpecError(f"apply: {apply.__qualname__} must stand at the top of a Python file")
    added = Custom(file=file, function=apply.__name__)
    cases = []
    for case in suite.cases:
        techniques = [t.model_dump() for t in (*case.technique, added)]
        name = f"{case.name}+{apply.__name__}"
        cases.append(
            Case.model_validate(case.model_dump() | {"technique": techniques, "name": name})
        )
    return suite._replace(cases=tuple(cases))


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
