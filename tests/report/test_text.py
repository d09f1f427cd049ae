"""Reports in a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from efficientllm import record as r
from efficientllm.analysis.compare import compare
from efficientllm.analysis.table import rows
from efficientllm.report.text import print_comparison, print_doubts, print_record, print_rows
from efficientllm.results import Results
from efficientllm.spec.document import SpecError
from tests import samples
from tests.report.test_html import pair


def console() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=160, highlight=False), out


def test_rows_show_values_and_failures_with_their_reason() -> None:
    made, out = console()
    lost = r.Outcome(status="out_of_memory", reason="90 GiB [bold]asked[/bold]")
    print_rows(
        made,
        rows(
            [
                *pair(),
                samples.record(of=samples.case(name="generate-x", technique="fp16"), outcome=lost),
            ]
        ),
    )
    text = out.getvalue()
    assert "Quantized inference" in text
    assert "200" in text
    assert "out_of_memory" in text
    assert "[bold]asked[/bold]" in text, "markup in a reason is text"


def test_cases_that_nothing_else_tells_apart_show_what_compare_accepts() -> None:
    """Two texts under one name: each row has its id, and asking for another name lists them."""
    workloads = ({"kind": "generate", "new_tokens": n} for n in (8, 16))
    found = Results(tuple(samples.record(samples.case(workload=w)) for w in workloads))
    table, (made, out) = found.rows(), console()
    print_rows(made, table)
    for row in table:
        assert row.key in out.getvalue()
        assert f"{row.key} {row.name}" in str(_refused(found, "nobody"))
    made, out = console()
    print_rows(made, table[:1])
    assert table[0].key not in out.getvalue()


def _refused(found: Results, key: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        found.find(key)
    return caught.value


def test_doubts_are_said_once() -> None:
    made, out = console()
    print_doubts(
        made,
        rows(
            [
                samples.record(protocol={"profile": "smoke"}),
                samples.record(
                    of=samples.case(name="generate-i", technique="int8"),
                    protocol={"profile": "smoke"},
                ),
            ]
        ),
    )
    text = out.getvalue()
    assert text.count("SMOKE") == 1
    assert "within one run" in text


def test_a_record_shows_nulls_with_reasons_and_the_papers_symbols() -> None:
    made, out = console()
    print_record(made, rows([samples.record()])[0])
    text = out.getvalue()
    assert "null: no task score was measured" in text
    assert "MCR" in text
    assert "AEC" in text


def test_a_comparison_states_work_card_pairs_and_never_says_lossless() -> None:
    made, out = console()
    a, b = rows(pair())
    print_comparison(made, compare(a, b))
    text = out.getvalue()
    assert "equal work: yes   same card: yes   3 pairs" in text
    assert "x2.000 [2.000, 2.000]" in " ".join(text.split())
    assert "faster" in text
    assert "do not call this lossless" in text
