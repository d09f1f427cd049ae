"""What a suite will need: memory, time and energy, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from efficientllm import duration, machine, predict
from efficientllm.analysis.precision import precise
from efficientllm.catalog.peaks import machine_named, peak_of
from efficientllm.catalog.shape import Shape
from efficientllm.fitting import micro_batches
from efficientllm.matching import told
from efficientllm.parameters import parameters
from efficientllm.plan import Shelf, next_round
from efficientllm.spec.case import Case, Point
from efficientllm.spec.suite import Suite
from efficientllm.spec.workload import Generate, Training
from efficientllm.store import Store

GIB = 2**30


class Bound(NamedTuple):
    """Energy that a card cannot exceed in a time, at its limit throughout."""

    kwh: float
    watts: float


def most_energy(seconds: float, gpu: machine.Gpu | None) -> Bound | None:
    """An upper bound for the card alone; None where nobody knows its limit."""
    watts = duration.most_watts(gpu.power_limit_w, peak_of(gpu.product)) if gpu else None
    return None if watts is None else Bound(watts * seconds / 3.6e6, watts)


def doubled(suite: Suite) -> list[str]:
    """A line for each case that will have no row of its own."""
    return [
        f"{name} is {first} under another name: it is measured once, as {first}"
        for name, first in suite.doubles.items()
    ]


def rounded(suite: Suite) -> list[str]:
    """A line for each budget of tokens that whole steps exceed by more than a twentieth."""
    found = []
    for case in suite.cases:
        spec = case.workload
        if not isinstance(spec, Training) or not isinstance(spec.tokens, int):
            continue
        trained = (spec.budget_steps or 0) * spec.step_tokens
        if trained > 1.05 * spec.tokens:
            found.append(
                f"{case.name}: {spec.tokens:,} tokens are asked for and {trained:,} are"
                f" trained, in whole steps of {spec.batch} x {spec.sequence_length:,}"
            )
    return found


def remarks(suite: Suite) -> list[str]:
    """What is to be known about a suite's cases before they run, a line each."""
    return [*suite.left_out, *doubled(suite), *rounded(suite), *told(suite.cases)]


def plan_command(
    console: Console,
    suite: Suite,
    store_path: Path,
    gpu: machine.Gpu | None,
    whole: Suite | None = None,
) -> None:
    """The trials of the next round, with predicted memory and time on this machine.

    `whole` is what the cases were chosen from, where they are not all: `micro_batch: fit` asks it.
    """
    whole = whole or suite
    store = Store(store_path)
    here, software = machine.describe(gpu), machine.software(gpu)
    shelf = Shelf(store, suite.cases, here, software)
    rate = duration.reached_flops(peak_of(gpu.product) if gpu else None)
    table = Table(box=None, pad_edge=False)
    table.add_column("case", overflow="fold")
    for name in ("point", "GiB", "fits", "tokens/param", "time", "trials done"):
        table.add_column(name)
    rows = micro_batches(whole, here.device_memory_bytes)
    for case in suite.cases:
        shape = predict.shape_of(case, suite)
        done = len(shelf.finished(case, suite.protocol))
        seconds = _seconds(case, suite, shelf, rate, gpu is not None)
        state = f"{done} of {suite.protocol.looks()[0]}"
        for i, point in enumerate(case.points):
            size, fits = _memory(case, shape, point, float(here.device_memory_bytes), rows)
            once = (_per_parameter(case, shape), duration.minutes(seconds), state) if i == 0 else ()
            table.add_row(_short(case, whole), str(point), size or "unknown", fits, *once)
    console.print(
        f"{escape(suite.name)} on {escape(here.name)}, protocol {suite.protocol.profile}; GiB is"
        " the predicted peak"
    )
    console.print(table)
    for line in remarks(suite):
        console.print(escape(line))
    for refused in store.refused.values():
        console.print(f"[yellow]![/yellow] {escape(refused)}")
    due = next_round(suite, shelf, store, precise)
    for item in due.blocked:
        console.print(f"[yellow]blocked[/yellow] {escape(item.case.name)}: {escape(item.reason)}")
    total = total_seconds(suite, shelf, gpu)
    known = "predicted; measured where it ran before"
    console.print(f"about {duration.minutes(total)} in all ({known})")
    bound = most_energy(total, gpu)
    if bound is not None:
        console.print(
            f"at most {bound.kwh:.3g} kWh in that time: an upper bound, the card alone at its limit"
            f" of {bound.watts:.0f} W throughout"
        )


