"""Learning rates tried: which was best, whether it lies inside what was tried, what it cost.

Variants want different learning rates. At one rate for all, the variant that happens to
like it wins, so a fair comparison gives each its own best. A best rate that is the
smallest or the largest tried says that the search ended too early: `EDGE_OF_SWEEP`. A rate
at which training broke was tried too; it is what shows that the next smaller one is no edge.

Rates are compared on the seeds that all of them were tried with: seeds scatter as much as
neighbouring rates do, so one lucky seed of one rate would stand against another's mean. And a
rate is chosen only with as many seeds as any other has, or as a verdict takes: else one seed
more of a sweep would undo what three had decided. One that looks better with fewer is told:
`SWEEP_UNFINISHED`.

The best of several noisy values looks a little too good, and more so the more were tried. A
verdict between variants comes from seeds (`differences`), but where the rates were chosen on
those same seeds it carries some of this; the page then says among how many each was chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from efficientllm.analysis.differences import seed_bits
from efficientllm.analysis.flag import Flag
from efficientllm.analysis.stats import MIN_FOR_INTERVAL
from efficientllm.analysis.table import Row
from efficientllm.metrics import BY_KEY, Unmeasured, View
from efficientllm.spec.canonical import digest
from efficientllm.spec.workload import AdamW, Training


class Sweep(NamedTuple):
    """Rows equal but for their learning rate; `best` has the fewest bits.

    Of those with seeds enough, at `among` different rates, on the seeds that they have in
    common; by its mean where there are none. `tried` are all rates, with fewer seeds too.
    `joules` are those of all trained steps, at each trial's joules per step; None, with the
    reason, where a trial has none.
    """

    rows: tuple[Row, ...]
    best: Row
    tried: tuple[float, ...]
    among: int
    flags: tuple[Flag, ...]
    trials: int
    seconds: float
    joules: float | None
    why_no_joules: str = ""


def learning_rate(row: Row) -> float | None:
    """The peak learning rate of a training row."""
    workload = row.case.workload
    return workload.optimizer.lr if isinstance(workload, Training) else None


def sweeps(rows: Iterable[Row]) -> list[Sweep]:
    """Every group with at least two rates of which one has a quality, in the rows' order."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if isinstance(row.case.workload, Training):
            model = digest({"model": row.case.model, "technique": row.case.technique})
            groups.setdefault((model, recipe(row), row.record.machine.name), []).append(row)
    found = (_sweep(group) for group in groups.values())
    return [sweep for sweep in found if sweep is not None and len(sweep.tried) > 1]


def tuned(rows: Iterable[Row]) -> list[Row]:
    """Rows with a quality: of those that differ in their learning rate alone, the best."""
    known = list(rows)
    lost = {id(row) for s in sweeps(known) for row in s.rows if row is not s.best}
    return [row for row in known if _bits(row) is not None and id(row) not in lost]


def recipe(row: Row) -> str:
    """How a row was trained and scored, but for its learning rate; its point is part of it."""
    case, workload = row.case, row.case.workload
    assert isinstance(workload, Training)
    optimizer = workload.optimizer.model_copy(update={"lr": AdamW().lr})
    work = workload.model_copy(update={"optimizer": optimizer, "micro_batch": "auto"})
    return digest({"workload": work, "quality": case.quality})


def _bits(row: Row) -> float | None:
    cell = row.cell("bits_per_byte")
    usable = cell.interval is not None and not cell.invalid and row.status == "ok"
    return cell.interval.value if usable and cell.interval is not None else None


def _invalid(row: Row) -> bool:
    return row.cell("bits_per_byte").invalid


def _mean(bits: dict[int, float], seeds: set[int]) -> float:
    """Mean over these seeds, or over all where there are none of these."""
    wanted = [bits[seed] for seed in seeds] or list(bits.values())
    return sum(wanted) / len(wanted)


def _sweep(rows: list[Row]) -> Sweep | None:
    scored = [row for row in rows if _bits(row) is not None]
    if not scored:
        return None
    enough = min(MIN_FOR_INTERVAL, max(len(seed_bits(row)) for row in scored))
    compared = [row for row in scored if len(seed_bits(row)) >= enough]
    best = _fewest_bits(compared)
    rates = (learning_rate(row) for row in rows if seed_bits(row) or row.status == "nan")
    tried = tuple(sorted({rate for rate in rates if rate is not None}))
    views = [view for row in rows for view in row.views]
    joules, why = _joules(views)
    seconds = sum(view.record.seconds for view in views)
    flags = (*_edge(learning_rate(best), tried), *_unfinished(rows, best, enough))
    among = len({learning_rate(row) for row in compared})
    return Sweep(tuple(rows), best, tried, among, flags, len(views), seconds, joules, why)


def _fewest_bits(rows: list[Row]) -> Row:
    """The best row on the seeds that all have."""
    scored = [(row, seed_bits(row)) for row in rows]
    common = set.intersection(*(set(bits) for _, bits in scored))
    return min(scored, key=lambda pair: _mean(pair[1], common))[0]


def _edge(best: float | None, tried: tuple[float, ...]) -> tuple[Flag, ...]:
    if best not in (tried[0], tried[-1]):
        return ()
    end = "smallest" if best == tried[0] else "largest"
    text = f"the best learning rate, {best:g}, is the {end} of {len(tried)} tried: try beyond it"
    return (Flag("EDGE_OF_SWEEP", "warn", "quality", text),)


def _unfinished(rows: list[Row], best: Row, enough: int) -> tuple[Flag, ...]:
    """A rate with too few seeds that is better on those that it shares with the best."""
    few = [row for row in rows if 0 < len(seed_bits(row)) < enough and not _invalid(row)]
    better = [row for row in few if _fewest_bits([best, row]) is row]
    if not better:
        return ()
    fewest = _fewest_bits(better)
    seeds = len(seed_bits(fewest))
    text = (
        f"a learning rate of {learning_rate(fewest):g} is better on what seeds it has ({seeds}),"
        f" and is not chosen before it has {enough}"
    )
    return (Flag("SWEEP_UNFINISHED", "warn", "quality", text),)


def _joules(views: list[View]) -> tuple[float | None, str]:
    """Joules of all steps of all trials, or why they are not known."""
    total = 0.0
    for view in views:
        workload = view.case.workload
        steps = workload.budget_steps if isinstance(workload, Training) else None
        joules = BY_KEY["j_per_step"](view)
        if isinstance(joules, Unmeasured):
            return None, joules.reason
        if steps is None:
            return None, "the case declares no steps or tokens"
        total += joules * steps
    return total, ""
