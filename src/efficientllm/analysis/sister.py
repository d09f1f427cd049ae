"""Rows that a suite needs and another suite measured.

What two suites name is measured once, and stands under the suite that ran first: `position`
finds its rotary rows among those of `attention`. Only what a suite itself names is taken from
another, and only where its own rows lack it: a row of the user's other experiments must not
move what a suite says.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from efficientllm.analysis.study import AXES, Axis, rest
from efficientllm.analysis.table import Row
from efficientllm.spec.canonical import digest
from efficientllm.spec.case import Case
from efficientllm.spec.model import Backbone


class _Place(NamedTuple):
    """All that is equal between the variants of a study at one point."""

    axis: Axis
    model: str
    work: str
    point: str
    machine: str


def from_sisters(main: list[Row], others: Iterable[Row], cases: Iterable[Case]) -> list[Row]:
    """Rows among `others` that `main` lacks of the variants that the suite's `cases` name.

    Each beside at least one of `main`: the same work on a model that is equal but for one
    part, at the same point, on the same machine.
    """
    named = _named(cases)
    own = {(place, part) for row in main for place, part in _places(row, named)}
    beside = {place for place, _ in own}
    known = {id(row) for row in main}
    return [
        row
        for row in others
        if id(row) not in known
        and row.record.protocol["profile"] != "smoke"
        and any(
            place in beside and part in named[place.axis] and (place, part) not in own
            for place, part in _places(row, named)
        )
    ]


def _named(cases: Iterable[Case]) -> dict[Axis, set[str]]:
    """The parts that a suite varies, as digests; nothing of what it leaves alone."""
    models = [case.model for case in cases if isinstance(case.model, Backbone)]
    found = {axis: {digest(getattr(model, axis)) for model in models} for axis in AXES}
    return {axis: parts for axis, parts in found.items() if len(parts) > 1}


def _places(row: Row, axes: Iterable[Axis]) -> list[tuple[_Place, str]]:
    """Where a row stands in the studies of these parts, and which of their variants it is."""
    case, model = row.case, row.case.model
    if not isinstance(model, Backbone):
        return []
    told = {
        "workload": case.workload.model_dump(mode="json", exclude={"points"}),
        "technique": case.technique,
        "quality": case.quality,
    }
    work, machine = digest(told), row.record.machine.name
    return [
        (_Place(axis, rest(model, axis), work, row.point, machine), digest(getattr(model, axis)))
        for axis in axes
    ]
