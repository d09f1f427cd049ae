"""What the larger commands do between parsing and printing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from efficientllm import clock, duration, machine, predict
from efficientllm.analysis.table import precise
from efficientllm.catalog.peaks import machine_named, peak_of
from efficientllm.catalog.shape import Shape
from efficientllm.fitting import micro_batches
from efficientllm.matching import told
from efficientllm.parameters import parameters
from efficientllm.plan import Planned, Shelf, next_round
from efficientllm.record import Record
from efficientllm.report.text import print_doubts, print_rows
from efficientllm.results import Results, load, published
from efficientllm.runner import Events, Options, run_suite
from efficientllm.spec.case import Case, Point
from efficientllm.spec.model import Checkpoint
from efficientllm.spec.suite import Suite
from efficientllm.spec.workload import Training
from efficientllm.store import Store
from efficientllm.watch import Progress as TrialProgress

GIB = 2**30


def run_command(
    console: Console, suite: Suite, store_path: Path, options: Options, *, write_page: bool
) -> int:
    """Run a suite with progress, print its rows, write the page, name what to do next."""
    store, here = Store(store_path), machine.describe(options.gpu)
    shelf = Shelf(store, suite.cases, here, machine.software(options.gpu))
    guess = _total_seconds(suite, shelf, options.gpu)
    _announce(console, suite, guess, options.gpu)
    with _Bar(console, _missing(suite, shelf), guess) as bar:
        summary = run_suite(suite, store, options, bar.events())
    results = load(store_path)
    ids = {case.case_id for case in suite.cases}
    rows = [
        row
        for row in results.rows()
        if row.record.trial.case_id in ids and row.record.machine.name == here.name
    ]
    print_rows(console, rows)
    print_doubts(console, rows)
    for refused in dict.fromkeys((*store.refused.values(), *results.refused)):
        console.print(f"[yellow]![/yellow] {escape(refused)}")
    if write_page and results.records:
        page = write_report(results, load(*published()), store_path / "report.html")
        console.print(f"page     {page}")
    _next_step(console, suite, rows, options.gpu)
    if summary.out_of_time:
        console.print("time is up; run the same command again to go on")
        return 5
    failed = [r for r in summary.records if r.outcome.status not in ("ok", "unsupported")]
    return 1 if failed else 0


def _announce(console: Console, suite: Suite, guess_s: float, gpu: machine.Gpu | None) -> None:
    device = f"GPU {gpu.number} {gpu.product}" if gpu else f"CPU {machine.describe(None).cpu}"
    models = [case.model for case in suite.cases if isinstance(case.model, Checkpoint)]
    for source, commit in dict.fromkeys((m.source, m.commit) for m in models if m.commit):
        console.print(f"revision {commit[:7]}  {escape(source)}")
    for line in told(suite.cases):
        console.print(escape(line))
    bound = _most_energy(guess_s, gpu)
    energy = "" if bound is None else f", at most {bound.kwh:.2g} kWh"
    console.print(
        f"suite {escape(suite.name)}  {device}  protocol {suite.protocol.profile}"
        f"  {len(suite.cases)} cases  about {duration.minutes(guess_s)}{energy}"
    )


class _Bound(NamedTuple):
    """Energy that a card cannot exceed in a time, at its limit throughout."""

    kwh: float
    watts: float


def _most_energy(seconds: float, gpu: machine.Gpu | None) -> _Bound | None:
    """An upper bound for the card alone; None where nobody knows its limit."""
    watts = duration.most_watts(gpu.power_limit_w, peak_of(gpu.product)) if gpu else None
    return None if watts is None else _Bound(watts * seconds / 3.6e6, watts)


def _missing(suite: Suite, shelf: Shelf) -> int:
    """Cases that still need a trial, for the progress bar."""
    return sum(not shelf.finished(case, suite.protocol) for case in suite.cases)


def _next_step(console: Console, suite: Suite, rows: list[Any], gpu: machine.Gpu | None) -> None:
    same = [r for r in rows if r.status == "ok" and r.case.stage == "generate"]
    if len(same) > 1:
        console.print(f"compare  efficientllm compare {same[0].name} {same[-1].name}")
    if suite.name.startswith("quickstart"):
        model = "Llama-3.1-8B" if gpu else "backbone-small"
        console.print(f"next     efficientllm run generate model={model} technique=bf16,int4")


class _Bar:
    """Progress with the time left, as far as it can be guessed; quiet when nobody watches.

    The guess made before the run is scaled by how long the trials that ended really took.
    """

    def __init__(self, console: Console, total: int, guess_s: float) -> None:
        self._console, self._total, self._done = console, total, 0
        self._guess_s, self._start_ns = guess_s, clock.now_ns()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}"),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("", total=1.0, detail="", left=self._left())

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def events(self) -> Events:
        heard = Events(started=self._started, progress=self._told, finished=self._finished)
        return heard._replace(fetched=self._console.print)

    def _started(self, planned: Planned) -> None:
        number = min(self._done + 1, max(self._total, 1))
        name = f"[{number}/{self._total}] {planned.case.name}"
        self._progress.update(
            self._task, description=escape(name), completed=0.0, detail="starting"
        )

    def _told(self, progress: TrialProgress) -> None:
        detail = f"{progress.phase} {progress.window}".strip()
        share = progress.done / progress.total if progress.total else None
        self._progress.update(self._task, completed=share or 0.0, detail=detail, left=self._left())

    def _left(self) -> str:
        gone = clock.seconds_since(self._start_ns)
        whole = self._guess_s
        if self._done and self._total:
            whole = gone / self._done * max(self._total, self._done)
        return f"about {duration.minutes(max(0.0, whole - gone))} left"

    def _finished(self, planned: Planned, record: Record) -> None:
        self._done += 1
        status = record.outcome.status
        shown = status if status == "ok" else f"[red]{status}[/red] {escape(record.outcome.reason)}"
        what = " (weights made again)" if planned.purpose == "rebuild" else ""
        self._console.print(
            f"[{self._done}/{max(self._total, self._done)}] {escape(planned.case.name)}"
            f" round {planned.round}{what}  {shown}  {record.seconds:.0f} s",
            markup=True,
        )


def write_report(results: Results, others: Results | None, target: Path) -> Path:
    """Write the page about these records, with others beside them for comparison."""
    from efficientllm.report.html import page

    text = page(results, others)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, "utf-8")
    return target


def plan_command(console: Console, suite: Suite, store_path: Path, gpu: machine.Gpu | None) -> None:
    """The trials of the next round, with predicted memory and time on this machine."""
    store = Store(store_path)
    here, software = machine.describe(gpu), machine.software(gpu)
    shelf = Shelf(store, suite.cases, here, software)
    rate = duration.reached_flops(peak_of(gpu.product) if gpu else None)
    table = Table(box=None, pad_edge=False)
    table.add_column("case", overflow="fold")
    for name in ("point", "GiB", "fits", "tokens/param", "time", "trials done"):
        table.add_column(name)
    rows = micro_batches(suite, here.device_memory_bytes)
    for case in suite.cases:
        shape = predict.shape_of(case, suite)
        done = len(shelf.finished(case, suite.protocol))
        seconds = _seconds(case, suite, shelf, rate, gpu is not None)
        state = f"{done} of {suite.protocol.looks()[0]}"
        for i, point in enumerate(case.points):
            size, fits = _memory(case, shape, point, float(here.device_memory_bytes), rows)
            once = (_per_parameter(case, shape), duration.minutes(seconds), state) if i == 0 else ()
            table.add_row(_short(case, suite), str(point), size or "unknown", fits, *once)
    console.print(
        f"{escape(suite.name)} on {escape(here.name)}, protocol {suite.protocol.profile}; GiB is"
        " the predicted peak"
    )
    console.print(table)
    for line in told(suite.cases):
        console.print(escape(line))
    due = next_round(suite, shelf, store, precise)
    for item in due.blocked:
        console.print(f"[yellow]blocked[/yellow] {escape(item.case.name)}: {escape(item.reason)}")
    total = _total_seconds(suite, shelf, gpu)
    known = "predicted; measured where it ran before"
    console.print(f"about {duration.minutes(total)} in all ({known})")
    bound = _most_energy(total, gpu)
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
    tokens = spec.budget_steps * spec.batch * spec.sequence_length
    return f"{tokens / parameters(shape).total:.3g}"


def plan_on_command(console: Console, suite: Suite, names: list[str]) -> None:
    """Predicted memory on machines that are not here."""
    peaks = [machine_named(name.strip()) for name in names]
    table = Table(box=None, pad_edge=False)
    table.add_column("predicted peak, GiB", overflow="fold")
    table.add_column("")
    for peak in peaks:
        nominal = " nominal" if peak.nominal else ""
        table.add_column(f"{peak.id} {peak.memory_gib:.1f}{nominal}", overflow="fold")
    available = [peak.memory_gib * GIB for peak in peaks]
    rows = [micro_batches(suite, bytes_) for bytes_ in available]
    for case in suite.cases:
        shape = predict.shape_of(case, suite)
        for point in case.points:
            machines = zip(available, rows, strict=True)
            found = [_memory(case, shape, point, *each) for each in machines]
            table.add_row(_short(case, suite), str(point), *(f"{gib:>6} {f}" for gib, f in found))
    console.print(table)
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
    verdict = predict.fit(needed, available)
    if verdict != "no":
        return verdict
    batch = predict.largest_batch(case, shape, point, available)
    if batch is not None:
        what = "micro_batch" if isinstance(case.workload, Training) else "batch"
        return f"no; {what} {batch} does"
    return "no; two or more do" if needed < 8 * available else "no"


def _seconds(case: Case, suite: Suite, shelf: Shelf, rate: float, gpu: bool) -> float:
    """Mean of earlier trials here, else a guess."""
    earlier = [r.seconds for r in shelf.here(case) if r.outcome.status == "ok"]
    if earlier:
        return sum(earlier) / len(earlier)
    shape = predict.shape_of(case, suite)
    return duration.seconds(case, shape, suite.protocol, rate, gpu=gpu)


def _total_seconds(suite: Suite, shelf: Shelf, gpu: machine.Gpu | None) -> float:
    """Seconds of the trials that are missing, measured earlier or guessed."""
    rate = duration.reached_flops(peak_of(gpu.product) if gpu else None)
    trials = suite.protocol.looks()[0]
    return sum(
        _seconds(case, suite, shelf, rate, gpu is not None)
        * max(0, trials - len(shelf.finished(case, suite.protocol)))
        for case in suite.cases
    )
