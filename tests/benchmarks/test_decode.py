"""The decoding benchmark's arm of transformers: its step compiles before it is recorded."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from efficientllm.device import CAPTURE_CALLS
from efficientllm.workloads import compiling
from tests import tiny
from tests.benchmarks.outside import imported
from tests.graphs import stand_in


@pytest.fixture
def decode(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with imported("decode", monkeypatch) as module:
        yield module


def test_a_step_runs_before_it_is_recorded_and_once_is_enough(
    decode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"model": "backbone-tiny", "context": 16, "new": 4}
    args = Namespace(**sizes, tokenizer="auto", text=None, out=tmp_path)
    recorded = stand_in(monkeypatch)
    monkeypatch.setattr(compiling, "compiled", lambda step: step)
    to = decode.setup(args, 1)._replace(device=tiny.CPU._replace(graphs=True))
    server = decode.transformers_static(to)
    for _ in range(2):
        server.whole()
    assert recorded == [CAPTURE_CALLS]
