"""Cells of the first screen's matrix: what one variant answers to one question.

A value with its ratio to the baseline, or in a word why there is none; the small print says
the rest, and every cell leads to its row.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from efficientllm.analysis.compare import Line, Unequal, barred, ratio
from efficientllm.analysis.differences import Trainings
from efficientllm.analysis.pairs import apart
from efficientllm.analysis.stats import Interval
from efficientllm.analysis.study import Study
from efficientllm.analysis.table import Row
from efficientllm.analysis.work import unlike
from efficientllm.report.columns import Column, column, number, small_print
from efficientllm.report.differing import briefly, signed

State = Literal["", "undecided", "none", "failed"]

QUALITY = "bits_per_byte"
LONGEST = "longest"
KERNEL = "kernel"
_WIDE = 0.2
"""From this share on both ends of a ratio's interval are shown."""
_APART, _APART_BITS = 0.02, 0.005
"""By how much a paired ratio or difference may miss that of the two values shown, unsaid."""
_PLAIN = ("total_params",)
"""Facts that have no better or worse."""


class Ask(NamedTuple):
    """A column: a metric at one point of one stage."""

    head: str
    where: str
    key: str
    stage: str
    point: str


class Cell(NamedTuple):
    """A value with its ratio to the baseline, or `against`, why they have none.

    `title` is the small print; `why` says why a ratio is not decided, `origin` of which other
    card or code than the baseline it is. Where a side is never ranked (`unranked`) the ratio
    stands in its cell and in no sentence.
    """

    text: str
    ratio: str = ""
    title: str = ""
    state: State = ""
    row: Row | None = None
    line: Line | None = None
    against: str = ""
    why: str = ""
    origin: str = ""
    unranked: bool = False


def context_of(row: Row) -> int:
    """Tokens of a row's sequences."""
    return row.views[0].point.context


def cell_of(study: Study, name: str, ask: Ask, quality: Trainings) -> Cell:
    """What one variant answers to one question."""
    if ask.key == QUALITY:
        return _quality_cell(study, name, quality)
    if ask.key == LONGEST:
        return _longest_cell(study, name, ask)
    if ask.key == KERNEL:
        return _kernel_cell(study.like_baseline(name, ask.stage, ask.point))
    if ask.key in _PLAIN:
        return _plain_cell(study.variants[name], ask.key)
    base = study.at(study.baseline, ask.stage, ask.point)
    row = study.like_baseline(name, ask.stage, ask.point)
    if row is None:
        return Cell("\u2013", title="no such row", state="none")
    if row.status != "ok":
        return Cell(row.status.replace("_", " "), title=row.reason, state="failed", row=row)
    found = row.cell(ask.key)
    if found.interval is None:
        return Cell("\u2013", title=found.reason, state="none", row=row)
    shown = _shown(study, ask)
    text, title = _value(found.interval, shown, ask), small_print(found.interval, shown)
    if found.invalid:
        return Cell(text, "invalid", title, "undecided", row)
    if name == study.baseline or base is None or row is base:
        return Cell(text, "baseline" if name == study.baseline else "", title, row=row)
    return _beside(Cell(text, "", title, row=row), base, row, ask.key)


def _beside(cell: Cell, base: Row, row: Row, key: str) -> Cell:
    """A cell with its ratio to the baseline, as far as that is decided; or why there is none."""
    try:
        line, against = ratio(key, base, row), "; ".join(unlike(base, row))
    except Unequal as error:
        line, against = None, str(error)
    if against:
        title = f"not compared: {against}; {cell.title}"
        return cell._replace(ratio="not compared", title=title, state="undecided", against=against)
    if line is None:
        return cell._replace(title=f"the baseline has no value; {cell.title}")
    text, bounds = f"x{_two(line.ratio)}", ""
    if line.low is not None and line.high is not None and line.why != "counted":
        text, bounds = _with_bounds(line.ratio, line.low, line.high)
    if abs(line.ratio * line.a / line.b - 1) > _APART:
        text += _shared(line.pairs, base, row)
    ranked = base.ranked and row.ranked
    undecided = line.verdict == "ambiguous" or not ranked
    other = "a side is never ranked: own code, or something invalid"
    why = line.why if ranked or barred(base, row) else other
    told = f"not decided: {why}" if undecided else line.word
    origin = "" if line.why == "counted" else _origin(base, row)
    title = "; ".join(filter(None, (told, bounds, origin, cell.title)))
    state: State = "undecided" if undecided else ""
    why = why if undecided else ""
    return cell._replace(
        ratio=text,
        title=title,
        state=state,
        line=line,
        why=why,
        origin=origin,
        unranked=not ranked,
    )


def _origin(base: Row, row: Row) -> str:
    """Of what else than the baseline a row is, which may be all that makes it differ."""
    others = apart(base, row)
    return f"another {' and '.join(others)} than the baseline's" if others else ""


def _shared(pairs: int, base: Row, row: Row) -> str:
    """Over how few of the trials a pair is, for where the values that stand there are others."""
    most = max(len(base.views), len(row.views))
    return f" ({pairs} of {most} rounds)" if pairs < most else ""