def _short(case: Case, suite: Suite) -> str:
    """A case's name, without a stage that all cases of the suite share."""
    shared = len({other.stage for other in suite.cases}) == 1
    return escape(case.name.removeprefix(f"{case.stage}-") if shared else case.name) or case.stage


def _per_parameter(case: Case, shape: Shape | None) -> str:
    """Tokens that a training case declares for each parameter of its model."""
    spec = case.workload
    if shape is None or not isinstance(spec, Training) or spec.budget_steps is None:
        return ""
    return f"{spec.budget_steps * spec.step_tokens / parameters(shape).total:.3g}"


def plan_on_command(
    console: Console, suite: Suite, names: list[str], whole: Suite | None = None
) -> None:
    """Predicted memory on machines that are not here."""
    whole = whole or suite
    peaks = [machine_named(name.strip()) for name in names]
    table = Table(box=None, pad_edge=False)
    table.add_column("predicted peak, GiB", overflow="fold")
    table.add_column("")
    for peak in peaks:
        nominal = " nominal" if peak.nominal else ""
        table.add_column(f"{peak.id} {peak.memory_gib:.1f}{nominal}", overflow="fold")
    available = [peak.memory_gib * GIB for peak in peaks]
    rows = [micro_batches(whole, bytes_) for bytes_ in available]
    for case in suite.cases:
        shape = predict.shape_of(case, suite)
        for point in case.points:
            machines = zip(available, rows, strict=True)
            found = [_memory(case, shape, point, *each) for each in machines]
            table.add_row(_short(case, whole), str(point), *(f"{gib:>6} {f}" for gib, f in found))
    console.print(table)
    for line in remarks(suite):
        console.print(escape(line))
    console.print("Time and kWh: run plan on the machine itself.")


def _memory(
    case: Case, shape: Shape | None, point: Point, available: float, rows: dict[str, int]
) -> tuple[str, str]:
    """Predicted GiB and whether they fit, at the micro-batch of `rows` if the case is there."""
    size = rows.get(case.case_id)
    at = predict.with_micro_batch(case, size)
    needed = predict.memory(at, shape, point).total if shape else None
    fits = _fits(at, shape, point, needed, available)
    fits += "" if size is None else f", micro_batch {size}"
    return "" if needed is None else f"{needed / GIB:.1f}", fits


def _fits(case: Case, shape: Any, point: Point, needed: float | None, available: float) -> str:
    if needed is None:
        return "unknown: no formulas for this family"
    asked = point.context + (case.workload.new_tokens if isinstance(case.workload, Generate) else 0)
    if shape.position == "learned" and asked > shape.max_positions:
        return f"no; it has {shape.max_positions} learned positions, and {asked} are asked for"
    verdict = predict.fit(needed, available)
    if verdict != "no":
        return verdict
    batch = predict.largest_batch(case, shape, point, available)
    if batch is not None:
        what = "micro_batch" if isinstance(case.workload, Training) else "batch"
        return f"no; {what} {batch} does"
    return "no"


def _seconds(case: Case, suite: Suite, shelf: Shelf, rate: float, gpu: bool) -> float:
    """Mean of earlier trials here, else a guess."""
    earlier = [r.seconds for r in shelf.here(case) if r.outcome.status == "ok"]
    if earlier:
        return sum(earlier) / len(earlier)
    shape = predict.shape_of(case, suite)
    return duration.seconds(case, shape, suite.protocol, rate, gpu=gpu)


def missing(suite: Suite, shelf: Shelf) -> list[tuple[Case, int]]:
    """Each case once, with how many trials it lacks before it is first looked at."""
    trials, doubles = suite.protocol.looks()[0], suite.doubles
    return [
        (case, max(0, trials - len(shelf.finished(case, suite.protocol))))
        for case in suite.cases
        if case.name not in doubles
    ]


def total_seconds(suite: Suite, shelf: Shelf, gpu: machine.Gpu | None) -> float:
    """Seconds of the trials that are missing, measured earlier or guessed."""
    rate = duration.reached_flops(peak_of(gpu.product) if gpu else None)
    return sum(
        n * _seconds(case, suite, shelf, rate, gpu is not None) for case, n in missing(suite, shelf)
    )
