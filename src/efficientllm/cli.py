"""The command line. Each command only parses, calls one thing, and shows what comes back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from efficientllm.explained import explained, fail

EXIT_STATUS = (
    "Exit status: 0 done; 1 a trial failed, or a --fail-if condition is broken; 2 the request"
    " cannot be understood; 3 the store or the disk; 4 no usable device or worker; 5 time ran"
    " out with work left; 6 a --fail-if condition is exceeded but not decided (too few trials);"
    " 128 + N stopped by signal N."
)

app = typer.Typer(
    help="What an efficiency technique for language models really costs and buys.",
    epilog="Start with: efficientllm run    Then: efficientllm doctor, efficientllm list\n\n"
    + EXIT_STATUS,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

DEFAULT_STORE = Path("efficientllm-results")

What = Annotated[
    Optional[list[str]],  # noqa: UP045  (typer reads this at run time)
    typer.Argument(help="a suite, a suite file, or pretrain|finetune|generate; then key=value"),
]
StorePath = Annotated[Path, typer.Option("--store", help="where records are kept")]
GpuIndex = Annotated[Optional[int], typer.Option("--gpu", help="which GPU; default: an idle one")]  # noqa: UP045
Only = Annotated[str, typer.Option(help="only cases whose names match, as 'train-*,one-mla'")]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="run the Python that cases name: yours, or a checkpoint's"),
]


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def _load(*places: Path) -> Any:
    """Records of these places; what was moved away or left out is told on standard error."""
    from efficientllm.results import load

    results = load(*places)
    for line in results.refused:
        shown = "".join(c if c.isprintable() else "?" for c in line)
        print(f"efficientllm: {shown}", file=sys.stderr)
    return results


@app.command(epilog="Example: efficientllm run generate model=Llama-3.1-8B technique=bf16,int4")
def run(
    what: What = None,
    store: StorePath = DEFAULT_STORE,
    gpu: GpuIndex = None,
    only: Only = "*",
    shard: Annotated[str, typer.Option(help="this job's share of the cases, as 3/16")] = "1/1",
    until: Annotated[str, typer.Option(help="start no trial after so long, as 3h50m")] = "",
    peaks: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="peaks of a card that the catalog lacks (see catalog/machines.yaml)"),
    ] = None,
    page: Annotated[bool, typer.Option(help="write the report page at the end")] = True,
    allow_code: AllowCode = False,
) -> None:
    """Measure what is still missing of a suite; alone it runs the quickstart."""
    from efficientllm.machine import choose_gpu
    from efficientllm.request import asked_suite

    with explained():
        card = choose_gpu(gpu)
        # A mistake in the suite is told before the slow imports.
        suite = asked_suite(what, allow_code=allow_code, gpu=card is not None, only=only)
        from efficientllm.commands import run_command
        from efficientllm.runner import Options, parse_duration, parse_shard

        declared = None
        if peaks is not None:
            from efficientllm.catalog.peaks import declared as read_peaks

            declared = read_peaks(peaks).model_dump(mode="json")
        options = Options(
            whole=suite,
            gpu=card,
            shard=parse_shard(shard),
            until_s=parse_duration(until) if until else None,
            declared_peak=declared,
        )
        raise typer.Exit(run_command(_console(), suite.only(only), store, options, write_page=page))


@app.command(epilog="Example: efficientllm plan quickstart    Or: ... --on h100-80gb,l4-24gb")
def plan(
    what: What = None,
    store: StorePath = DEFAULT_STORE,
    gpu: GpuIndex = None,
    only: Only = "*",
    on: Annotated[str, typer.Option(help="predict for these machines instead of this one")] = "",
    allow_code: AllowCode = False,
) -> None:
    """Show the trials to run, what they will need, and what will not fit. Runs nothing."""
    from efficientllm.machine import choose_gpu
    from efficientllm.request import asked_suite

    with explained():
        card = None if on else choose_gpu(gpu)
        on_gpu = bool(on) or card is not None
        suite = asked_suite(what, allow_code=allow_code, gpu=on_gpu, only=only)
        from efficientllm.forecast import plan_command, plan_on_command

        chosen = suite.only(only)
        if on:
            plan_on_command(_console(), chosen, on.split(","), whole=suite)
        else:
            plan_command(_console(), chosen, store, card, whole=suite)


@app.command(epilog="Example: efficientllm fetch generate model=meta-llama/Llama-3.1-8B")
def fetch(what: What = None, only: Only = "*", allow_code: AllowCode = False) -> None:
    """Fill the hub's cache with what a suite needs, for machines without a network."""
    from efficientllm.fetch import fetch_suite
    from efficientllm.request import asked_suite

    with explained():
        suite = asked_suite(what, allow_code=allow_code, gpu=False, only=only).only(only)
        for line in fetch_suite(suite):
            print(line)


@app.command("list", epilog="Example: efficientllm list models")
def list_(
    what: Annotated[str, typer.Argument(help="suites, models, techniques, machines, metrics")] = "",
) -> None:
    """Show what there is: suites, models, techniques, machines, metrics."""
    from efficientllm.listing import print_listing

    with explained():
        print_listing(_console(), what)


