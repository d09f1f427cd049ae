"""Which rows a page's charts draw, which they ring, and what stands where there is none."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest

from efficientllm import record as r
from efficientllm.analysis.study import studies
from efficientllm.analysis.table import rows
from efficientllm.report import charts, table_charts
from efficientllm.report.html import page
from efficientllm.report.table_charts import (
    charted,
    charts_of_rows,
    charts_of_study,
    named,
    quality_cost,
)
from efficientllm.results import Results
from tests import samples
from tests.report import architecture_samples as made
from tests.report.test_html import pair

INT4 = samples.case(name="generate-int4", technique="int4")


def names_in(svg: str) -> set[str]:
    return set(re.findall(r"row: (bf16|int4)", svg))


def ringed(svg: str) -> list[str]:
    """Milliseconds a token of the dots with a ring."""
    marks = re.findall(r'aria-label="milliseconds per token: ([\d.]+);[^<>]*', svg)
    rings = re.findall(r'per token: ([\d.]+);[^<>]* stroke="currentColor"', svg)
    assert set(rings) <= set(marks)
    return rings


def test_a_stage_has_its_three_charts_of_the_rows_that_ended_well() -> None:
    lost = samples.record(INT4, outcome=r.Outcome(status="crash", reason="no kernel"))
    found = charts_of_rows(rows([samples.record(), lost]))
    assert [chart.title.split(" (")[0] for chart in found] == [
        "Where the memory goes",
        "Time against energy, per token",
        "Quality against time",
    ]
    assert [names_in(chart.svg) for chart in found] == [{"bf16"}] * 3


def test_every_chart_keeps_to_the_grammar_that_pages_do_not_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawers = set[str]()
    styled = charts._styled

    def checking(chart: Any) -> Any:
        drawers.add(sys._getframe(2).f_code.co_name)
        styled(chart).to_dict()
        return styled(chart)

    monkeypatch.setattr(charts, "_styled", checking)
    few = ("mha", "gqa")
    study = [*made.attention_suite(1, few), *made.learning_suite(3, few)]
    page(Results((*study, *pair())))
    assert len(drawers) == 5, "whoever calls `drawn`"


def test_a_chart_holds_only_so_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_charts, "MAX_MARKS", 1)
    assert [names_in(chart.svg) for chart in charts_of_rows(rows(pair()))] == [{"bf16"}] * 3


def test_a_studys_charts_show_what_stands_in_it_by_its_variants_names() -> None:
    """Memory at one point, time at all; a row that a newer one stands for is in neither."""
    found = [
        samples.record(
            samples.case(name=name, model=made.model(name)),
            env_id=env * 64,
            started_at=f"2026-01-0{env}T00:00:00+00:00",
            windows=samples.generate_windows(tpot=0.01 / int(env)),
        )
        for env in "12"
        for name in ("mha", "gqa")
    ]
    study = studies(rows(found))[0]
    assert len(study.rows()) == 4
    memory, time, quality = charts_of_study(study, "generate")
    assert memory.title == "Where the memory goes, 30M-h16, batch 1, 1,024 tokens"
    assert set(re.findall(r"row: ([^;\"]+)", memory.svg)) == {"mha", "gqa"}
    assert time.title == "Time against energy, per token, 30M-h16"
    for chart in (time, quality):
        dots = re.findall(r"milliseconds per token: ([\d.]+);[^<>]*row: (\w+)", chart.svg)
        assert sorted(dots) == [("5", "gqa"), ("5", "mha")], "none of the old"


def test_what_is_never_ranked_is_no_dot_of_quality() -> None:
    smoke = samples.record(INT4, protocol={"profile": "smoke"})
    assert names_in(quality_cost(named(rows([samples.record(), smoke]))).svg) == {"bf16"}
    assert quality_cost(named(rows([smoke]))).reason == "no ranked row"


def test_scores_of_weights_that_nobody_trained_are_no_dot_of_quality() -> None:
    random = samples.record(INT4, build=samples.build(weights="random"))
    assert names_in(quality_cost(named(rows([samples.record(), random]))).svg) == {"bf16"}


def test_a_dot_is_ringed_that_nothing_beats_on_the_same_text_at_the_same_point() -> None:
    fast = {"windows": samples.generate_windows(tpot=0.005)}
    better = samples.record(INT4, **fast)
    assert ringed(quality_cost(named(rows([samples.record(), better]))).svg) == ["5"]
    assert ringed(quality_cost(named(rows([better]))).svg) == [], "it had nothing to beat"
    other = samples.scores().model_copy(update={"text_sha256": "b" * 64})
    elsewhere = samples.record(INT4, scores=other, **fast)
    assert ringed(quality_cost(named(rows([samples.record(), elsewhere]))).svg) == []
    points = {"kind": "generate", "points": {"batch": [1], "context": [2048]}}
    longer = samples.record(samples.case(workload=points), **fast)
    assert ringed(quality_cost(named(rows([samples.record(), longer]))).svg) == []


def test_the_charts_of_a_table_hold_rows_of_one_suite_on_one_machine() -> None:
    elsewhere = samples.MACHINE.model_copy(update={"name": "another"})
    records = [
        made.in_suite(samples.record(), "attention-small", 0),
        made.in_suite(samples.record(machine=elsewhere), "attention", 1),
        made.in_suite(samples.record(INT4), "attention", 2),
    ]
    older, foreign, newest = rows(records)
    assert charted([older, foreign, newest], [older]) == [older], "what the page is about"
    assert charted([older, foreign, newest], []) == [newest]


@pytest.mark.parametrize("curve", [True, False])
def test_a_studys_curves_are_drawn_against_tokens_or_one_chart_says_why_not(curve: bool) -> None:
    changes: dict[str, Any] = {} if curve else {"curve": ()}
    made_records = [made.trained(name, **changes) for name in ("mha", "mla")]
    text = page(Results(tuple(made_records)))
    assert ("Quality against tokens" in text) is curve
    assert (">million tokens<" in text) is curve
    assert text.count("no training was scored along the way") == (0 if curve else 1)
    assert text.count("Quality against time (") == 1, "a study's first screen is its matrix"
