"""Studies: rows that differ in one part of the controlled backbone, by variant of that part.

Attention and positions are studied by holding everything else fixed. So rows belong to one
study when their models are equal but for that part; what they are called is that part's
kind (`mla`, `alibi`), with its settings where one study holds several of a kind. The kind of
an attention from a user's file is the name of its class.
Only the backbone has such parts: a published shape or a checkpoint is nobody's variant.
Each class of machines has studies of its own: what one has trained and measured never stands
among the numbers of another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from efficientllm.analysis.differences import Trainings, differences, seed_bits
from efficientllm.analysis.pairs import paired
from efficientllm.analysis.stats import MIN_FOR_INTERVAL
from efficientllm.analysis.sweep import recipe, sweeps, tuned
from efficientllm.analysis.table import Row
from efficientllm.analysis.work import unequal_work, unlike
from efficientllm.metrics import BY_KEY, Unmeasured
from efficientllm.record import Machine
from efficientllm.spec.architecture import CustomAttention, GroupedQuery, RotaryPosition
from efficientllm.spec.canonical import Spec, canonical, digest
from efficientllm.spec.case import Case
from efficientllm.spec.model import Backbone

Axis = Literal["attention", "position"]
AXES: dict[Axis, Spec] = {"attention": GroupedQuery(), "position": RotaryPosition()}
"""The studied parts, each with what a model has that does not name it."""

BASELINES: dict[Axis, str] = {"attention": "mha", "position": "rope"}
"""What others are compared with, where a study has it; else its first variant."""

_SIZES = ("layers", "hidden", "heads", "head_dim", "ffn", "vocab")


class Study(NamedTuple):
    """One size of the backbone with the rows of each variant, in the suite's order."""

    axis: Axis
    size: str
    variants: dict[str, tuple[Row, ...]]

    @property
    def baseline(self) -> str:
        """The variant that the others are compared with: no user's class by its mere name."""
        usual = BASELINES[self.axis]
        ours = any(row.case.own_attention is None for row in self.variants.get(usual, ()))
        return usual if ours else next(iter(self.variants))

    @property
    def machine(self) -> Machine:
        """The class of machines that all of it was measured on."""
        return self.rows()[0].record.machine

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.case.stage for row in self.rows()))

    def rows(self) -> list[Row]:
        """Every row of the study."""
        return [row for rows in self.variants.values() for row in rows]

    def at(self, variant: str, stage: str, point: str, beside: Row | None = None) -> Row | None:
        """A variant's row at a point: of the work, technique and precision of `beside`, if any.

        Of several one that ended well, then one that may be ranked, then one with more trials,
        up to as many as decide, then the newest.
        """
        found = [r for r in self.variants[variant] if (r.case.stage, r.point) == (stage, point)]
        newest = {
            row.record.trial.case_id: row
            for row in sorted(found, key=lambda row: (row.ranked, row.record.started_at))
            if row.status == "ok"
        }  # more trials of older code or versions are no better, but a smoke run replaces nothing
        found = [r for r in found if newest.get(r.record.trial.case_id, r) is r]
        return max(
            found,
            key=lambda row: (
                beside is None or not unequal_work(beside, row),
                beside is None or not unlike(beside, row),
                row.status == "ok",
                row.ranked,
                min(len(row.views), MIN_FOR_INTERVAL),
                row.record.started_at,
            ),
            default=None,
        )

    def beside_baseline(self, stage: str, point: str) -> tuple[Row | None, dict[str, Row]]:
        """The baseline's row at a point, and each variant's, as `like_baseline` gives them."""
        base = self.at(self.baseline, stage, point)
        found = ((name, self.at(name, stage, point, base)) for name in self.variants)
        return base, {name: row for name, row in found if row is not None}

    def like_baseline(self, variant: str, stage: str, point: str) -> Row | None:
        """A variant's row at a point, as like the baseline's there as it has one."""
        base = self.at(self.baseline, stage, point)
        return base if variant == self.baseline else self.at(variant, stage, point, base)


def variant(case: Case) -> str:
    """A case's studied parts in short: `mla`, `gqa+alibi`; nothing where it has none."""
    if not isinstance(case.model, Backbone):
        return ""
    position = case.model.position.kind
    return _kind(case.model.attention) + (f"+{position}" if position != "rope" else "")


def size(case: Case) -> str:
    """`1.5B-h16`, with what else was set about a backbone's sizes; nothing for other models."""
    model = case.model
    if not isinstance(model, Backbone):
        return ""
    told = [f"{k} {v}" for k in _SIZES if (v := getattr(model, k)) is not None]
    told += [f"match {model.match}"] if model.match != "none" else []
    return ", ".join([model.preset, *told])


def studies(rows: Iterable[Row]) -> list[Study]:
    """Every study of one machine class with at least two variants.

    First the one of which most variants ran, then in most stages, then with most of them
    paired with the baseline often enough to decide, then with most beside another at a point
    (an out of memory leaves a gap), then the largest.
    """
    known = list(rows)
    found = []
    for axis in AXES:
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in known:
            if isinstance(row.case.model, Backbone):
                key = row.record.machine.name, rest(row.case.model, axis)
                groups.setdefault(key, []).append(row)
        made = (_study(axis, group) for group in groups.values())
        found += [study for study in made if len(study.variants) > 1]
    return sorted(found, key=_order)


