"""A step in a graph is the step that it would be without one."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from efficientllm.catalog.shape import presets
from efficientllm.device import Device
from efficientllm.models.language_model import face
from efficientllm.record import PointResult, Unsupported
from efficientllm.spec.workload import AdamW, Finetune, Precision, Pretrain, Training
from efficientllm.workloads import graphs, step_graph
from efficientllm.workloads.batches import Stream
from efficientllm.workloads.step_graph import EAGER_STEPS, resolve
from efficientllm.workloads.train import Train
from tests import tiny
from tests.graphs import stand_in

CUDA = Device(torch.device("cuda", 0), graphs=True)
TEXT = tiny.corpus(*(f"{i} times {i} is {i * i}. " * 3 for i in range(60)))
STEPS = 12


def started(device: Device, micro_batch: Any, *, graph: bool) -> tuple[Train, torch.nn.Module]:
    """A training whose rate changes at every step, and its model."""
    of = Pretrain(
        sequence_length=16,
        batch=4,
        micro_batch=micro_batch,
        steps=STEPS,
        precision=Precision(params="float32", compute="float32"),
        optimizer=AdamW(lr=3e-3),
    )
    model = tiny.decoder().to(device.torch).train()
    batches = Stream(TEXT, tiny.byte_vocabulary(), rows=4, length=16, seed=0, batches=100)
    return Train(model, face(model), batches, of, device, graph=graph), model


def trained(device: Device, micro_batch: Any, *, graph: bool) -> tuple[list[float], torch.Tensor]:
    """Losses and weights after all steps."""
    work, model = started(device, micro_batch, graph=graph)
    for _ in range(STEPS):
        work.unit("step")
    if not device.is_cpu:
        torch.accelerator.synchronize()
    work.check()
    work.close()
    return list(work.losses()), weights(model)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().cpu() for p in model.parameters()])


def apart(one: torch.Tensor, two: torch.Tensor) -> float:
    """How far two trainings end from each other, as a share of the way from their start.

    Adam divides by a gradient's size, so a rounding error may move one weight by far more.
    """
    return float((one - two).norm() / (two - weights(tiny.decoder())).norm())


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The calls before each capture; a replay runs the step."""
    return stand_in(monkeypatch)


@pytest.mark.parametrize("micro_batch", ["auto", 2])
def test_losses_and_weights_are_those_of_eager_steps(captured: list[int], micro_batch: Any) -> None:
    losses, found = trained(tiny.CPU, micro_batch, graph=True)
    expected, wanted = trained(tiny.CPU, micro_batch, graph=False)
    assert losses == pytest.approx(expected, rel=1e-6)
    assert apart(found, wanted) < 1e-3
    assert losses[-1] < losses[0]
    assert captured == [0]  # once, and no step is run twice for it


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures a graph of a GPU")
@pytest.mark.parametrize("micro_batch", ["auto", 2])
def test_a_real_graph_trains_as_eager_steps_do(micro_batch: Any) -> None:
    losses, found = trained(CUDA, micro_batch, graph=True)
    expected, wanted = trained(CUDA, micro_batch, graph=False)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert apart(found, wanted) < 1e-2


def test_the_record_names_the_step_where_it_was_captured(captured: list[int]) -> None:
    for graph, steps, names in ((True, STEPS, ("step",)), (True, 2, ()), (False, STEPS, ())):
        work, _ = started(tiny.CPU, "auto", graph=graph)
        for _ in range(steps):
            work.unit("step")
        empty = PointResult(point_id="0", batch=1, context=1)
        assert work.result(empty).captured == names


def test_the_rate_is_written_where_the_graph_reads_it(captured: list[int]) -> None:
    work, _ = started(tiny.CPU, "auto", graph=True)
    groups = work._optimizer.param_groups
    places, rates = [group["lr"] for group in groups], []
    for _ in range(STEPS):
        work.unit("step")
        rates.append(float(places[0]))
    assert all(group["lr"] is place for group, place in zip(groups, places, strict=True))
    assert all(group["capturable"] for group in groups)
    assert len(set(rates)) > STEPS / 2, "it follows the schedule"


