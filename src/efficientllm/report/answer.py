"""The first screen of a study: one sentence with the largest effects, over the matrix.

For training, for decode and for the cache it names the variant that is furthest from the
baseline among the decided ones, with interval and condition; where nothing is decided it
says so, after what is decided at another point. Quality is named in any case: a cost without
it answers half of the question.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from efficientllm.analysis.compare import Line
from efficientllm.analysis.differences import Trainings
from efficientllm.analysis.study import Study
from efficientllm.analysis.table import Row
from efficientllm.report.cells import Ask, Cell, cell_of
from efficientllm.report.columns import number
from efficientllm.report.differing import signed
from efficientllm.report.headline import Headline, doubts_of, machine_line
from efficientllm.report.matrix import Matrix, elsewhere


class Effect(NamedTuple):
    """One variant beside the baseline, in one column; `why` and `origin` as in its cell."""

    name: str
    ask: Ask
    line: Line
    decided: bool
    why: str = ""
    origin: str = ""

    @property
    def different(self) -> bool:
        """Decided, and not that there is no difference."""
        return self.decided and self.line.verdict != "no difference"


def study_headline(rows: list[Row], question: str, shown: Matrix, quality: Trainings) -> Headline:
    """The first screen about one study."""
    study = shown.study
    effects: list[Effect] = []
    clauses: list[str] = []
    for key in _KEYS:
        named = _named(shown, key)
        clauses += [_told(e) for e in named] or [_not_compared(shown, key)]
        effects += named
    clauses = [*filter(None, clauses), _quality(study.baseline, quality)]
    sentence = f"Beside {_said(study.baseline)} at {study.size}: {'; '.join(clauses)}."
    return Headline(
        question, sentence, _hedge(effects), machine_line(rows), (), tuple(doubts_of(rows))
    )


def _hedge(effects: list[Effect]) -> str:
    """Why the first effect that is not decided is not; nothing where all are."""
    why = next((e.why for e in effects if not e.decided), "")
    some = any(e.decided and e.ask.key in _VERBS for e in effects)
    return f"Not decided{' where it says so far' if some else ''}: {why}." if why else ""


_KEYS = ("train_tokens_per_s", "it_tokens_per_s", "kv_bytes_per_token")
_VERBS = {"train_tokens_per_s": "trains", "it_tokens_per_s": "decodes"}
_WHAT = dict(zip(_KEYS, ("speed of training", "speed of decode", "the cache"), strict=True))


def _named(shown: Matrix, key: str) -> list[Effect]:
    """What is said of a metric: the largest effect of its columns.

    Before one that is not decided, or is that there is none, stands the largest that is
    decided at another point.
    """
    first = largest(shown, key)
    if first is None:
        return []
    asked = key in _VERBS and not first.different
    sure = _decided_elsewhere(shown.study, first.ask) if asked else None
    return [first] if sure is None else [sure, first]


def largest(shown: Matrix, key: str) -> Effect | None:
    """The largest decided effect in a metric's columns; without one, the largest at all."""
    found = [
        effect
        for ask in shown.asks
        if ask.key == key
        for effect in _effects(ask, shown.column(ask))
    ]
    different = [e for e in found if e.different]
    return max(different or found, key=lambda e: (not e.decided, _size(e)), default=None)


def _decided_elsewhere(study: Study, ask: Ask) -> Effect | None:
    """The largest effect decided at a point that the matrix does not show, in like conditions."""
    none = Trainings("", {}, ())
    found = [
        effect
        for other in elsewhere(study, ask)
        for effect in _effects(other, [(n, cell_of(study, n, other, none)) for n in study.variants])
        if effect.different
    ]
    return max(found, key=_size, default=None)


def _effects(ask: Ask, cells: list[tuple[str, Cell]]) -> list[Effect]:
    """Every variant of a column that has a ratio to the baseline and may be ranked beside it."""
    return [
        Effect(name, ask, cell.line, cell.state == "", cell.why, cell.origin)
        for name, cell in cells
        if cell.line is not None and cell.line.ratio > 0 and not cell.unranked
    ]


def _not_compared(shown: Matrix, key: str) -> str:
    """Why nothing in a metric's columns could be set beside the baseline; else nothing."""
    cells = [cell for ask in shown.asks if ask.key == key for _, cell in shown.column(ask)]
    whys = (cell.against or (cell.why if cell.unranked else "") for cell in cells)
    why = next(filter(None, whys), "")
    return f"{_WHAT[key]} is not compared ({why})" if why else ""


def _size(effect: Effect) -> float:
    return abs(math.log(effect.line.ratio))


def _told(found: Effect) -> str:
    """An effect as a clause: what, by how much, where."""
    line, where = found.line, found.ask.where
    if found.ask.key == "kv_bytes_per_token":
        return _cache(found)
    verb = _VERBS[found.ask.key]
    bounds = f" [{number(line.low)}, {number(line.high)}]" if line.low and line.high else ""
    if found.decided and not found.different:
        return f"no variant {verb} measurably faster or slower ({where})"
    so_far, who = "" if found.decided else "so far ", _said(found.name)
    where += f"; {found.origin}" if found.origin else ""
    return f"{so_far}{who} {verb} {number(line.ratio)}{bounds} times as fast ({where})"


def _said(name: str) -> str:
    """A variant in a sentence, where the encoding called none would be read as nobody."""
    return "no encoding" if name == "none" else name


def _cache(found: Effect) -> str:
    ratio, so_far = found.line.ratio, "" if found.decided else "so far "
    if ratio == 1:
        return f"{so_far}all keep the same cache"
    share = f"1/{1 / ratio:.3g} of" if ratio < 0.5 else f"{ratio:.2f} times"
    return f"{so_far}{_said(found.name)} keeps {share} the cache"


def _quality(baseline: str, quality: Trainings) -> str:
    """The largest decided difference in bits per byte, or why there is none."""
    if not quality.rows:
        return "what they buy in quality is not measured"
    found = [x for name in quality.rows if (x := quality.against(baseline, name)) is not None]
    sure = [x for x in found if x.verdict != "undecided" and x.difference is not None]
    if not sure:
        alone = "no other was trained and scored as it was"
        none = alone if baseline in quality.rows else f"{_said(baseline)} was not trained"
        largest = max(found, key=lambda x: abs(x.difference or 0.0), default=None)
        why = largest.why if largest is not None and largest.why else none
        bounded = largest if largest is not None and largest.low is not None else None
        who = f", not even that of {_said(bounded.b)}" if bounded is not None else ""
        return f"no difference in quality is decided{who} ({quality.told}: {why})"
    best = max(sure, key=lambda x: abs(x.difference or 0.0))
    return (
        f"{_said(best.b)} takes {signed(best)} bits per byte ({quality.told}, {best.seeds} seeds)"
    )
