"""Which trials of two rows are set beside one another, and what these do not share."""

from __future__ import annotations

from efficientllm.analysis.table import Row
from efficientllm.metrics import View

CARD, CODE = "card", "version of this tool's code"


def paired(a: Row, b: Row) -> tuple[list[tuple[View, View]], bool]:
    """Trials of the same round, on the same card where there are such; whether they are."""
    by_round = {view.record.trial.round: view for view in b.views}
    pairs = [
        (view, by_round[view.record.trial.round])
        for view in a.views
        if view.record.trial.round in by_round
    ]
    same = [p for p in pairs if p[0].record.machine.card == p[1].record.machine.card]
    if same:
        return same, True
    return pairs, False


def apart(a: Row, b: Row) -> list[str]:
    """Of card and code what some pair of trials does not share: all that differs may be that.

    Cards of one kind differ by some percent, versions of this tool by what its kernels gained.
    Rows without a common round are told by their newest trials, unknown origins not at all.
    """
    pairs = paired(a, b)[0] or [(a.views[-1], b.views[-1])]
    origins = {
        CARD: [tuple(view.record.machine.card for view in pair) for pair in pairs],
        CODE: [tuple(view.record.software.get("source", "") for view in pair) for pair in pairs],
    }
    return [what for what, found in origins.items() if any(x and y and x != y for x, y in found)]