def test_the_graph_is_let_go_with_the_work_and_its_steps_are_in_no_window(
    captured: list[int],
) -> None:
    work, _ = started(tiny.CPU, "auto", graph=True)
    assert work.settling == EAGER_STEPS + 1
    graph = weakref.ref(work._graph)
    work.close()
    assert graph() is None
    assert started(tiny.CPU, "auto", graph=False)[0].settling == 0


def test_a_batch_that_was_read_is_not_written_over(captured: list[int]) -> None:
    kept = [torch.full((2, 4), i) for i in range(EAGER_STEPS + 2)]
    steps = step_graph.StepGraph(lambda tokens, targets: (tokens + targets).sum())
    sums = [int(steps(tokens, tokens)) for tokens in kept]
    assert sums == [16 * i for i in range(EAGER_STEPS + 2)]
    assert [int(tokens[0, 0]) for tokens in kept] == list(range(EAGER_STEPS + 2))
    assert captured == [0]


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (RuntimeError("CUDA error: no\nMore."), RuntimeError, r"graph=none .*\): CUDA error: no\n"),
        (torch.OutOfMemoryError("2 GiB"), torch.OutOfMemoryError, "^2 GiB$"),
        (Unsupported("no such kernel"), Unsupported, "^no such kernel$"),
    ],
    ids=["refused", "out of memory", "unsupported"],
)
def test_a_step_that_cannot_be_captured_says_how_to_train_without(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError, kind: type[Exception], said: str
) -> None:
    def capture(step: Callable[[], None]) -> Callable[[], None]:
        raise error

    monkeypatch.setattr(graphs, "capture", capture)
    steps = step_graph.StepGraph(lambda tokens, targets: (tokens + targets).sum())
    tokens = torch.ones(1, 2)
    for _ in range(EAGER_STEPS):
        steps(tokens, tokens)
    with pytest.raises(kind, match=said) as found:
        steps(tokens, tokens)
    assert type(found.value) is kind


def spec(**changes: Any) -> Training:
    fields: dict[str, Any] = {"sequence_length": 1024, "batch": 16}
    kind = Finetune if changes.pop("kind", "") == "finetune" else Pretrain
    return kind.model_validate(fields | changes)


@pytest.mark.parametrize(
    ("preset", "changes", "expected"),
    [
        ("30M-h16", {}, True),
        ("0.5B-h16", {"sequence_length": 4096, "batch": 8}, False),
        ("0.5B-h16", {"sequence_length": 4096, "batch": 8, "micro_batch": 1}, True),
        ("1.5B-h16", {"sequence_length": 4096, "batch": 8, "micro_batch": 2}, False),
        ("1.5B-h16", {"sequence_length": 4096, "batch": 8, "micro_batch": 1}, False),
        ("30M-h16", {"cuda_graph": "none"}, False),
        ("30M-h16", {"steps": 24}, True),
        ("30M-h16", {"steps": 23}, False),
        ("30M-h16", {"batch": 32, "micro_batch": 1}, True),
        ("30M-h16", {"batch": 33, "micro_batch": 1}, False),
        ("30M-h16", {"kind": "finetune"}, False),
        ("30M-h16", {"loss": "liger"}, False),
        ("30M-h16", {"precision": {"compute": "fp16"}}, False),
    ],
)
def test_only_small_steps_of_pretraining_are_captured(
    preset: str, changes: dict[str, Any], expected: bool
) -> None:
    assert resolve(spec(**changes), presets()[preset], CUDA) is expected


def test_neither_a_cpu_nor_a_users_own_attention_nor_an_unknown_shape_is_captured() -> None:
    small = presets()["30M-h16"]
    assert not resolve(spec(), small, tiny.CPU)
    assert not resolve(spec(), None, CUDA)
    own = small.model_copy(update={"custom": "MyAttention"})
    assert not resolve(spec(), own, CUDA)
