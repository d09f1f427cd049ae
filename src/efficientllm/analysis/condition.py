"""Conditions on a comparison, for continuous integration: `slower>5%`."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from efficientllm.analysis.compare import INVALID, Comparison, barred
from efficientllm.spec.document import SpecError

_CONDITION = re.compile(r"^\s*(slower|larger|worse)\s*>\s*(\d+(?:\.\d+)?)\s*%?\s*$")
_CONCERNS = {
    "slower": ("train_tokens_per_s", "it_tokens_per_s"),
    "larger": ("peak_allocated_gib", "host_peak_rss_gib"),
    "worse": ("bits_per_byte",),
}


class Condition(NamedTuple):
    """What a condition like `slower>5%` came to: held, broken, or beyond it and undecided."""

    status: Literal["held", "broken", "undecided"]
    text: str


def check_condition(found: Comparison, condition: str) -> Condition:
    """Judge a comparison; raises SpecError for a condition that nothing here can answer.

    It is broken when the whole interval is beyond the limit. Where the estimate is beyond and
    the interval is not, or there is none, it is undecided, which must not pass for held; so it
    is with a side that is invalid, did not end well or is a smoke run.
    """
    match = _CONDITION.match(condition)
    if not match:
        raise SpecError(
            f"--fail-if {condition!r}: write it like 'slower>5%', 'larger>2%', 'worse>1%'"
        )
    word, limit = match.group(1), float(match.group(2)) / 100
    why = barred(found.a, found.b)
    if why:
        return Condition("undecided", f"undecided: {why}")
    concerned = [line for line in found.lines if line.metric.key in _CONCERNS[word]]
    if not concerned:
        raise SpecError(f"--fail-if {condition!r}: neither row has {' or '.join(_CONCERNS[word])}")
    if any(line.why == INVALID for line in concerned):
        return Condition("undecided", f"undecided: {INVALID}")
    beyond = [line for line in concerned if line.change > limit]
    told = [f"{x.metric.label}: {x.change:.1%} {word}, the limit is {limit:.1%}" for x in beyond]
    for line, text in zip(beyond, told, strict=True):
        least = line.least_change
        if least is not None and least > limit:
            return Condition("broken", text)
    if beyond:
        why = beyond[0].why or "its interval reaches below the limit"
        return Condition("undecided", f"{told[0]}, but undecided: {why}")
    return Condition("held", "")
