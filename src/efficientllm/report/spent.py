"""What a training took on the way: joules where they are known, else seconds, or tokens.

A token takes what it took in the steady window: scoring, compiling and saving in between are no
part of training.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple

from efficientllm.analysis.table import Row
from efficientllm.metrics import BY_KEY, Unmeasured, Value, View
from efficientllm.metrics.energy import energy_scope


class Spent(NamedTuple):
    """What is on the axis of a training's cost, how much of it a token took, and in whose rows."""

    unit: str
    notes: tuple[str, ...]
    per_token: Callable[[View], float]
    rows: dict[str, Row]


def spent(rows: dict[str, Row]) -> Spent:
    """Joules of the variants that have them, where two do and they cover one thing; else seconds.

    A curve in joules beside one in seconds would say nothing, and one row without energy is no
    reason to hide that of all others. So it is left out, by name. A seed without joules (or
    seconds) of its own, as after too short a window, takes what a token took its sisters.
    """
    joules = {name: [BY_KEY["j_per_token"](v) for v in row.views] for name, row in rows.items()}
    missing = {n: why for n, row in rows.items() if (why := _no_joules(row, joules[n]))}
    known = {name: row for name, row in rows.items() if name not in missing}
    scopes = {scope for row in known.values() for v in row.views if (scope := energy_scope(v))}
    if len(known) >= min(2, len(rows)) and len(scopes) == 1:
        note = f"Joules of the {scopes.pop()}: tokens times those of a token in the steady window."
        return _per_token("joules", note, rows, joules, missing)
    why = next((f"{name}: {reason}" for name, reason in missing.items()), "")
    why = f"they cover {' and '.join(sorted(scopes))}" if len(scopes) > 1 else why
    note = f"Seconds, not joules: {why}. Tokens times seconds of a token in the steady window."
    seconds = {name: [_seconds(view) for view in row.views] for name, row in rows.items()}
    lacks = {n: why for n, row in rows.items() if (why := _none("seconds", row, seconds[n]))}
    return _per_token("seconds", note, rows, seconds, lacks)


def _per_token(
    unit: str, note: str, rows: dict[str, Row], took: dict[str, list[Value]], lacks: dict[str, str]
) -> Spent:
    """What a token took, by trial: of all rows but those that lack it, which notes name."""
    known = {name: row for name, row in rows.items() if name not in lacks}
    lent = (told for n, row in known.items() if (told := _lent(unit, n, row, took[n])))
    left_out = (f"{name} is left out: {why}." for name, why in lacks.items())
    rates = {
        id(view): rate
        for name, row in known.items()
        for view, rate in zip(row.views, _completed(took[name]), strict=True)
    }
    return Spent(unit, (note, *lent, *left_out), lambda view: rates[id(view)], known)


def _no_joules(row: Row, joules: list[Value]) -> str:
    """Why no trial of a row has valid joules; empty where one has."""
    if row.cell("j_per_token").invalid:
        codes = (flag.code for flag in row.flags if flag.level == "invalid")
        return f"its energy is invalid ({' '.join(codes)})"
    return _none("joules", row, joules)


def _none(unit: str, row: Row, values: list[Value]) -> str:
    """Why no trial of a row has a value; empty where one has."""
    if not all(isinstance(value, Unmeasured) for value in values):
        return ""
    seed, reason = next(iter(_unknown(row, values).items()))
    return f"no {unit} of seed {seed}: {reason}"


def _unknown(row: Row, values: list[Value]) -> dict[int, str]:
    """Seeds whose trials have no value, and why."""
    pairs = zip(row.views, values, strict=True)
    return {v.record.trial.seed: x.reason for v, x in pairs if isinstance(x, Unmeasured)}


def _lent(unit: str, name: str, row: Row, values: list[Value]) -> str:
    """Which seeds of a row stand with what a token took their sisters."""
    unknown = _unknown(row, values)
    if not unknown:
        return ""
    seeds = f"seed{'s' if len(unknown) > 1 else ''} {', '.join(map(str, unknown))}"
    why, *_ = unknown.values()
    return f"{name}: {seeds} with the {unit} a token took the others ({why})."


def _completed(values: list[Value]) -> list[float]:
    """What a token took, by trial; the others' mean where it is not known."""
    mean = statistics.fmean(x for x in values if not isinstance(x, Unmeasured))
    return [mean if isinstance(x, Unmeasured) else x for x in values]


def _seconds(view: View) -> Value:
    """Seconds of a training token in the steady window."""
    rate = BY_KEY["train_tokens_per_s"](view)
    if isinstance(rate, Unmeasured):
        return rate
    return 1 / rate if rate else Unmeasured("the window holds no tokens")


def seen(rows: dict[str, Row]) -> Spent:
    """Tokens, which every training has."""
    return Spent("tokens", (), lambda _: 1.0, rows)