@app.command(epilog="Example: efficientllm show generate-int4 --at batch=1")
def show(
    key: Annotated[str, typer.Argument(help="part of a case's name or id")],
    store: StorePath = DEFAULT_STORE,
    at: Annotated[str, typer.Option(help="one point, as batch=1,context=1024")] = "",
    raw: Annotated[bool, typer.Option(help="print the newest record as JSON")] = False,
) -> None:
    """Show everything about one row: each metric with its interval, or why it is null."""
    from efficientllm.report.text import print_record
    from efficientllm.results import parse_at

    with explained():
        row = _load(store).find(key, parse_at(at))
        if raw:
            print(row.record.model_dump_json(indent=1))
        else:
            print_record(_console(), row)


@app.command(epilog="Example: efficientllm compare generate-bf16 generate-int4 --at batch=1")
def compare(
    a: Annotated[str, typer.Argument(help="part of a case's name or id")],
    b: Annotated[str, typer.Argument(help="what it is compared with")],
    store: StorePath = DEFAULT_STORE,
    at: Annotated[str, typer.Option(help="one point, as batch=1,context=1024")] = "",
    fail_if: Annotated[
        str, typer.Option("--fail-if", help="exit 1 if B is so, as 'slower>5%'")
    ] = "",
) -> None:
    """Compare B with A: paired, with an interval and a verdict; refused for unequal work."""
    from efficientllm.analysis.condition import check_condition
    from efficientllm.report.text import print_comparison
    from efficientllm.results import parse_at

    with explained():
        found = _load(store).compare(a, b, parse_at(at))
        print_comparison(_console(), found)
        if fail_if:
            status, text = check_condition(found, fail_if)
            if status != "held":
                fail(text, 1 if status == "broken" else 6)


@app.command(epilog="Example: efficientllm report -o report.html")
def report(
    stores: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Argument(help="stores or published .jsonl files; default: the store"),
    ] = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", help="the page; default: report.html in the store"),
    ] = None,
    alone: Annotated[
        bool, typer.Option(help="leave out the published records that come with the package")
    ] = False,
    suite: Annotated[
        str, typer.Option(help="what the page begins with; default: what ran last")
    ] = "",
) -> None:
    """Write one self-contained page about every record."""
    from efficientllm.commands import write_report
    from efficientllm.results import published

    with explained():
        places = list(stores or [DEFAULT_STORE])
        target = output or (places[0] if places[0].is_dir() else Path()) / "report.html"
        results = _load(*places)
        if not results.records:
            raise ValueError(f"no records in {', '.join(map(str, places))}; run something first")
        others = None if alone else _load(*published())
        print(f"page  {write_report(results, others, target, suite)}")


@app.command(epilog="Example: efficientllm export --format latex -o table.tex")
def export(
    store: Annotated[Path, typer.Argument(help="a store or a published .jsonl")] = DEFAULT_STORE,
    form: Annotated[str, typer.Option("--format", help="jsonl, csv, parquet, md or latex")] = "csv",
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", help="a file; default: standard output"),
    ] = None,
    suite: Annotated[str, typer.Option(help="only rows of this suite")] = "",
) -> None:
    """Write rows as tables with intervals, or whole records as JSON lines."""
    from efficientllm.analysis.table import of_suite
    from efficientllm.durable import replace
    from efficientllm.report.export import export as export_rows

    with explained():
        results = _load(store)
        rows, along = results.rows(), results.probes()
        if suite:
            rows = of_suite(rows, results.records, suite)
            along += results.repeated(rows, suite)
        content = export_rows(rows, form, along)
        if output is None:
            sys.stdout.buffer.write(content)
        else:
            replace(output, content)


@app.command(epilog="Example: efficientllm doctor")
def doctor(store: StorePath = DEFAULT_STORE, gpu: GpuIndex = None) -> None:
    """Tell what this machine can measure, and check it against known answers."""
    from efficientllm.doctor import examine
    from efficientllm.machine import choose_gpu
    from efficientllm.store import Store

    with explained():
        raise typer.Exit(examine(_console(), Store(store), choose_gpu(gpu)))


@app.command(epilog="Example: efficientllm check my_attn.py:MyAttention")
def check(
    what: Annotated[str, typer.Argument(help="FILE:CLASS, or one of ours: mha, gqa, mla ...")],
    preset: Annotated[str, typer.Option(help="the backbone whose sizes it gets")] = "small",
    position: Annotated[
        str, typer.Option(help="what tells it positions, as model.position: rope, t5, alibi ...")
    ] = "rope",
    gpu: GpuIndex = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the findings as JSON")] = False,
) -> None:
    """Examine an attention (this runs its file): causality, cache, gradients, stated cost."""
    from efficientllm.examination import examine_command
    from efficientllm.machine import choose_gpu

    with explained():
        card = choose_gpu(gpu)
        raise typer.Exit(examine_command(_console(), what, preset, position, card, as_json))


def main() -> None:
    """Entry point of the `efficientllm` command."""
    if sys.platform != "linux":
        sys.exit(
            f"EfficientLLM measures on Linux; on {sys.platform} there is no /proc, no"
            " prctl and no monotonic clock shared by processes, which its meters need."
        )
    app()


if __name__ == "__main__":
    main()
