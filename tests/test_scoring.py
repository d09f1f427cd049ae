"""How held-out text is scored: in windows of which length, of how much, in which mode."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from efficientllm import scoring
from efficientllm.assembly import Assembly
from efficientllm.journal import Task
from efficientllm.spec.case import Case
from tests import samples, tiny

TASK = cast(Task, None)
CHECKPOINT = {"kind": "checkpoint", "source": "somebody/something"}


def assembled(case: Case, **shape: Any) -> Assembly:
    """A case whose weights and text nothing looks at."""
    build = SimpleNamespace(model=torch.nn.Linear(1, 1), shape=tiny.shape(**shape))
    parts = {"face": None, "vocabulary": "any", "heldout": "any", "device": tiny.CPU}
    return cast(Assembly, SimpleNamespace(case=case, build=build, **parts))


def trained(length: int, **quality: Any) -> Case:
    workload = {"kind": "pretrain", "sequence_length": length, "batch": 1, "steps": 9}
    return samples.pretrain(workload=workload, quality=quality)


@pytest.mark.parametrize(
    ("case", "positions", "length"),
    [
        (trained(512), 4096, 512),
        (trained(4096), 4096, 2048),
        (trained(512, sequence_length=1024), 4096, 1024),
        (samples.case(model=CHECKPOINT), 4096, 2048),
        (samples.case(model=CHECKPOINT), 1024, 1024),
        (samples.case(model=CHECKPOINT, quality={"sequence_length": 256}), 1024, 256),
    ],
)
def test_text_is_scored_at_the_length_that_was_trained_up_to_2048_or_that_is_asked_for(
    case: Case, positions: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(scoring, "score", lambda *_, **told: asked.update(told))
    scoring.evaluate(assembled(case, max_positions=positions), TASK)
    assert asked["length"] == length


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_scoring_leaves_a_model_in_the_mode_it_was_in(
    training: bool, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assembly = assembled(trained(512, max_bytes=4096))
    assert assembly.build is not None
    model = assembly.build.model.train(training)

    def score(*_: Any, max_bytes: int, **__: Any) -> None:
        assert (model.training, max_bytes) == (False, 4096)
        if fails:
            raise ValueError("a bug")

    monkeypatch.setattr(scoring, "score", score)
    try:
        scoring.evaluate(assembly, TASK)
    except ValueError:
        assert fails
    assert model.training is training


def test_held_out_text_is_read_once_from_where_the_quality_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[tuple[Any, ...]] = []
    monkeypatch.setattr(scoring, "read_corpus", lambda *what: read.append(what) or "text")
    monkeypatch.setattr(scoring, "score", lambda *_, **__: None)
    own, trained_on = trained(512, data="other.txt"), trained(512)
    assert own.quality is not None
    for case, data in ((own, own.quality.data), (trained_on, trained_on.workload.data)):
        assembly = assembled(case)
        assembly.heldout = None
        read.clear()
        for _ in range(2):
            scoring.evaluate(assembly, TASK)
        assert read == [(data, "heldout")]


@pytest.mark.parametrize("compute", ["bf16", "float32"])
def test_a_training_is_scored_in_the_precision_that_it_computed_in(
    compute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(
        scoring, "score", lambda *_, **__: seen.append(torch.is_autocast_enabled("cpu"))
    )
    workload = {"kind": "pretrain", "steps": 9, "precision": {"compute": compute}}
    scoring.evaluate(assembled(samples.pretrain(workload=workload)), TASK)
    assert seen == [compute == "bf16"]
