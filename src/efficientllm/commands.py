"""Running a suite for a person: progress, rows, doubts, the page, what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from efficientllm import clock, duration, machine
from efficientllm.durable import replace
from efficientllm.forecast import missing, most_energy, remarks, total_seconds
from efficientllm.plan import Planned, Shelf
from efficientllm.record import Record
from efficientllm.report.text import print_doubts, print_rows
from efficientllm.results import Results, load, published
from efficientllm.runner import Events, Options, run_suite
from efficientllm.spec.model import Checkpoint
from efficientllm.spec.suite import Suite
from efficientllm.store import Store
from efficientllm.watch import Progress as TrialProgress


def run_command(
    console: Console, suite: Suite, store_path: Path, options: Options, *, write_page: bool
) -> int:
    """Run a suite with progress, print its rows, write the page, name what to do next."""
    store, here = Store(store_path), machine.describe(options.gpu)
    shelf = Shelf(store, suite.cases, here, machine.software(options.gpu))
    guess = total_seconds(suite, shelf, options.gpu)
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
    for line in remarks(suite):
        console.print(escape(line))
    bound = most_energy(guess_s, gpu)
    energy = "" if bound is None else f", at most {bound.kwh:.2g} kWh"
    cases = len(suite.cases) - len(suite.doubles)
    console.print(
        f"suite {escape(suite.name)}  {device}  protocol {suite.protocol.profile}"
        f"  {cases} cases  about {duration.minutes(guess_s)}{energy}"
    )


def _missing(suite: Suite, shelf: Shelf) -> int:
    """Trials that are missing before cases are first looked at, for the progress bar."""
    return sum(n for _, n in missing(suite, shelf))


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


def write_report(results: Results, others: Results | None, target: Path, suite: str = "") -> Path:
    """Write the page about these records, with others beside them for comparison."""
    from efficientllm.report.html import page

    text = page(results, others, suite)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace(target, text.encode())
    return target