def _with_bounds(value: float, low: float, high: float) -> tuple[str, str]:
    """`x2.11 ±0.02`, or both ends where they are far apart; and both ends in words."""
    both, half = f"[{_two(low)}, {_two(high)}]", (high - low) / 2
    short = f"\u00b1{half:.2f}" if half >= 0.005 else "\u00b1<0.01"
    if value < 0.1:
        short = f"\u00b1{half:.1g}"
    shown = both if half > _WIDE * value else short
    return f"x{_two(value)} {shown}", f"ratio {low:.4g} to {high:.4g}"


def _two(value: float) -> str:
    """Two decimals, more digits below a tenth."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _shown(study: Study, ask: Ask) -> Column:
    """An ask's metric in a unit that suits every variant."""
    return column(ask.key, list(study.beside_baseline(ask.stage, ask.point)[1].values()))


def _value(interval: Interval, shown: Column, ask: Ask) -> str:
    if shown.metric.unit == "share":
        return f"{interval.value:.1%}"
    unit = "" if "/s" in ask.head else f" {shown.unit}"
    return f"{number(interval.value * shown.factor)}{unit}".strip()


def _plain_cell(rows: tuple[Row, ...], key: str) -> Cell:
    for row in rows:
        interval = row.cell(key).interval
        if interval is not None:
            return Cell(_counted(interval.value), title=f"{interval.value:,.0f}", row=row)
    return Cell("\u2013", title=rows[0].cell(key).reason, state="none")


def _kernel_cell(row: Row | None) -> Cell:
    """What attends, as the record names it."""
    if row is None:
        return Cell("\u2013", title="no such row", state="none")
    key = "decode_attention" if row.case.stage == "generate" else "attention"
    return Cell(str(row.record.resolved.get(key, "not recorded")), row=row)


def _counted(value: float) -> str:
    """`1.54 B`, `31.5 M`."""
    for size, unit in ((1e9, " B"), (1e6, " M")):
        if value >= size:
            return f"{number(value / size)}{unit}"
    return f"{value:,.0f}"


def _longest_cell(study: Study, name: str, ask: Ask) -> Cell:
    """The longest context that ran at a batch, and how the next one ended or that none was run."""
    points = {r.point for r in study.variants[name] if r.point.startswith(ask.point)}
    rows = [row for p in points if (row := study.like_baseline(name, ask.stage, p)) is not None]
    good = max((r for r in rows if r.status == "ok"), key=context_of, default=None)
    ran = context_of(good) if good is not None else 0
    ended = [r for r in rows if r.status != "ok" and context_of(r) > ran]
    first = min(ended, key=context_of, default=None)
    text = f"{ran:,}" if ran else "none"
    if first is not None:
        ending = first.status.replace("_", " ")
        title = f"{context_of(first):,} tokens: {ending} {first.reason}".strip()
        return Cell(text, ending, title, "failed", first)
    if good is None:
        return Cell("\u2013", title="no such row", state="none")
    alike = (r for r in study.rows() if r.case.stage == ask.stage)
    longest = max(context_of(r) for r in alike if r.point.startswith(ask.point))
    if longest > ran:
        why = f"{longest:,} tokens were not run, as they were with others"
        return Cell(text, "longer not run", why, "undecided", good)
    return Cell(text, title="the longest that was asked for", row=good)


def _own(study: Study, name: str, quality: Trainings) -> list[Row]:
    """A variant's trainings in the study that the quality is of; none where it was lent."""
    known = {id(row) for row in study.rows()}
    own = any(id(row) in known for row in quality.rows.values())
    return [r for r in study.variants[name] if own and r.case.stage == "pretrain"]


def _quality_cell(study: Study, name: str, quality: Trainings) -> Cell:
    row = quality.rows.get(name)
    if row is None and any(r.cell(QUALITY).interval for r in _own(study, name, quality)):
        reason = "trained, but by another recipe or for another budget than the others"
        return Cell("not compared", title=reason, state="none")
    if row is None:
        reason = "no training of this variant with steps or tokens and held-out text"
        return Cell("not measured", title=reason, state="none")
    interval = row.cell(QUALITY).interval
    assert interval is not None
    title = small_print(interval, column(QUALITY, [row]))
    text = f"{interval.value:.4f}"
    if name == study.baseline:
        return Cell(text, "baseline", title, row=row)
    found = quality.against(study.baseline, name)
    if found is None or found.difference is None:
        why = found.why if found is not None else "the baseline was not trained"
        return Cell(text, "", f"not decided: {why}; {title}", "undecided", row)
    shown, base = briefly(found), quality.rows[study.baseline]
    first = base.cell(QUALITY).interval
    if first is not None and abs(interval.value - first.value - found.difference) > _APART_BITS:
        shown += _shared(found.seeds, base, row)
    title = "; ".join(filter(None, (f"difference {signed(found)}", _origin(base, row), title)))
    if found.verdict == "undecided":
        return Cell(text, shown, f"not decided: {found.why}; {title}", "undecided", row)
    return Cell(text, shown, f"{found.verdict}, {found.seeds} seeds; {title}", row=row)
