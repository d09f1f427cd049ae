"""Whether an attention keeps the accounts it states: bytes of its cache, FLOPs of its products.

MFU and MBU divide what was stated by time, so a statement that is too high flatters. Stated
are the FLOPs that the algorithm needs, causal pairs once; counted are those that were executed
(torch's own counter, with attention written out), masked pairs included. So a statement may
lie below what was counted, down to the projections alone, and never above; for a single token
the two are equal. Products inside a kernel of somebody's own are not counted: where nothing
but projections was seen, a statement may lie above by what attention could at most take.

Our own attention states what `cost.py` says, which is held to the same counter here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from efficientllm import cost
from efficientllm.catalog.shape import Shape
from efficientllm.models.contract import Cost, declared_cost
from efficientllm.models.subject import LENGTH, Check, Subject, judged
from efficientllm.parameters import parameters
from efficientllm.record import Finding

SLOTS = 192
TOLERANCE = 0.05
ELEMENT = 4
"""Bytes of a value in float32, in which all this is done."""

_UNSTATED = "no cost(new, seen): mfu, mbu and roofline_share stay null"


class _Counted(NamedTuple):
    """FLOPs that were executed: products with weights, and all others that could be seen."""

    products: float
    others: float

    @property
    def total(self) -> float:
        return self.products + self.others


def _stated(subject: Subject, new: int, seen: int) -> Cost | None:
    if subject.shape.custom:
        return declared_cost(subject.module, new, seen)
    return _by_formula(subject.shape, new, seen)


def _by_formula(shape: Shape, new: int, seen: int) -> Cost:
    """The cost of one layer of ours: a whole row, or one token after some."""
    one = shape.model_copy(update={"layers": 1})
    layer, head = parameters(one).layers[0], shape.vocab * shape.hidden
    whole = cost.decode_flops(one, 1, seen + 1) if seen else cost.prefill_flops(one, 1, new)
    assert whole is not None
    flops = whole - 2.0 * new * layer.feedforward - 2.0 * head
    held = cost.cache_bytes(one, seen + new, ELEMENT)
    return Cost(flops, held, cost.cache_read_bytes(one, seen + new, ELEMENT))


def _cache_bytes(subject: Subject) -> Finding:
    name = "cache bytes"
    stated = _stated(subject, 1, SLOTS - 1)
    made = sum(t.numel() * t.element_size() for t in subject.new_cache(1, SLOTS))
    if stated is None:
        seen = f"{made} bytes for {SLOTS} tokens; {_UNSTATED}"
        return Finding(name=name, verdict="told", seen=seen)
    numbers = f"{stated.cache_bytes:.0f} bytes stated for {SLOTS} tokens, {made} allocated"
    wrong = abs(stated.cache_bytes - made) > TOLERANCE * made
    advice = "cost().cache_bytes is what one layer holds for one sequence, in the weights' type"
    # The branches of our sparse attention each read their own tokens, some of them twice.
    if subject.shape.custom and not wrong and stated.read > (1 + TOLERANCE) * made:
        numbers, wrong = f"{stated.read:.0f} bytes stated as read, {made} allocated", True
        advice = "cost().read_bytes is what a decode step reads of the cache: not more than all"
    return judged(name, numbers if wrong else "", numbers, advice)


class _Work(NamedTuple):
    """So many new tokens of one sequence after so many in its cache."""

    what: str
    new: int
    seen: int


_TOKEN, _ROW, _DECODE = (
    _Work("a token", 1, 0),
    _Work("a row", LENGTH, 0),
    _Work("decode", 1, SLOTS - 1),
)


def _flops(subject: Subject) -> Finding:
    name, works = "FLOPs", (_TOKEN, _ROW, _DECODE)
    stated = {work: _stated(subject, work.new, work.seen) for work in works}
    known = {work: cost.flops for work, cost in stated.items() if cost is not None}
    if len(known) < len(works):
        return Finding(name=name, verdict="told", seen=_UNSTATED)
    counted = {work: _executed(subject, work.new, work.seen) for work in works}
    for new, before in subject.own.costs:
        _stated(subject, new, before)  # one that raises would leave the case without its counts
    told = {w: f"{w.what} {known[w]:.4g} stated, {counted[w].total:.4g} executed" for w in works}
    wrong = [told[w] for w in works if not _accepted(subject.shape, w, known[w], counted)]
    text = "; ".join(told.values())
    if not wrong and any(known[w] > (1 + TOLERANCE) * counted[w].total for w in (_ROW, _DECODE)):
        text += "; a kernel of its own, whose products cannot be counted"
        return Finding(name=name, verdict="told", seen=text)
    advice = (
        "cost().flops is one layer's forward pass, 2 a multiply-add, causal pairs once; with a"
        " state instead of a cache what one step changes and reads of it, for each token"
    )
    return judged(name, "; ".join(wrong), text, advice)


def _accepted(shape: Shape, work: _Work, stated: float, counted: dict[_Work, _Counted]) -> bool:
    """Whether a statement lies where it may for this work."""
    if work is _TOKEN and _close(stated, counted[_DECODE].total):
        return True  # of a state every token changes and reads as much, the first one too
    found = counted[work]
    low = found.total if work is _TOKEN else found.products
    most = found.total if found.others else _imaginable(shape, found, work.new, work.seen)
    return (1 - TOLERANCE) * low <= stated <= (1 + TOLERANCE) * most


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= TOLERANCE * other


def _imaginable(shape: Shape, counted: _Counted, new: int, seen: int) -> float:
    """FLOPs with the most that a kernel of its own may add to the products that were seen.

    Scores and values take 4 for each pair and value of a head; a state of head_dim x head_dim
    takes 4 for each value to be changed and read. Twice both.
    """
    pairs = new * seen + new * (new + 1) / 2
    return counted.total + 8.0 * shape.heads * shape.head_dim * (pairs + new * shape.head_dim)


@torch.no_grad()
def _executed(subject: Subject, new: int, seen: int) -> _Counted:
    """What torch's counter sees of a whole row, or of one token on a cache that is full."""
    run: Callable[[], object]
    if seen:
        cache = subject.new_cache(1, seen + new)
        positions = subject.positions(seen, seen + 1)
        positions = positions._replace(slot=torch.tensor([seen], device=subject.device))
        x = subject.inputs(1, rows=1)

        def run() -> object:
            return subject.module(x, positions, cache)
    else:
        x = subject.inputs(new, rows=1)

        def run() -> object:
            return subject.whole(x)

    # Kernels of scaled-dot-product attention are not all known to the counter; its parts are.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    by_kernel = counter.get_flop_counts().get("Global", {})
    products = sum(n for op, n in by_kernel.items() if str(op) in ("aten.mm", "aten.addmm"))
    return _Counted(float(products), float(counter.get_total_flops() - products))


CHECKS: dict[str, Check] = {"cache bytes": _cache_bytes, "FLOPs": _flops}
