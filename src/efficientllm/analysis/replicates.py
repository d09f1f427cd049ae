"""Replicates: trials of equal case, environment and point, and which attempts stand for them."""

from __future__ import annotations

from collections.abc import Iterable

from efficientllm.metrics import Ceiling, View
from efficientllm.record import PointResult, Record
from efficientllm.spec.case import Case
from efficientllm.spec.protocol import PROFILES


def replicates(records: Iterable[Record], ceilings: dict[str, Ceiling]) -> list[tuple[View, ...]]:
    """The trials of each row, by round; `ceilings` by machine.

    A record without any point (it ended too early, or cannot run here) gives a row for
    each point it should have had, so that nothing is silently missing. Of several
    attempts at one round the last counts, but what a longer protocol has measured is not
    replaced by a shorter one.
    """
    grouped: dict[tuple[str, str, str], dict[int, View]] = {}
    for record in sorted(records, key=lambda r: (r.started_at, r.trial.attempt)):
        if record.case["workload"]["kind"] == "probe":
            continue
        ceiling = ceilings.get(record.machine.name, Ceiling())
        for point in _points(record):
            key = (*shared(record), point.point_id)
            rounds, view = grouped.setdefault(key, {}), View(record, point, ceiling)
            if _replaces(view, rounds.get(record.trial.round)):
                rounds[record.trial.round] = view
    standing = _without_older_failures(grouped)
    return [tuple(by_round[r] for r in sorted(by_round)) for by_round in standing]


def shared(record: Record) -> tuple[str, str]:
    """What a row's replicates have in common, beside the point: the case and the environment."""
    return record.trial.case_id, record.env_id


def _replaces(later: View, known: View | None) -> bool:
    """Whether a later attempt at a round stands for it."""
    if known is None or known.point.outcome.status != "ok":
        return True
    order = list(PROFILES)
    new, old = (order.index(view.record.protocol["profile"]) for view in (later, known))
    return new >= old


def _points(record: Record) -> list[PointResult]:
    if record.points:
        return list(record.points)
    case = Case.model_validate(record.case)
    return [
        PointResult(
            point_id=case.point_id(point),
            batch=point.batch,
            context=point.context,
            outcome=record.outcome,
        )
        for point in case.points
    ]


def _without_older_failures(
    grouped: dict[tuple[str, str, str], dict[int, View]],
) -> list[dict[int, View]]:
    """A failed row gives way to a later ok row of the same case, machine and point.

    One that was only told to stop gives way to an earlier one too.
    """
    placed = [
        ((case_id, point_id, next(iter(views.values())).record.machine.name), views)
        for (case_id, _, point_id), views in grouped.items()
    ]
    good: dict[tuple[str, str, str], str] = {}
    for place, views in placed:
        good[place] = max(good.get(place, ""), _went_well(views))
    return [
        views
        for place, views in placed
        if _went_well(views) or not good[place] or _broke(views) > good[place]
    ]


def _went_well(views: dict[int, View]) -> str:
    """When a trial last ended well; empty where none did."""
    good = (v.record.started_at for v in views.values() if v.point.outcome.status == "ok")
    return max(good, default="")


def _broke(views: dict[int, View]) -> str:
    """When a trial last failed by itself; empty where none did."""
    failed = (v.record for v in views.values() if v.point.outcome.status != "interrupted")
    return max((record.started_at for record in failed), default="")
