"""One layer's attention on the table: with weights, inputs and positions to be examined by.

In float32, where rounding hides nothing, at a length that is no multiple of anything, at one
that is a multiple of everything that kernels cut rows into, and at the case's own.

Legend: B batch, T positions, C hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from efficientllm.catalog.shape import Shape
from efficientllm.models.decoder import Mixer, attention_of
from efficientllm.models.encoding import Encoding, encoding_of
from efficientllm.models.own import is_own
from efficientllm.models.position import Positions
from efficientllm.record import Finding
from efficientllm.spec.case import Case
from efficientllm.spec.workload import Generate, Training

ROWS = 2
LENGTH, PROMPT = 67, 41
EVEN, EVEN_PROMPT = 128, 64
"""Rows of whole blocks: what a kernel does for these alone is what trainings use."""

LONG, LONG_PROMPT = 1091, 1030
"""Long enough to leave a window of 1,024 tokens behind."""

CUTS = {LENGTH: (1, 2, 33, 64, LENGTH - 1), EVEN: (1, 63, 64, 100), LONG: (LONG - 70,)}
"""Places in a row of this length from which on tokens are changed."""

MOST_OWN = 2048
"""A case's own length is examined up to this: at more, scores written out fill a device."""

DECODED = 4
"""Tokens that are decoded one by one after a prompt of the case's own length."""

SAME = 1e-4
"""Differences up to this share of the largest value are rounding in float32."""


class Own(NamedTuple):
    """What a case will ask of its attention."""

    rows: tuple[tuple[int, int], ...] = ()
    """Lengths to be examined, each with that of the prompt in it."""

    costs: tuple[tuple[int, int], ...] = ()
    """New tokens, and those before them, for which its cost will be asked."""


NOTHING_OWN = Own()


@dataclass
class Subject:
    """One layer's attention in float32 with weights of about unit gain, and its positions."""

    shape: Shape
    module: nn.Module
    encoding: Encoding
    device: torch.device
    thorough: bool
    own: Own

    @property
    def lengths(self) -> tuple[tuple[int, int], ...]:
        """Lengths to try, each with that of the prompt in it."""
        short = ((LENGTH, PROMPT), (EVEN, EVEN_PROMPT))
        long = ((LONG, LONG_PROMPT),) if self.thorough else ()
        return tuple(dict.fromkeys((*short, *long, *self.own.rows)))

    def inputs(self, length: int, seed: int = 0, rows: int = ROWS) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(rows, length, self.shape.hidden, generator=generator).to(self.device)

    def positions(self, first: int, end: int, dtype: torch.dtype = torch.float32) -> Positions:
        return self.encoding.positions(torch.arange(first, end, device=self.device), dtype)

    def whole(self, x: Tensor) -> Tensor:
        """Whole rows without a cache."""
        return self.module(x, self.positions(0, x.shape[1], x.dtype))

    @torch.no_grad()
    def stepwise(self, x: Tensor, prompt: int, cache: Any) -> Tensor:
        """The same rows through a cache: a prompt at once, then token by token."""
        parts = [self.module(x[:, :prompt], self.positions(0, prompt), cache)]
        for at in range(prompt, x.shape[1]):
            slot = torch.tensor([at], device=self.device)
            positions = self.positions(at, at + 1)._replace(slot=slot)
            parts.append(self.module(x[:, at : at + 1], positions, cache))
        return torch.cat(parts, dim=1)

    def new_cache(self, rows: int, slots: int) -> Any:
        make: Callable[..., Any] = self.module.new_cache  # type: ignore[assignment]
        return make(rows, slots, self.device, torch.float32)


def subject_of(
    shape: Shape,
    device: torch.device,
    mixer: Mixer | None,
    *,
    thorough: bool,
    own: Own,
) -> Subject:
    """The attention of a shape, or a user's own; what its class initialises itself stays."""
    torch.manual_seed(0)
    with torch.device(device):
        module, encoding = (mixer or attention_of)(shape).float(), encoding_of(shape)
    with torch.no_grad():
        for part in module.modules():
            for name, weight in () if is_own(part) else part.named_parameters(recurse=False):
                if weight.ndim > 1:
                    weight.normal_(std=weight.shape[-1] ** -0.5)
                else:
                    weight.normal_(mean=float(name == "weight"), std=0.1)
    return Subject(shape, module, encoding, device, thorough, own)


def cuts(length: int) -> tuple[int, ...]:
    """Places in a row from which on its tokens are changed: 1 to length - 1."""
    return CUTS.get(length) or tuple(dict.fromkeys((1, length // 2, length - 1)))


def own_work(case: Case) -> Own:
    """Rows of a training; of generation the largest prompt and a few tokens.

    Examined up to `MOST_OWN` tokens. Costs cost nothing: those of all lengths are asked.
    """
    match case.workload:
        case Training(sequence_length=length):
            row = min(length, MOST_OWN)
            return Own(((row, max(1, row - DECODED)),), ((length, 0),))
        case Generate(points=points, new_tokens=new):
            prompt = min(max(points.context), MOST_OWN)
            costs = [((c, 0), (1, c), (1, c + new - 2)) for c in points.context]
            return Own(((prompt + DECODED, prompt),), tuple(chain.from_iterable(costs)))
        case _:
            return Own((), ((LONG, 0), (1, LONG)))


Check = Callable[[Subject], Finding]


def judged(name: str, trouble: str, fine: str, advice: str) -> Finding:
    """Failed where there is trouble, with what to do about it; else passed."""
    if trouble:
        return Finding(name=name, verdict="failed", seen=trouble, advice=advice)
    return Finding(name=name, verdict="passed", seen=fine)


def off(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a share of the largest value of `b`; infinite for NaN."""
    if not (a.isfinite().all() and b.isfinite().all()):
        return float("inf")
    largest = max(b.abs().max().item(), 1e-30)
    return (a - b).abs().max().item() / largest if a.numel() else 0.0
