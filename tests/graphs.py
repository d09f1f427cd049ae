"""A stand-in for CUDA graphs: what is captured runs as it is, reading where it was captured."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from efficientllm.workloads import graphs


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
