"""Rows: replicates of one case and point, each metric with its interval and its flags."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from efficientllm.analysis.checks import Flag, flags
from efficientllm.analysis.flag import UNSOUND
from efficientllm.analysis.replicates import replicates, shared
from efficientllm.analysis.stats import (
    BLOCKS,
    MIN_FOR_INTERVAL,
    Interval,
    counted,
    over_documents,
    over_trials,
    within_run,
)
from efficientllm.metrics import BY_KEY, Ceiling, Metric, Unmeasured, View
from efficientllm.metrics.energy import MIN_SECONDS
from efficientllm.metrics.quality import MAX_NATS
from efficientllm.record import Record, Window
from efficientllm.spec.case import Case
from efficientllm.spec.protocol import Protocol
from efficientllm.spec.technique import WEIGHTS, Cast
from efficientllm.spec.workload import Training


class Cell(NamedTuple):
    """One metric of one row: an interval, which may be invalid, or why there is none."""

    interval: Interval | None
    reason: str = ""
    invalid: bool = False


@dataclass(frozen=True)
class Row:
    """Replicates of one case at one point; `views` are its trials, in rounds."""

    views: tuple[View, ...]

    @property
    def case(self) -> Case:
        return self.views[0].case

    @property
    def record(self) -> Record:
        """The record of the last round, which the row's links lead to."""
        return self.views[-1].record

    @property
    def name(self) -> str:
        return self.record.trial.name

    @property
    def label(self) -> str:
        """The name without its stage, which stands above it in tables."""
        return self.name.removeprefix(f"{self.case.stage}-") or self.name

    @property
    def point(self) -> str:
        """`b32 c1024`: batch and context."""
        point = self.views[0].point
        return f"b{point.batch} c{point.context}"

    @property
    def key(self) -> str:
        """A short name that `compare` and `show` accept."""
        return self.record.trial.case_id[:8]

    @property
    def status(self) -> str:
        """ok, or how the point or the trial ended."""
        return next(
            (v.point.outcome.status for v in self.views if v.point.outcome.status != "ok"),
            self.record.outcome.status,
        )

    @property
    def reason(self) -> str:
        outcome = self.views[-1].point.outcome
        return outcome.reason or self.record.outcome.reason

    @property
    def cost_only(self) -> bool:
        """Whether nothing about quality follows from this row: nobody trained its weights.

        Pretraining starts from random weights by definition; there it is the missing
        budget that makes a row cost only.
        """
        build, workload = self.record.build, self.case.workload
        if isinstance(workload, Training) and self.case.stage == "pretrain":
            return not workload.budgeted
        return build is not None and build.weights == "random"

    @cached_property
    def flags(self) -> tuple[Flag, ...]:
        """Flags of every trial and of their being several, each code once with its worst level."""
        order = {"info": 0, "warn": 1, "invalid": 2}
        worst: dict[tuple[str, str], Flag] = {}
        for flag in (*self._mixed_code(), *(f for view in self.views for f in flags(view))):
            known = worst.get((flag.code, flag.text))
            if known is None or order[flag.level] > order[known.level]:
                worst[flag.code, flag.text] = flag
        by_code: dict[str, Flag] = {}
        for flag in sorted(worst.values(), key=lambda f: order[f.level]):
            by_code[flag.code] = flag
        return tuple(sorted(by_code.values(), key=lambda f: -order[f.level]))

    def _mixed_code(self) -> Iterator[Flag]:
        """Trials of several versions of this tool are replicates; that they are has to be told."""
        versions = {view.record.software.get("source") for view in self.views}
        if len(versions) > 1:
            text = f"its trials were made by {len(versions)} versions of this tool's code"
            yield Flag("MIXED_CODE", "info", "all", text)

    @cached_property
    def ranked(self) -> bool:
        """Whether this row may be compared as a result: ok, not smoke, nothing invalid."""
        barred = any(flag.bars_ranking for flag in self.flags)
        return self.status == "ok" and not self.of_smoke and not barred

    @cached_property
    def of_smoke(self) -> bool:
        """Whether a trial of it was a glance that shows that it works, never how fast."""
        protocols = (Protocol.model_validate(view.record.protocol) for view in self.views)
        return not all(protocol.ranked for protocol in protocols)

    @cached_property
    def _protocol(self) -> Protocol:
        return Protocol.model_validate(self.record.protocol)

    @property
    def unsound(self) -> str:
        """Why nothing is decided by this row: what it ran is not what it is called, if so."""
        return next((flag.text for flag in self.flags if flag.code in UNSOUND), "")

    def cell(self, key: str) -> Cell:
        """One metric over the row's trials; of rows that no table shows few are asked for."""
        if key not in self._cells:
            self._cells[key] = self._cell(BY_KEY[key])
        return self._cells[key]

    @cached_property
    def _cells(self) -> dict[str, Cell]:
        return {}

    def _cell(self, metric: Metric) -> Cell:
        values = [metric(view) for view in self.views]
        numbers = [value for value in values if not isinstance(value, Unmeasured)]
        if not numbers:
            reasons = [value.reason for value in values if isinstance(value, Unmeasured)]
            return Cell(None, reasons[0] if reasons else "nothing was measured")
        about = {"energy": "energy", "quality": "quality"}.get(metric.kind, "all")
        energy_key = metric.key == "energy_j"
        invalid = any(
            flag.level == "invalid" and (flag.about in ("all", about) or energy_key)
            for flag in self.flags
        )
        exact = counted(numbers) if metric.kind == "exact" else None
        if exact is not None:
            return Cell(exact, invalid=invalid)
        interval = over_trials(numbers, looked=self._protocol.trials is None)
        if interval.low is None and len(numbers) < MIN_FOR_INTERVAL:
            interval = self._single(metric, interval)
        return Cell(interval, invalid=invalid)

    def _single(self, metric: Metric, interval: Interval) -> Interval:
        """What one or two trials can say about their own scatter."""
        if metric.kind in ("time", "energy"):
            return within_run(interval.value, self._blocks(metric))
        if metric.key in ("bits_per_byte", "perplexity"):
            return self._over_text(metric.key, interval)
        return interval

    def _blocks(self, metric: Metric) -> list[float]:
        view = self.views[-1]
        windows = [w for w in view.point.windows if w.name != "request" and w.units]
        if not windows:
            return []
        count = min(BLOCKS, *(window.units for window in windows))
        main = view.main_window
        if metric.kind == "energy" and isinstance(main, Window):
            count = min(count, int(main.seconds / MIN_SECONDS))
        blocks = [metric(block) for block in view.blocks(count)] if count >= 3 else []
        return [value for value in blocks if not isinstance(value, Unmeasured)]

    def _over_text(self, key: str, interval: Interval) -> Interval:
        import math

        scores = self.record.scores
        if scores is None:
            return interval
        sizes = scores.bytes if key == "bits_per_byte" else scores.tokens
        found = over_documents(scores.nll, sizes)
        if found is None or found[1] > MAX_NATS:
            return interval
        low, high = (
            (x / math.log(2) for x in found)
            if key == "bits_per_byte"
            else (math.exp(x) for x in found)
        )
        return Interval(interval.value, low, high, len(scores.nll), "text")


