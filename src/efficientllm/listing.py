"""What there is, for `efficientllm list`."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from efficientllm.catalog.shape import presets, shapes
from efficientllm.spec.document import SpecError
from efficientllm.spec.problems import nearest
from efficientllm.spec.suite import builtin_names, load_suite
from efficientllm.spec.technique import TUNING, WEIGHTS


def print_listing(console: Console, what: str) -> None:
    """One list, or a short overview of all."""
    lists: dict[str, Callable[[Console], None]] = {
        "suites": _suites,
        "models": _models,
        "techniques": _techniques,
        "machines": _machines,
        "metrics": _metrics,
    }
    if what and what not in lists:
        raise SpecError(f"there is no list of {what!r}{nearest(what, lists)}")
    if what:
        lists[what](console)
        return
    _suites(console)
    _techniques(console)
    console.print(f"[bold]models[/bold]  backbone-{', backbone-'.join(presets())}")
    console.print(f"        and {len(shapes())} published shapes: efficientllm list models")
    console.print("        or a checkpoint: a folder, or an id of the hub")
    console.print("[bold]more[/bold]    efficientllm list machines, list metrics")


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name)
    return table


def _suites(console: Console) -> None:
    table = _table("suite", "cases", "protocol", "question")
    for name in builtin_names():
        suite = load_suite(name)
        table.add_row(name, str(len(suite.cases)), suite.protocol.profile, escape(suite.question))
    console.print(table)


def _techniques(console: Console) -> None:
    table = _table("technique", "stage", "what it does")
    for stage, kinds in (("finetune", TUNING), ("generate", WEIGHTS)):
        for spec in kinds:
            annotation = spec.model_fields["kind"].annotation
            names = getattr(annotation, "__args__", ())
            text = " ".join((spec.__doc__ or "").split(". ")[0].split())
            table.add_row(", ".join(names), stage, escape(text))
    console.print(table)


def _models(console: Console) -> None:
    from efficientllm.parameters import parameters

    table = _table("model", "parameters", "family", "built by")
    for name, shape in presets().items():
        table.add_row(f"backbone-{name}", f"{parameters(shape).total:,}", "ours", "our decoder")
    for name, shape in shapes().items():
        builder = "our decoder" if shape.gated_decoder else "transformers"
        table.add_row(name, f"{parameters(shape).total:,}", shape.family, builder)
    console.print(table)


def _machines(console: Console) -> None:
    from efficientllm.catalog.peaks import peaks

    table = _table("machine", "GiB", "TB/s", "bf16 TFLOP/s", "source")
    for peak in peaks():
        bf16 = peak.peak.get("bf16")
        table.add_row(
            peak.id,
            f"{peak.memory_gib:.1f}",
            f"{peak.bandwidth_tb_s:g}",
            "-" if bf16 is None else f"{bf16:g}",
            peak.source,
        )
    console.print(table)


def _metrics(console: Console) -> None:
    from efficientllm.metrics import METRICS

    table = _table("metric", "unit", "better", "symbol", "definition")
    for metric in METRICS:
        table.add_row(
            metric.key, metric.unit, metric.better, metric.symbol, escape(metric.definition)
        )
    console.print(table)
