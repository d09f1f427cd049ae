"""The first screen: one sentence that answers, four figures, and what is in doubt.

The answer compares a reference with the alternative that moved speed most, at the first
point that both have. It says "not decided" as long as the comparison is not decided.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from efficientllm.analysis.compare import Comparison, Line, Unequal, barred, compare
from efficientllm.analysis.study import size
from efficientllm.analysis.table import Row
from efficientllm.analysis.work import training_conditions
from efficientllm.report.columns import STAGE_TITLES, column, memory_key, number
from efficientllm.spec.canonical import digest

SPEED = {
    "generate": "it_tokens_per_s",
    "finetune": "train_tokens_per_s",
    "pretrain": "train_tokens_per_s",
}
_REFERENCES = {
    "generate": ("bf16", "fp16", "float32", "none"),
    "finetune": ("full",),
    "pretrain": ("mha", "gqa"),
}


class Figure(NamedTuple):
    """A large before -> after pair."""

    name: str
    before: str
    after: str
    unit: str
    change: str
    reason: str = ""


class Headline(NamedTuple):
    """Everything above the tables. `hedge` says why the sentence is not the last word."""

    question: str
    sentence: str
    hedge: str
    condition: str
    figures: tuple[Figure, ...]
    doubts: tuple[str, ...]


def headline(rows: list[Row], question: str) -> Headline:
    """The first screen about one suite's rows on one machine."""
    found = main_comparison(rows)
    if found is None:
        return Headline(
            question,
            "There are not yet two finished rows of the same work to compare.",
            "",
            machine_line(rows),
            (),
            tuple(doubts_of(rows)),
        )
    point = found.a.views[0].point
    line, why = _speed(found), barred(found.a, found.b)
    differs = "; ".join(training_conditions(found.a, found.b))
    where = f"Batch {point.batch}, context {point.context}."
    return Headline(
        question,
        _sentence(found, line),
        f"Not decided: {line.why}." if line.verdict == "ambiguous" and not why else "",
        " ".join(filter(None, (where, differs and f"Differs: {differs}.", machine_line(rows)))),
        tuple(_figures(found)),
        tuple(doubts_of(rows)),
    )


def main_comparison(rows: list[Row]) -> Comparison | None:
    """The comparison that the first screen is about, from the last stage that has one.

    The reference is what people start from (bf16, full fine-tuning, MHA); it is compared
    with the row that goes furthest from it: fewest bits, fewest trained parameters,
    in pretraining the fewest parameters. Both have one model, if any two rows do.
    """
    for stage in ("generate", "finetune", "pretrain"):
        good = [row for row in rows if row.case.stage == stage and row.status == "ok"]
        for group in (*_of_one_model(good), good):
            found = _furthest(group, stage)
            if found is not None:
                return found
    return None


