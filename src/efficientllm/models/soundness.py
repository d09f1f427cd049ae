"""Whether an attention does what a causal attention with a cache has to do.

A layer that looks one token ahead learns at wonderful speed, one whose cache is wrong is
wonderfully small, and one that counts twice the products it makes reaches a wonderful share of
the peak. None of this shows in a benchmark. So an attention from a user's file is examined
before its rows are ranked, in float32, at several lengths and at the case's own; ours pass the
same examination.

What cannot be seen from outside is told and not judged: products that a kernel of somebody's
own makes, whether a layer compiles. A layer may do without the positions that the model tells
it, but then it is not ranked under their name.

Legend: B batch, T positions, C hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from efficientllm.catalog.shape import Shape
from efficientllm.device import free_cached, is_out_of_memory
from efficientllm.models import accounts, numerics
from efficientllm.models.decoder import Mixer
from efficientllm.models.own import THEIRS, told
from efficientllm.models.position import Positions
from efficientllm.models.subject import (
    EVEN,
    LENGTH,
    NOTHING_OWN,
    ROWS,
    SAME,
    Check,
    Own,
    Subject,
    cuts,
    judged,
    off,
    subject_of,
)
from efficientllm.record import Finding


def examine(
    shape: Shape,
    device: torch.device,
    mixer: Mixer | None = None,
    *,
    thorough: bool = False,
    own: Own = NOTHING_OWN,
) -> tuple[Finding, ...]:
    """Everything to be found out about a shape's attention (`mixer` where it is a user's own).

    The first finding is about its output; when that one fails there are no others.
    `thorough` adds long rows and compilation; `own` is what the case will ask of it.
    """
    try:
        subject = subject_of(shape, device, mixer, thorough=thorough, own=own)
    except THEIRS as error:
        return (Finding(name="output", verdict="failed", seen=told(error), advice=_BUILD),)
    first = _found("output", _output, subject)
    if first.verdict == "failed":
        return (first,)
    checks = CHECKS | numerics.CHECKS | accounts.CHECKS
    checks |= numerics.THOROUGH if thorough else {}
    found = (first, *(_found(name, check, subject) for name, check in checks.items()))
    free_cached()
    return found


_BUILD = "the class is made with one argument, the Shape, and called with (x, positions, cache)"


def _found(name: str, check: Check, subject: Subject) -> Finding:
    """What a check found; one that cannot be run to its end has failed."""
    try:
        return check(subject)
    except THEIRS as error:
        if is_out_of_memory(error):
            raise
        advice = _BUILD if name == "output" else ""
        return Finding(name=name, verdict="failed", seen=told(error), advice=advice)


@torch.no_grad()
def _output(subject: Subject) -> Finding:
    """Shape and type of what comes out, for one token and for some."""
    trouble = ""
    for length in (1, LENGTH):
        x = subject.inputs(length)
        out = subject.whole(x)
        if not isinstance(out, Tensor):
            trouble = f"forward gives a {type(out).__name__}, not a tensor"
        elif out.shape != x.shape:
            trouble = f"an input of {list(x.shape)} gives an output of {list(out.shape)}"
        elif out.dtype != x.dtype:
            trouble = f"an input of {x.dtype} gives an output of {out.dtype}"
        elif not out.isfinite().all():
            trouble = "not all of the output is finite"
        if trouble:
            break
    advice = "forward gives a tensor of its input's shape [batch, tokens, hidden] and type"
    return judged("output", trouble, "shape and type of the input", advice)


def _causality(subject: Subject) -> Finding:
    """Neither a value nor a gradient comes from a later token."""
    trouble = ""
    for length, _ in subject.lengths:
        x, other = subject.inputs(length, rows=1), subject.inputs(length, seed=1, rows=1)
        for cut in cuts(length):
            trouble = trouble or _looks_ahead(subject, x, other, cut)
    advice = "mask every key behind its query, and normalise over no whole row"
    return judged("causality", trouble, "no value or gradient from a later token", advice)


def _looks_ahead(subject: Subject, x: Tensor, other: Tensor, cut: int) -> str:
    with torch.no_grad():
        changed = torch.cat((x[:, :cut], other[:, cut:]), dim=1)
        share = off(subject.whole(changed)[:, :cut], subject.whole(x)[:, :cut])
    if share > SAME:
        return f"tokens from {cut} on change outputs before them, by {share:.1%}"
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(subject.whole(x)[:, cut - 1].square().sum(), x)
    largest = max(gradient.abs().max().item(), 1e-30)
    later = gradient[:, cut:].abs().max().item() / largest
    return f"output {cut - 1} has a gradient from later tokens" if later > SAME else ""


def _cache(subject: Subject) -> Finding:
    """A prompt and single tokens through a cache give what whole rows give; twice over."""
    trouble = worst = ""
    for length, prompt in subject.lengths:
        x = subject.inputs(length)
        cache = subject.new_cache(ROWS, -(-length // 64) * 64)
        trouble = trouble or _misshapen(cache)
        with torch.no_grad():
            whole = subject.whole(x)
        for turn in ("", ", in a cache that was used before"):
            if trouble or (turn and length not in (LENGTH, EVEN)):
                break
            parts = subject.stepwise(x, prompt, cache)
            prefill = off(parts[:, :prompt], whole[:, :prompt])
            decode = off(parts[:, prompt:], whole[:, prompt:])
            if max(prefill, decode) > SAME:
                what = "prefill" if prefill > SAME else "decode"
                share = prefill if prefill > SAME else decode
                trouble = f"{what} differs from whole rows by {share:.1%} at {length} tokens{turn}"
            worst = f"prefill and decode equal whole rows to {max(prefill, decode):.0e}"
    advice = (
        "without positions.slot write positions 0 to T, whatever was there; with it write one"
        " token at positions.slot, then attend to what is filled"
    )
    return judged("cache", trouble, worst, advice)


def _misshapen(cache: Any) -> str:
    if not isinstance(cache, tuple) or not all(isinstance(t, Tensor) for t in cache):
        return f"new_cache gives a {type(cache).__name__}, not a tuple of tensors"
    wrong = [list(t.shape) for t in cache if t.ndim < 1 or t.shape[0] != ROWS]
    return f"a cache for {ROWS} rows holds {wrong[0]}: rows come first" if wrong else ""


@torch.no_grad()
def _rows(subject: Subject) -> Finding:
    rows = [subject.inputs(length) for length, _ in subject.lengths]
    share = max(off(subject.whole(x[:1]), subject.whole(x)[:1]) for x in rows)
    trouble = f"a row alone differs from the same row beside another by {share:.1%}"
    advice = "normalise and mix within a row only"
    return judged("rows", trouble if share > SAME else "", "rows do not see each other", advice)


@torch.no_grad()
def _positions(subject: Subject) -> Finding:
    """Whether angles, biases or slopes change anything; those at the embedding need no layer."""
    x = subject.inputs(LENGTH)
    kind = subject.shape.position
    if subject.positions(0, LENGTH) == Positions():
        seen = f"position {kind} tells attention nothing"
    elif off(subject.module(x, Positions()), subject.whole(x)) > SAME:
        seen = f"uses what position {kind} tells it"
    else:
        seen = f"does not use what position {kind} tells it (rotate, bias, slopes)"
        advice = f"use it in forward, or run with model.position=none: nobody ranks it as {kind}"
        return Finding(name="positions", verdict="unused", seen=seen, advice=advice)
    return Finding(name="positions", verdict="told", seen=seen)


CHECKS: dict[str, Check] = {
    "causality": _causality,
    "cache": _cache,
    "rows": _rows,
    "positions": _positions,
}
