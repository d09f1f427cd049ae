"""Reports in a terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from efficientllm import record as r
from efficientllm.analysis.compare import compare
from efficientllm.analysis.flag import Flag
from efficientllm.analysis.table import rows
from efficientllm.report.headline import doubts_of
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
    assert "x out_of_memory" in text, "beside its name, under no metric"
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


def test_the_name_that_a_table_shows_finds_its_row_before_longer_ones() -> None:
    names = ("generate-gqa", "generate-gqa-mine")
    cases = (
        samples.case(name=name, technique=t)
        for name, t in zip(names, ("bf16", "int8"), strict=True)
    )
    found = Results(tuple(samples.record(case) for case in cases))
    assert found.find("gqa").name == "generate-gqa"
    assert found.find("gqa-mine").name == "generate-gqa-mine"
    plain = Results((samples.record(samples.case(name="gqa", technique="fp16")), *found.records))
    assert plain.find("gqa").name == "gqa", "its whole name goes before a name without its stage"
    said = str(_refused(found, "generate"))
    assert said.endswith("; name one"), "both are at one point, which narrows nothing"


def test_a_row_that_failed_later_takes_no_older_ones_place_under_a_name() -> None:
    later = {"env_id": "new", "started_at": "2030-01-01T00:00:00+00:00"}
    lost = samples.record(outcome=r.Outcome(status="crash", reason="so"), **later)
    found = Results((samples.record(), lost))
    assert [row.status for row in found.rows()] == ["ok", "crash"]
    assert found.find("generate-bf16").status == "ok"
    assert Results((lost,)).find("generate-bf16").status == "crash"


def test_an_invalid_value_is_marked_and_the_mark_is_told() -> None:
    readings = (samples.counter(), samples.power(700.0))
    table = rows([samples.record(readings=readings)])
    made, out = console()
    print_rows(made, table)
    assert "\u2020" in out.getvalue()
    print_doubts(made, table)
    assert "\u2020 invalid, and never ranked" in out.getvalue()
    made, out = console()
    print_record(made, table[0])
    assert re.search(r"j_per_token +\S.*\(invalid\)", out.getvalue())
    made, out = console()
    print_rows(made, rows([samples.record()]))
    print_doubts(made, rows([samples.record()]))
    assert "\u2020" not in out.getvalue()


def test_each_failed_check_is_told_and_other_flags_once() -> None:
    """What is wrong with one module is not wrong with the next."""
    made, out = console()
    table = []
    for n, text in enumerate(("causality: by 121.7 %", "FLOPs: too many")):
        workload = {"kind": "generate", "new_tokens": n + 8}
        record = samples.record(samples.case(name=f"generate-{n}", workload=workload))
        row = rows([record])[0]
        flags = (Flag("CUSTOM_CHECK_FAILED", "warn", "all", text), *row.flags)
        row.__dict__["flags"] = (*flags, Flag("SMOKE", "warn", "all", f"a glance {n}"))
        table.append(row)
    print_doubts(made, table)
    assert "0 b1 c1024: causality: by 121.7 %" in out.getvalue()
    assert "1 b1 c1024: FLOPs: too many" in out.getvalue()
    assert out.getvalue().count("SMOKE") == 1
    doubts = "\n".join(doubts_of(table))
    assert doubts.count("CUSTOM_CHECK_FAILED") == 2
    assert doubts.count("SMOKE") == 1


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