def trained(study: Study) -> dict[str, Row]:
    """One training with a quality for each variant, all of one recipe and equal work.

    Of several recipes the one that most variants were trained by, then the baseline, then the
    longest. Where learning rates were swept, each variant stands with its best. Of several
    rows of one variant that with more seeds, up to as many as decide, then the newest.
    """
    kinds: dict[str, dict[str, Row]] = {}
    for name, rows in study.variants.items():
        for row in sorted(tuned(r for r in rows if r.case.stage == "pretrain"), key=_weight):
            kinds.setdefault(recipe(row), {})[name] = row

    def rank(found: dict[str, Row]) -> tuple[int, bool, float]:
        return len(found), study.baseline in found, _tokens(found)

    return max(kinds.values(), key=rank, default={})


def trainings(study: Study) -> Trainings:
    """The study's trainings with every difference between them; empty where it has none."""
    rows = trained(study)
    best = {id(sweep.best): sweep.among for sweep in sweeps(study.rows())}
    tried = {name: best.get(id(row), 1) for name, row in rows.items()}
    return Trainings(study.size if rows else "", rows, tuple(differences(rows)), tried)


def _weight(row: Row) -> tuple[int, str]:
    return min(len(seed_bits(row)), MIN_FOR_INTERVAL), row.record.started_at


def _tokens(found: dict[str, Row]) -> float:
    """Tokens trained for each parameter, which grow with the budget."""
    cells = (row.cell("tokens_per_param").interval for row in found.values())
    return max((interval.value for interval in cells if interval is not None), default=0.0)


def rest(model: Backbone, axis: Axis) -> str:
    """A digest of what a model is without its studied part."""
    return digest(model.model_copy(update={axis: AXES[axis]}))


def unrun(study: Study, cases: Iterable[Case]) -> tuple[str, ...]:
    """Kinds of the studied part that these cases have beside the study's own, and no row of it."""
    models = [row.case.model for row in study.rows()]
    like = {rest(model, study.axis) for model in models if isinstance(model, Backbone)}
    ran = {_kind(getattr(model, study.axis)) for model in models}
    planned = (
        _kind(getattr(case.model, study.axis))
        for case in cases
        if isinstance(case.model, Backbone) and rest(case.model, study.axis) in like
    )
    return tuple(kind for kind in dict.fromkeys(planned) if kind not in ran)


def _study(axis: Axis, rows: list[Row]) -> Study:
    several = _several(axis, rows)
    variants: dict[str, list[Row]] = {}
    for row in rows:
        part: Spec = getattr(row.case.model, axis)
        kind = _kind(part)
        name = _settings(part) if kind in several else kind
        variants.setdefault(name, []).append(row)
    return Study(axis, _condition(rows[0].case, axis), {k: tuple(v) for k, v in variants.items()})


def _kind(part: Spec) -> str:
    if isinstance(part, CustomAttention):
        return part.name
    return str(getattr(part, "kind"))  # noqa: B009 every arm of the unions has one


def _several(axis: Axis, rows: list[Row]) -> set[str]:
    """Kinds that a study has with several settings at one point.

    Two classes of one name are two attentions wherever they were measured.
    """
    parts: list[Spec] = [getattr(row.case.model, axis) for row in rows]
    own = {part.name for part in parts if isinstance(part, CustomAttention)}
    seen: dict[tuple[str, ...], set[str]] = {}
    for part, row in zip(parts, rows, strict=True):
        kind = _kind(part)
        where = () if kind in own else (row.case.stage, row.point)
        seen.setdefault((kind, *where), set()).add(digest(part))
    return {kind for (kind, *_), found in seen.items() if len(found) > 1}


def _settings(part: Spec) -> str:
    """A kind with what was set about it; of a user's own the first digits of its digest."""
    if isinstance(part, CustomAttention):
        return f"{part.name} {part.sha256[:8]}".rstrip()
    fields = canonical(part)
    told = [f"{k} {v}" for k, v in fields.items() if k not in ("kind", "rev")]
    return " ".join([_kind(part), *told])


def _condition(case: Case, axis: Axis) -> str:
    """The size that a study has, with parts that are not the studied one and not the usual."""
    others = (a for a in AXES if a != axis)
    told = [_kind(part) for a in others if (part := getattr(case.model, a)) != AXES[a]]
    return ", ".join([size(case), *told])


def _order(study: Study) -> tuple[int, int, int, int, float]:
    ran = [[row for row in rows if row.status == "ok"] for rows in study.variants.values()]
    stages = _compared({row.case.stage for row in rows} for rows in ran)
    points = _compared({(row.case.stage, row.point) for row in rows} for rows in ran)
    return -sum(map(bool, ran)), -len(stages), -_decidable(study), -sum(points), -_parameters(study)


def _decidable(study: Study) -> int:
    """How many comparisons with the baseline rest on as many pairs of trials as decide."""
    others = study.variants.keys() - {study.baseline}
    places = {(row.case.stage, row.point) for row in study.variants[study.baseline]}
    sides = [
        (base, row)
        for place in places
        if (base := study.at(study.baseline, *place)) is not None
        for name in others
        if (row := study.at(name, *place, base)) is not None
    ]
    return sum(
        a.ranked and b.ranked and not unlike(a, b) and len(paired(a, b)[0]) >= MIN_FOR_INTERVAL
        for a, b in sides
        if not unequal_work(a, b)
    )


def _compared(places: Iterable[set[Any]]) -> list[int]:
    """How many variants ran at each place where at least two did."""
    counts = Counter(place for found in places for place in found)
    return [count for count in counts.values() if count > 1]


def _parameters(study: Study) -> float:
    found = (BY_KEY["total_params"](rows[0].views[0]) for rows in study.variants.values())
    return max((value for value in found if not isinstance(value, Unmeasured)), default=0.0)
