"""A study's part of the page: its matrix, its charts, and what its trainings decide."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from efficientllm.analysis.differences import Difference, Trainings
from efficientllm.analysis.flag import UNSOUND, Flag
from efficientllm.analysis.sister import from_sisters
from efficientllm.analysis.study import Study, studies, trainings, unrun
from efficientllm.analysis.sweep import Sweep, learning_rate, sweeps
from efficientllm.analysis.table import Row, of_suite
from efficientllm.record import Record
from efficientllm.report.charts import Chart
from efficientllm.report.columns import device, number, with_half_width
from efficientllm.report.contexts import cost_charts
from efficientllm.report.learning import cache_chart, learning_chart, token_chart
from efficientllm.report.matrix import Matrix, matrix
from efficientllm.spec.case import Case
from efficientllm.spec.suite import builtin_names, load_suite

MAX_STUDIES = 6
_HOUR, _MEGA = 3600.0, 1e6


class Swept(NamedTuple):
    """A sweep as the template shows it."""

    name: str
    sweep: Sweep
    cells: tuple[str, ...]
    flags: tuple[Flag, ...]


class Section(NamedTuple):
    """Everything about one study.

    `budget` says how far its trainings went, `unrun` what its suite has that nobody ran.
    """

    title: str
    matrix: Matrix
    costs: tuple[Chart, ...]
    quality: tuple[Chart, ...]
    differences: tuple[Difference, ...]
    sweeps: tuple[Swept, ...]
    budget: str
    unrun: str


class Studies(NamedTuple):
    """The sections of the page; the first one's matrix stands on the first screen."""

    sections: tuple[Section, ...]
    quality: Trainings


def rows_of_suite(rows: list[Row], records: Iterable[Record], newest: Record) -> list[Row]:
    """What the page is about: the newest record's suite on its machine; `rows` are of `records`.

    With what another suite measured for it, where it is one of ours.
    """
    name = newest.trial.suite
    suite = of_suite(rows, records, name)
    main = [r for r in suite if r.record.machine.name == newest.machine.name] or suite
    chosen = {id(row) for row in (*main, *from_sisters(main, rows, _cases(name)))}
    return [row for row in rows if id(row) in chosen]


def _cases(suite: str) -> tuple[Case, ...]:
    """What a suite of ours has; nothing of a user's own, whose file is not at hand."""
    return load_suite(suite).cases if suite in builtin_names() else ()


def studies_of(main: list[Row], shown: list[Row]) -> Studies | None:
    """The studies of the main rows; None where they vary no part of a model.

    Where the first one trained nothing, bits per byte come from another study of the same
    part, which then has a section of its own and is named wherever its numbers stand.
    """
    found = studies(main)
    if not found:
        return None
    own = {id(row) for row in main}
    others = studies(row for row in shown if id(row) not in own)
    lent, quality = _trained(found[0], [*found, *others])
    more = [lent] if lent is not None and all(lent is not s for s in found[:MAX_STUDIES]) else []
    chosen = [*found[: MAX_STUDIES - len(more)], *more]
    sections = tuple(
        _section(s, quality if s is found[0] else None, _elsewhere(s, found[0])) for s in chosen
    )
    return Studies(sections, quality)


def _trained(first: Study, others: list[Study]) -> tuple[Study | None, Trainings]:
    """The study whose trainings speak for the first one: itself, else one of the same part; these.

    Where it trained anything itself, nothing is lent: that would stand in the place of its own.
    Of several the one that decides most pairs, then that with the seeds to decide most, then
    that of most variants, then one of its machines.
    """
    if (own := trainings(first)).rows:
        return first, own
    trained = ((s, trainings(s)) for s in others if s.axis == first.axis)
    found = [(study, own) for study, own in trained if len(own.rows) > 1]

    def rank(pair: tuple[Study, Trainings]) -> tuple[int, int, int, bool]:
        study, own = pair
        decided = sum(x.verdict != "undecided" for x in own.differences)
        tested = sum(x.p is not None for x in own.differences)
        return decided, tested, len(own.rows), not _elsewhere(study, first)

    if not found:
        return None, Trainings("", {}, ())
    study, lent = max(found, key=rank)
    return study, lent._replace(elsewhere=_elsewhere(study, first))


def _elsewhere(study: Study, first: Study) -> str:
    """The device of a study of other machines than the first one's, which has to be named."""
    same = study.machine.name == first.machine.name
    return "" if same else f"on {device(study.machine.device)}"


def _section(study: Study, lent: Trainings | None, elsewhere: str) -> Section:
    """A study's section; `lent`, if any, are the trainings that its matrix shows."""
    own = trainings(study)
    names = list(study.variants)
    cached = cache_chart(own.rows, list(own.differences), names)
    learned, seen = learning_chart(own.rows, names), token_chart(own.rows, names)
    charts = (learned, seen, cached) if seen.svg else (learned, cached)  # one says why
    suites = dict.fromkeys(row.record.trial.suite for row in study.rows())
    return Section(
        f"{study.axis.capitalize()} at {study.size}, suite {' and '.join(suites)}"
        + (f", {elsewhere}" if elsewhere else ""),
        matrix(study, own if lent is None else lent),
        tuple(cost_charts(study)),
        charts if own.rows else (),
        own.differences,
        tuple(_swept(study, sweep) for sweep in sweeps(study.rows())),
        " ".join(filter(None, (_budget(list(own.rows.values())), _tuning(own)))),
        " ".join(filter(None, (_unrun(study, suite) for suite in suites))),
    )


def _unrun(study: Study, suite: str) -> str:
    """Variants of a suite that have no row, where they would be looked for and not be missed."""
    missing = unrun(study, _cases(suite))
    return f"Not run at {study.size}: {', '.join(missing)} of suite {suite}." if missing else ""


def _budget(rows: list[Row]) -> str:
    """Tokens per parameter of the trainings, and whether that is few."""
    cells = (row.cell("tokens_per_param").interval for row in rows)
    values = [interval.value for interval in cells if interval is not None]
    if not values:
        return ""
    low, high = number(min(values)), number(max(values))
    flags = [f for row in rows for f in row.flags if f.code == "UNDERTRAINED"]
    few = ": UNDERTRAINED, what is better early need not be better later" if flags else ""
    return f"{low if low == high else f'{low} to {high}'} tokens per parameter{few}."


def _tuning(own: Trainings) -> str:
    """What choosing rates does to the verdicts: who tried more of them got more luck."""
    most = max(own.tried.values(), default=1)
    if most == 1:
        return ""
    counts = ", ".join(f"{name} {n}" for name, n in own.tried.items())
    uneven = "; unevenly, which favours those with more" if min(own.tried.values()) < most else ""
    return (
        "Each stands with its best learning rate, chosen on the same seeds and text, which makes it"
        f" look a little too good. Rates with enough seeds to choose among: {counts}{uneven}."
    )


def _swept(study: Study, sweep: Sweep) -> Swept:
    name = next(n for n, rows in study.variants.items() if any(r is sweep.best for r in rows))
    joules = "\u2013" if sweep.joules is None else f"{number(sweep.joules / _MEGA)} MJ"
    cells = (
        f"{learning_rate(sweep.best):g}",
        with_half_width(sweep.best.cell("bits_per_byte")),
        with_half_width(sweep.best.cell("tokens_per_param")),
        ", ".join(f"{rate:g}" for rate in sweep.tried),
        str(sweep.trials),
        f"{number(sweep.seconds / _HOUR)} h",
        joules,
    )
    doubted = (flag for flag in sweep.best.flags if flag.code in UNSOUND)
    return Swept(name, sweep, cells, (*doubted, *sweep.flags))
