"""The tables and the chart of README.md, from the published records.

    python -m efficientllm.report.readme README.md results/h100-80gb-quantization.jsonl \\
        results/h100-80gb-attention*.jsonl

replaces what stands between the markers and draws the first file's chart beside it; a test
holds the tables equal to the records.
"""

from __future__ import annotations

import sys
from pathlib import Path

from efficientllm.analysis.table import Row
from efficientllm.report.answer import study_headline
from efficientllm.report.cells import Cell
from efficientllm.report.columns import column
from efficientllm.report.methodology import md_row, renewed
from efficientllm.report.section import rows_of_suite, studies_of
from efficientllm.report.table_charts import latency_energy, named
from efficientllm.results import Results, load

KEYS = ("it_tokens_per_s", "ttft_s", "j_per_token", "peak_allocated_gib", "weights_gib")
ASKED = ("training tokens/s", "decode tokens/s", "cache per token", "bits per byte")
"""Columns of a study that fit beside each other in a README."""

INK = "#6e7781"
"""Readable on light and on dark ground: a picture in a README has no colour of its page."""


def results_table(rows: list[Row]) -> str:
    """Rows that ended well as a Markdown table, the rest in a line, the conditions below."""
    good = [row for row in rows if row.status == "ok"]
    columns = [column(key, good) for key in KEYS]
    heads = ["", "batch", columns[0].heading, "against bf16", *(c.heading for c in columns[1:])]
    lines = [md_row(heads), md_row(["---", *["---:"] * (len(heads) - 1)])]
    for row in good:
        name, batch = row.case.technique_label, str(row.views[0].point.batch)
        first, *others = (c.marked(row) for c in columns)
        lines.append(md_row([name, batch, first, _against(row, good), *others]))
    return "\n".join([*lines, "", _conditions(good), *_failed(rows)])


def _against(row: Row, rows: list[Row]) -> str:
    """How many times as fast as bf16 at the same point."""
    same = (r for r in rows if r.case.technique_label == "bf16" and r.point == row.point)
    speeds = [r.cell(KEYS[0]).interval for r in (row, *same)]
    if len(speeds) < 2 or speeds[0] is None or speeds[1] is None:
        return "-"
    return f"x{speeds[0].value / speeds[1].value:.2f}"


def _conditions(rows: list[Row]) -> str:
    record = rows[0].record
    case = rows[0].case
    name = getattr(case.model, "name", case.model.kind)
    weights = "random weights: cost only" if rows[0].cost_only else "trained weights"
    new_tokens = getattr(case.workload, "new_tokens", 0)
    return (
        f"{name} ({weights}), {rows[0].views[0].point.context:,} tokens in and {new_tokens} out,"
        f" one {record.machine.device}, torch {record.software['torch']},"
        f" {record.started_at[:10]}, protocol {record.protocol['profile']}: one trial a row, ± is"
        " half of a 95 % interval within the run. A dash was not measured; the page says why."
    )


def _failed(rows: list[Row]) -> list[str]:
    failed = [
        f"{row.case.technique_label} at batch {row.views[0].point.batch}: {row.status}"
        f" ({row.reason.rstrip('.')})"
        for row in rows
        if row.status != "ok"
    ]
    return ["Not in the table: " + "; ".join(failed) + "."] if failed else []


def study_table(results: Results) -> str:
    """The first screen of the suite `attention`: its matrix in short, and what it says."""
    rows = results.rows()
    main = rows_of_suite(rows, results.records, results.newest("attention"))
    found = studies_of(main, rows)
    assert found is not None, "the records are of no study"
    shown = found.sections[0].matrix
    asks = [(n, ask) for n, ask in enumerate(shown.asks) if ask.head in ASKED]
    lines = [
        md_row([shown.study.axis, *(f"{ask.head}<br>{ask.where}" for _, ask in asks)]),
        md_row(["---", *["---:"] * len(asks)]),
        *(md_row([name, *(_answer(cells[n]) for n, _ in asks)]) for name, cells in shown.lines),
    ]
    head = study_headline(main, "", shown, found.quality)
    told = " ".join(filter(None, (head.sentence, head.hedge)))
    return "\n".join([*lines, "", f"{told} Ratios in italics are not decided. {head.condition}."])


def _answer(cell: Cell) -> str:
    if not cell.ratio:
        return cell.text
    return f"{cell.text}<br>" + (f"*{cell.ratio}*" if cell.state == "undecided" else cell.ratio)


def picture(rows: list[Row]) -> str:
    """Time against energy of the rows, as a picture that stands alone."""
    svg = latency_energy(named([row for row in rows if row.status == "ok"])).svg
    return svg.replace("currentColor", INK)


def main() -> None:
    """Renew the document and draw the chart from the records that the command line names."""
    document, records, *study = (Path(word) for word in sys.argv[1:])
    rows = load(records).rows()
    made = {"results": results_table(rows), "study": study_table(load(*study))}
    text = renewed(document.read_text("utf-8"), made)
    document.write_text(text, "utf-8")
    records.with_suffix(".svg").write_text(picture(rows), "utf-8")


if __name__ == "__main__":
    main()
