"""Stand-ins for what captures and what compiles: what was given to them runs as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from efficientllm.workloads import graphs


def write_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace and differentiate as Inductor does, with the options it takes, and stop there.

    Its kernels for a CPU take twenty seconds of a C++ compiler for the smallest layer.
    """

    def traced(graph: fx.GraphModule, inputs: list[Tensor], **_: Any) -> Any:
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", traced)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replace capturing; the list grows by the calls that were made before each capture."""
    asked: list[int] = []
    before = [0]

    def run_aside(step: Callable[[], None], calls: int) -> None:
        before[0] = calls
        for _ in range(calls):
            step()

    def capture(step: Callable[[], None]) -> Callable[[], None]:
        asked.append(before[0])
        before[0] = 0
        return step

    monkeypatch.setattr(graphs, "run_aside", run_aside)
    monkeypatch.setattr(graphs, "capture", capture)
    return asked
