"""Held-out quality of a case: whether there is any to be had, and how it is taken.

Scoring runs eagerly and lets every attention kernel back in, because it sees lengths that
nothing was compiled or pinned for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from efficientllm.assembly import Assembly
from efficientllm.device import Device, every_attention
from efficientllm.journal import Task
from efficientllm.models.attend import scored_only
from efficientllm.record import Scores
from efficientllm.spec.case import Quality
from efficientllm.spec.workload import Generate, Pretrain, Probe, Training
from efficientllm.workloads import compiling
from efficientllm.workloads.quality import score
from efficientllm.workloads.text import read_corpus
from efficientllm.workloads.train import autocast


def evaluate(
    assembly: Assembly, task: Task, alive: Callable[[], None] = lambda: None
) -> tuple[Scores | None, str]:
    """Held-out scores, or why there are none; `alive` is called as it goes on."""
    case, build = assembly.case, assembly.build
    quality, spec = case.quality, case.workload
    if build is None or quality is None or isinstance(spec, Probe):
        return None, "not asked for"
    if isinstance(spec, Training) and spec.budget_steps is None:
        return None, "NOT_TRAINED: the case declares no steps or tokens"
    if not isinstance(spec, Pretrain) and case.random_weights:
        return None, "random weights: cost only"
    assert assembly.vocabulary is not None
    if assembly.heldout is None:
        assembly.heldout = read_corpus(quality.data or spec.data, "heldout")
    longest = getattr(spec, "sequence_length", 2048)
    length = quality.sequence_length or min(longest, 2048)
    if isinstance(spec, Generate) and build.shape is not None:
        length = quality.sequence_length or min(2048, build.shape.max_positions)
    training = build.model.training
    build.model.eval()
    try:
        return _score(assembly, spec, quality, length, alive), ""
    finally:
        build.model.train(training)


def _score(
    assembly: Assembly,
    spec: Training | Generate,
    quality: Quality,
    length: int,
    alive: Callable[[], None],
) -> Scores:
    assert assembly.heldout is not None
    assert assembly.vocabulary is not None
    with compiling.eagerly(), every_attention(), scored_only(), _compute(spec, assembly.device):
        return score(
            assembly.face,
            assembly.heldout,
            assembly.vocabulary,
            max_bytes=quality.max_bytes,
            length=length,
            device=assembly.device,
            alive=alive,
        )


def _compute(spec: Training | Generate, device: Device) -> AbstractContextManager[object]:
    return autocast(spec.precision, device) if isinstance(spec, Training) else nullcontext()
