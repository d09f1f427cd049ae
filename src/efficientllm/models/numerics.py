"""Whether an attention's numbers can be trained with: gradients, types, repetition, compilation."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from efficientllm.models.own import THEIRS, told
from efficientllm.models.subject import LENGTH, Check, Subject, judged, off
from efficientllm.record import Finding


def _gradients(subject: Subject) -> Finding:
    """Every parameter has a finite gradient."""
    subject.module.zero_grad()
    subject.whole(subject.inputs(LENGTH)).square().mean().backward()
    gradients = {n: p.grad for n, p in subject.module.named_parameters()}
    none = [name for name, g in gradients.items() if g is None]
    broken = [name for name, g in gradients.items() if g is not None and not g.isfinite().all()]
    subject.module.zero_grad()
    trouble = f"no gradient for {', '.join(none[:3])}" if none else ""
    trouble = trouble or (f"not finite for {', '.join(broken[:3])}" if broken else "")
    fine = f"{len(gradients)} parameters, each with a finite gradient"
    return judged("gradients", trouble, fine, "use every parameter in forward, and detach none")


@torch.no_grad()
def _repeatable(subject: Subject) -> Finding:
    """Also in eval mode, in which a model is scored and generates."""
    x = subject.inputs(LENGTH)
    whole, training = subject.whole(x), subject.module.training
    share = off(subject.whole(x), whole)
    trouble = f"the same input gives another output, by {share:.1%}" if share > 1e-6 else ""
    subject.module.eval()
    try:
        share = off(subject.whole(x), whole)
    finally:
        subject.module.train(training)
    if not trouble and share > 1e-6:
        trouble = f"eval() gives another output than train(), by {share:.1%}"
    return judged("repeatable", trouble, "the same input gives the same output", "use no dropout")


@torch.no_grad()
def _bfloat16(subject: Subject) -> Finding:
    """Weights in bf16, and float32 weights multiplied in bf16 as training does."""
    x = subject.inputs(LENGTH)
    whole = subject.whole(x)
    half = copy.deepcopy(subject)
    half.module.bfloat16()
    out = half.whole(x.bfloat16())
    with torch.autocast(subject.device.type, torch.bfloat16):
        mixed = subject.whole(x)
    trouble = "" if out.dtype == torch.bfloat16 else f"bf16 weights and input give {out.dtype}"
    if not (out.isfinite().all() and mixed.isfinite().all()):
        trouble = "not all of the output is finite"
    fine = f"runs; off by {off(out.float(), whole):.1%}, {off(mixed.float(), whole):.1%} if mixed"
    return judged("bfloat16", trouble, fine, "make tensors in x.dtype, on x.device")


def _differences(subject: Subject) -> Finding:
    """Gradients against central differences of the loss, in a random direction of each tensor.

    Rounding in float32 limits the comparison: a derivative counts as zero below a
    ten-thousandth of the loss.
    """
    x = subject.inputs(24)
    along = subject.inputs(24, seed=2)
    tensors = {"its input": x, **dict(subject.module.named_parameters())}

    def loss() -> Tensor:
        return (subject.whole(x).double() * along).sum()

    x.requires_grad_()
    gradients = torch.autograd.grad(loss(), list(tensors.values()))
    with torch.no_grad():
        floor = 3e-4 * subject.whole(x).norm().item()
        wrong = [
            name
            for (name, tensor), gradient in zip(tensors.items(), gradients, strict=True)
            if not _agrees(loss, tensor, gradient, floor)
        ]
    advice = "a backward of your own does not match its forward"
    trouble = f"gradients of {', '.join(wrong[:3])} are not those of the output" if wrong else ""
    return judged("differences", trouble, "gradients agree with finite differences", advice)


STEPS = (1e-2, 3e-4, 1e-4)
"""Large ones round least; small ones cross fewer borders of what chooses (the best of scores)."""


def _agrees(loss: Callable[[], Tensor], tensor: Tensor, gradient: Tensor, floor: float) -> bool:
    return any(_agrees_at(step, loss, tensor, gradient, floor) for step in STEPS)


def _agrees_at(
    step: float, loss: Callable[[], Tensor], tensor: Tensor, gradient: Tensor, floor: float
) -> bool:
    generator = torch.Generator().manual_seed(3)
    size = tensor.square().mean().sqrt().clamp(min=1e-3)
    way = torch.randn(tensor.shape, generator=generator).to(tensor) * size
    before = tensor.clone()
    ends = []
    for sign in (1, -1):
        tensor.copy_(before + sign * step * way)
        ends.append(loss().item())
    tensor.copy_(before)
    measured = (ends[0] - ends[1]) / (2 * step)
    stated = (gradient * way).sum().item()
    usual = gradient.norm().item() * size.item()
    return abs(measured - stated) <= 0.03 * max(usual, abs(stated)) + floor


def _compiles(subject: Subject) -> Finding:
    if subject.device.type == "cpu":
        return Finding(name="compile", verdict="told", seen="not tried: a CPU runs eagerly here")
    x = subject.inputs(128).requires_grad_()
    compiled = torch.compile(subject.module, fullgraph=True, dynamic=False)
    try:
        compiled(x, subject.positions(0, 128)).square().mean().backward()
    except THEIRS as error:
        advice = "say workload.compile=none, or take out what breaks the graph"
        return Finding(name="compile", verdict="told", seen=told(error)[:200], advice=advice)
    finally:
        subject.module.zero_grad()
        torch.compiler.reset()
    return Finding(name="compile", verdict="told", seen="compiles as one graph, with its gradient")


CHECKS: dict[str, Check] = {
    "gradients": _gradients,
    "repeatable": _repeatable,
    "bfloat16": _bfloat16,
    "differences": _differences,
}
THOROUGH: dict[str, Check] = {"compile": _compiles}