def rows(records: Iterable[Record], ceilings: dict[str, Ceiling] | None = None) -> list[Row]:
    """Group records into rows: equal case, environment and point are replicates (`replicates`)."""
    return _with_references([Row(views) for views in replicates(records, ceilings or {})])


def of_suite(rows: list[Row], records: Iterable[Record], suite: str) -> list[Row]:
    """Those of the rows that a suite measured, also where another has repeated it since.

    `records` are what the rows were grouped from; the newest of a row may be of any suite that
    has the same case, but a smoke run is nobody's but its own suite's.
    """
    own = {shared(record) for record in records if record.trial.suite == suite}
    return [
        row
        for row in rows
        if row.record.trial.suite == suite or (shared(row.record) in own and not row.of_smoke)
    ]


def _with_references(made: list[Row]) -> list[Row]:
    """Give compressed rows the uncompressed one of the same model, workload and point."""
    references: dict[tuple[str, str, str], Row] = {}
    for row in made:
        if row.case.stage == "generate" and _uncompressed(row.case):
            key = _family(row)
            if key not in references or _kind(row) == "bf16":
                references[key] = row
    result = []
    for row in made:
        reference = references.get(_family(row))
        if row.case.stage == "generate" and reference is not None and reference is not row:
            first = reference.views[0]
            views = tuple(View(view.record, view.point, view.ceiling, first) for view in row.views)
            row = Row(views)
        result.append(row)
    return result


def _uncompressed(case: Case) -> bool:
    return all(isinstance(t, Cast) for t in case.technique if isinstance(t, WEIGHTS))


def _kind(row: Row) -> str:
    return row.case.technique[0].kind if row.case.technique else "none"


def _family(row: Row) -> tuple[str, str, str]:
    """What a compressed row and its reference have in common."""
    from efficientllm.spec.canonical import digest

    return digest(row.case.model), row.record.machine.name, row.point


def cells_of(row: Row) -> dict[str, Cell]:
    """Every metric of the row's stage, by key."""
    return {key: row.cell(key) for key, metric in BY_KEY.items() if row.case.stage in metric.stages}
