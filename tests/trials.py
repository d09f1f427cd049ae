"""A worker's whole trial in the process of the test."""

from __future__ import annotations

from pathlib import Path

from efficientllm import worker
from efficientllm.journal import Story, Task, read
from efficientllm.spec.case import Case


def story_of(case: Case, folder: Path, cache: Path, product: str = "") -> Story:
    """The journal of a smoke trial of a case's first point, where it has any, on the CPU."""
    Task(
        case=case.model_dump(mode="json"),
        protocol={"profile": "smoke"},
        seed=0,
        points=tuple(range(min(1, len(case.points)))),
        product_folder=product,
        cache_folder=str(cache),
        device="cpu",
        sits_idle=False,
    ).write(folder)
    assert worker.run(folder) == 0
    return read(folder)
