"""The matrix of the first screen: what each variant costs and buys, beside a baseline.

One row a variant, one column a question, each at one stated point. A ratio is the paired
comparison with the baseline (`analysis/compare`), with its interval; amber says that it is
not decided, and a dash says why there is nothing. Nothing here is computed anew: every
number stands in some row of the tables below, and its cell leads there.
"""

from __future__ import annotations

from typing import NamedTuple

from efficientllm.analysis.differences import Trainings
from efficientllm.analysis.study import Study
from efficientllm.analysis.table import Row
from efficientllm.analysis.work import unlike
from efficientllm.record import DONE
from efficientllm.report.cells import (
    KERNEL,
    LONGEST,
    QUALITY,
    Ask,
    Cell,
    cell_of,
    context_of,
)
from efficientllm.report.columns import memory_key


class Matrix(NamedTuple):
    """The whole of it: heads with their conditions, and a line of cells for each variant."""

    study: Study
    asks: tuple[Ask, ...]
    lines: tuple[tuple[str, tuple[Cell, ...]], ...]

    def column(self, ask: Ask) -> list[tuple[str, Cell]]:
        """One column's cells by variant."""
        index = self.asks.index(ask)
        return [(name, cells[index]) for name, cells in self.lines]


def matrix(study: Study, quality: Trainings) -> Matrix:
    """Every variant of a study under every question that any of its rows answers."""
    asks = _asks(study, quality)
    lines = [
        (name, tuple(cell_of(study, name, ask, quality) for ask in asks)) for name in study.variants
    ]
    return Matrix(study, tuple(asks), tuple(lines))


def _asks(study: Study, quality: Trainings) -> list[Ask]:
    """The questions, each at one context (`longest`)."""
    asks = [Ask("parameters", study.size, "total_params", study.stages[0], "")]
    training = longest(study, "pretrain")
    if training is not None:
        asks.append(_ask("training tokens/s", where_of(training), "train_tokens_per_s", training))
    decodes = ends(study)
    for row in decodes:
        asks.append(_ask("decode tokens/s", where_of(row), "it_tokens_per_s", row))
    if decodes:
        first, last = decodes[0], decodes[-1]
        asks.append(_ask("prefill tokens/s", where_of(first), "prefill_tokens_per_s", first))
        asks.append(_ask("cache per token", where_of(first), "kv_bytes_per_token", first))
        asks.append(_ask("peak memory", where_of(last), memory_key(last), last))
        if any(r.status != "ok" for r in study.rows() if r.case.stage == "generate"):
            batch = last.views[0].point.batch
            asks.append(Ask("longest context", f"batch {batch}", LONGEST, "generate", f"b{batch} "))
    elif training is not None:
        asks.append(_ask("peak memory", "training", memory_key(training), training))
    asks.append(Ask("bits per byte", quality.told or "no training here", QUALITY, "pretrain", ""))
    for row in filter(None, (training, *decodes[-1:])):
        told = "training" if row is training else f"decode, {where_of(row)}"
        key = _ceiling(study, row)
        asks.append(_ask(_CEILINGS[key], told, key, row))
        if study.axis == "position":  # what a kernel costs is no cost of the encoding's
            asks.append(_ask("kernel", told.partition(",")[0], KERNEL, row))
    return asks


def elsewhere(study: Study, ask: Ask) -> list[Ask]:
    """The same question at other points of the study, where its baseline was run alike.

    Not at points that would be called the same: a length with another batch.
    """
    base = study.at(study.baseline, ask.stage, ask.point)
    if base is None:
        return []
    points = {row.point for row in study.rows() if row.case.stage == ask.stage} - {ask.point}
    others = (study.at(study.baseline, ask.stage, point, base) for point in sorted(points))
    alike = [row for row in others if row is not None and not unlike(base, row)]
    asks = [_ask(ask.head, where_of(row), ask.key, row) for row in alike]
    return [other for other in asks if other.where != ask.where]


_CEILINGS = {"roofline_share": "of own ceiling", "mfu": "MFU", "mbu": "MBU"}


def _ceiling(study: Study, row: Row) -> str:
    """The distance to a roofline that is known here: this machine's own, else the datasheet's."""
    _, found = study.beside_baseline(row.case.stage, row.point)
    if any(other.cell("roofline_share").interval for other in found.values()):
        return "roofline_share"
    return "mbu" if row.case.stage == "generate" else "mfu"


def _ask(head: str, where: str, key: str, row: Row) -> Ask:
    return Ask(head, where, key, row.case.stage, row.point)


def where_of(row: Row) -> str:
    """A row's point in words: a length, or a batch and its tokens."""
    if row.case.stage == "pretrain":
        return f"length {context_of(row):,}"
    return f"batch {row.views[0].point.batch}, {context_of(row):,} tokens"


def ends(study: Study) -> list[Row]:
    """Where decoding is shown: at the smallest batch and at the largest, each `longest`."""
    batches = sorted({r.views[0].point.batch for r in study.rows() if r.case.stage == "generate"})
    both = dict.fromkeys(batches[:1] + batches[-1:])
    return [row for b in both if (row := longest(study, "generate", b)) is not None]


def longest(study: Study, stage: str, batch: int | None = None) -> Row | None:
    """A row at the context that most variants were tried at; of several, at the longest.

    Of those that the baseline and another one ran, where there are any.
    """
    rows = [
        row
        for row in study.rows()
        if (row.case.stage, row.status) == (stage, "ok")
        and (batch is None or row.views[0].point.batch == batch)
    ]
    ended = {row.point: _ended(study, stage, row.point) for row in rows}
    ran = {p: {n for n, status in found.items() if status == "ok"} for p, found in ended.items()}
    shared = [r for r in rows if study.baseline in ran[r.point] and len(ran[r.point]) > 1]
    return max(shared or rows, key=lambda r: (len(ended[r.point]), context_of(r)), default=None)


def _ended(study: Study, stage: str, point: str) -> dict[str, str]:
    """How each variant ended at a point; without those that a rerun would go on with."""
    _, found = study.beside_baseline(stage, point)
    return {name: row.status for name, row in found.items() if row.status in DONE}