def _of_one_model(rows: list[Row]) -> list[list[Row]]:
    """Rows by model, the newest first; in pretraining attention may differ within one."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        model = row.case.model.model_dump(mode="json")
        if row.case.stage == "pretrain":
            model.pop("attention", None)
        groups.setdefault(digest(model), []).append(row)
    newest = {key: max(r.record.started_at for r in group) for key, group in groups.items()}
    return [groups[key] for key in sorted(groups, key=newest.__getitem__, reverse=True)]


def _furthest(rows: list[Row], stage: str) -> Comparison | None:
    """The reference against the row that goes furthest from it."""
    reference = _reference(rows, stage)
    if reference is None:
        return None
    others = [r for r in rows if r is not reference and r.point == reference.point]
    made = [c for row in others if (c := _try(reference, row)) is not None]
    return min(made, key=lambda c: _distance_key(c.b, stage)) if made else None


def _distance_key(row: Row, stage: str) -> float:
    """Smaller is further from the reference."""
    keys = {"generate": "bits_per_param", "finetune": "trainable_params"}
    key = keys.get(stage, "total_params")
    interval = row.cell(key).interval
    return interval.value if interval is not None else 0.0


def _try(a: Row, b: Row) -> Comparison | None:
    """A comparison that has a speed, or None where the work differs."""
    try:
        found = compare(a, b)
    except Unequal:
        return None
    return found if any(line.metric.key in SPEED.values() for line in found.lines) else None


def _reference(rows: list[Row], stage: str) -> Row | None:
    for name in _REFERENCES[stage]:
        for row in rows:
            if name in row.label.replace("+", "-").split("-"):
                return row
    return rows[0] if rows else None


def _speed(found: Comparison) -> Line:
    key = SPEED[found.a.case.stage]
    return next(line for line in found.lines if line.metric.key == key)


def _sentence(found: Comparison, line: Line) -> str:
    """What came out, with its interval."""
    verb = {"generate": "decodes", "finetune": "fine-tunes", "pretrain": "trains"}
    what = verb[found.a.case.stage]
    a, b = found.a.label, found.b.label
    if why := barred(found.a, found.b):
        return f"The speed of {b} is not compared with that of {a}: {why}."
    interval = f" [{line.low:.2f}, {line.high:.2f}]" if line.low and line.high else ""
    rate = f"{number(line.a)} to {number(line.b)} tokens/s"
    so_far = "So far " if line.verdict == "ambiguous" else ""
    if line.verdict == "no difference":
        return f"{b} {what} as fast as {a}: times {line.ratio:.2f}{interval}, {rate}."
    return f"{so_far}{b} {what} {line.ratio:.2f}{interval} times as fast as {a}: {rate}."


def machine_line(rows: list[Row]) -> str:
    """Machine, date, protocol, engine, weights; how many cards and versions of the code."""
    if not rows:
        return ""
    row = max(rows, key=lambda r: r.record.started_at)
    record = row.record
    weights = {"random" if r.cost_only else "trained" for r in rows if r.record.build}
    profiles = dict.fromkeys(str(r.record.protocol["profile"]) for r in rows)
    least, most = (end(len(r.views) for r in rows) for end in (min, max))
    trials = f"{most}" if least == most else f"{least} to {most}"
    return (
        f"{record.machine.device}, {record.started_at[:10]}, protocol {' and '.join(profiles)}"
        f" ({trials} trial{'s' if most > 1 else ''} a row), torch"
        f" {record.software.get('torch', '?')}, {' and '.join(sorted(weights)) or 'no'} weights"
        f"{_origins(rows)}"
    )


def _origins(rows: list[Row]) -> str:
    """From how many cards and versions of this tool rows come, where those are several."""
    cards = {r.record.machine.card for r in rows} - {""}
    sources = {r.record.software.get("source", "") for r in rows} - {""}
    several = ((len(cards), "cards"), (len(sources), "versions of the code"))
    told = " and ".join(f"{number} {what}" for number, what in several if number > 1)
    return f"; rows from {told}" if told else ""


def _figures(found: Comparison) -> list[Figure]:
    a, b = found.a, found.b
    generating = a.case.stage == "generate" and a.record.machine.device_kind == "cpu"
    memory = "weights_gib" if generating else memory_key(a)
    figures = [
        _figure("speed", SPEED[a.case.stage], a, b),
        _figure("memory", memory, a, b),
        _figure("energy", "j_per_token", a, b),
        _quality_figure(found),
    ]
    return [f._replace(change="") for f in figures] if barred(a, b) else figures


def _quality_figure(found: Comparison) -> Figure:
    """Bits per byte, and why their difference is not decided, where it is not."""
    figure = _figure("quality", "bits_per_byte", found.a, found.b)
    line = next((x for x in found.lines if x.metric.key == "bits_per_byte"), None)
    if figure.reason or line is None or line.verdict != "ambiguous":
        return figure
    return figure._replace(change=f"{figure.change}, undecided: {line.why}")


def _figure(name: str, key: str, a: Row, b: Row) -> Figure:
    first, second = a.cell(key), b.cell(key)
    if first.interval is None or second.interval is None:
        return Figure(name, "", "", "", "", first.reason or second.reason)
    shown = column(key, [a, b])
    before, after = first.interval.value, second.interval.value
    change = f"x{after / before:.2f}" if before else ""
    if name == "quality":
        change = f"{after - before:+.4f}"
    heading = f"{shown.metric.label}, {shown.unit}" if name == "memory" else shown.unit
    return Figure(
        name, number(before * shown.factor), number(after * shown.factor), heading, change
    )


def doubts_of(rows: list[Row]) -> list[str]:
    """What is invalid, undecided or unmeasured, in the order of how much it matters."""
    doubts: list[str] = []
    for row in [row for row in rows if row.status != "ok"][:6]:
        large = "" if size(row.case) in row.name else f" {size(row.case)}"
        doubts.append(f"{row.name}{large} {row.point}: {row.status} {row.reason}".strip())
    seen: set[str] = set()
    for level in ("invalid", "warn"):
        for row in rows:
            for flag in row.flags:
                if flag.level == level and flag.subject not in seen and row.status == "ok":
                    seen.add(flag.subject)
                    where = f"{STAGE_TITLES[row.case.stage]}, {row.label} {row.point}"
                    doubts.append(f"{flag.code}: {flag.text} ({where})")
    few = [row for row in rows if row.status == "ok" and len(row.views) < 3]
    if few:
        doubts.append(
            f"{len(few)} rows rest on fewer than three trials: their ± is within one run, and"
            " nothing is decided by it"
        )
    doubts += _without_energy(rows)
    if any(row.case.stage == "generate" for row in rows):
        doubts.append("no task accuracy was measured: do not call any of this lossless")
    return doubts


def _without_energy(rows: list[Row]) -> list[str]:
    """Why rows have no joules: once for reasons that are alike but for their numbers."""
    missing: dict[str, list[str]] = {}
    for reason in (row.cell("j_per_token").reason for row in rows if row.status == "ok"):
        if reason:
            missing.setdefault(re.sub(r"[\d.]+", "", reason), []).append(reason)
    return [
        f"energy is not measured{f' in {len(alike)} rows' if len(alike) > 1 else ''}: {alike[0]}"
        for alike in missing.values()
    ]
