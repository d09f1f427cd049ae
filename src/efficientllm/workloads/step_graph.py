"""A whole training step in one CUDA graph, for models whose steps wait for Python.

With 30M parameters and 16,384 tokens an H200 computes 14 ms of a step of 24 to 30 with
multi-head attention, and 17 of 50 with NSA. From some 0.5B on launches hide behind kernels:
there a graph gains nothing (285.9 against 285.4 ms on an H100) but keeps the memory of a step
for good.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from efficientllm.catalog.shape import Shape
from efficientllm.device import Device
from efficientllm.spec.workload import Pretrain, Training
from efficientllm.workloads.graphs import captured, most_tokens

EAGER_STEPS = 3
"""Steps before the capture: they compile, choose kernels and make the optimizer's states."""

LEAST_STEPS = 24
"""Declared steps from which a graph pays: capturing takes as long as some ten."""

LARGEST_PASS = 1.9e11
"""Multiply-adds of one layer and micro-batch up to which a graph is taken.

About 3 ms of forward and backward at 400 TFLOP/s; a layer takes Python 3 ms with multi-head
attention, 5 with NSA. No variant of 1.5B has as few at 4,096 tokens: memory is tight where such a
model is trained one sequence at a time.
"""

MOST_LAYERS = 256
"""Layers of all micro-batches together: a graph holds every kernel of them, some hundred each."""


def resolve(spec: Training, shape: Shape | None, device: Device) -> bool:
    """What `cuda_graph: auto` means here: whether a step of this size waits for Python.

    Losses that scale (fp16) or count on the host (liger) cannot be captured.
    """
    if not isinstance(spec, Pretrain) or spec.cuda_graph == "none" or not device.graphs:
        return False
    if shape is None or spec.loss == "liger" or spec.precision.compute == "fp16":
        return False
    if spec.budget_steps is not None and spec.budget_steps < LEAST_STEPS:
        return False
    rows = spec.micro_batch_size
    if shape.layers * spec.batch // rows > MOST_LAYERS:
        return False
    return rows * spec.sequence_length <= most_tokens(shape, LARGEST_PASS)


class StepGraph:
    """Takes steps one at a time: the first as they are, the others as replays of one graph."""

    settling = EAGER_STEPS + 1
    """Steps until the graph is there."""

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor]) -> None:
        """`step` trains on tokens and targets and gives the loss; shapes never change."""
        self._step = step
        self._eager = EAGER_STEPS
        self._replay: Callable[[], None] | None = None
        self._loss: Tensor | None = None

    @property
    def there(self) -> bool:
        """Whether steps are replays by now."""
        return self._replay is not None

    def __call__(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """One step on a batch [B, T]; its loss, which the next step overwrites."""
        if self._eager:
            self._eager -= 1
            return self._step(tokens, targets)
        if self._replay is None:
            self._capture(tokens, targets)
        self._tokens.copy_(tokens)
        self._targets.copy_(targets)
        assert self._replay is not None
        self._replay()
        assert self._loss is not None
        return self._loss

    def _capture(self, tokens: Tensor, targets: Tensor) -> None:
        # A graph reads where it read when it was captured, so the batch has a place of its own.
        self._tokens, self._targets = tokens.clone(), targets.clone()
        self._replay = captured(self._captured, "the training step", calls=0)

    def _captured(self) -> None:
        self._loss = self._step(self._tokens, self._targets)
