"""The parts of METHODOLOGY.md that come from code: protocol, metrics, filters of text.

    python -m efficientllm.report.methodology METHODOLOGY.md

replaces what stands between the markers, so that the document cannot say anything else
than the program does; a test holds them equal.
"""

from __future__ import annotations

import sys
from pathlib import Path

from efficientllm.metrics import METRICS
from efficientllm.spec.protocol import PROFILES
from efficientllm.spec.text import Filter

BEGIN, END = "<!-- generated: {} -->", "<!-- end of generated: {} -->"


def protocol_table() -> str:
    """The profiles as a Markdown table."""
    heads = (
        "profile",
        "trials",
        "units",
        "timed window",
        "energy window",
        "cap a point",
        "stops at",
    )
    lines = [md_row(heads), md_row(["---"] * len(heads))]
    for name, limits in PROFILES.items():
        low, high = limits.min_trials, limits.max_trials
        stop = "-"
        if limits.time_half_width is not None and limits.energy_half_width is not None:
            stop = f"{limits.time_half_width:.0%} time, {limits.energy_half_width:.0%} energy"
        lines.append(
            md_row(
                (
                    f"`{name}`",
                    str(low) if low == high else f"{low} to {high}",
                    f"at least {limits.min_units}",
                    f"at least {limits.min_seconds:g} s",
                    f"at least {limits.energy_seconds:g} s",
                    f"{limits.cap_seconds:g} s",
                    stop,
                )
            )
        )
    return "\n".join(lines)


def metric_table() -> str:
    """Every metric: key, unit, which way is better, symbol of the paper, definition."""
    heads = ("key", "unit", "better", "symbol", "stages", "definition")
    lines = [md_row(heads), md_row(["---"] * len(heads))]
    for metric in METRICS:
        stages = "all" if len(metric.stages) == 3 else ", ".join(metric.stages)
        lines.append(
            md_row(
                (
                    f"`{metric.key}`",
                    metric.unit or "-",
                    metric.better or "-",
                    metric.symbol or "-",
                    stages,
                    metric.definition,
                )
            )
        )
    return "\n".join(lines)


def filter_table() -> str:
    """The rules that leave documents out of training, from the fields of the spec."""
    lines = [md_row(("`filter`", "what it bounds")), md_row(("---", "---"))]
    for name, field in Filter.model_fields.items():
        lines.append(md_row((f"`{name}`", field.description or "")))
    return "\n".join(lines)


def md_row(cells: tuple[str, ...] | list[str]) -> str:
    """One row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def parts() -> dict[str, str]:
    """The generated parts of the document, by the name in their markers."""
    return {"protocol": protocol_table(), "metrics": metric_table(), "filters": filter_table()}


def renewed(text: str, made: dict[str, str]) -> str:
    """A document with its generated parts replaced; ValueError where a marker is missing."""
    for name, content in made.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"the document has no part between {begin} and {end}")
        text = f"{before}{begin}\n{content}\n{end}{after}"
    return text


def main() -> None:
    """Renew the document that the command line names."""
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text("utf-8"), parts()), "utf-8")


if __name__ == "__main__":
    main()
