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
    charts_below,
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
    assert memory.title == "Where the memory goes, attention at 30M-h16, batch 1, 1,024 tokens"
    assert set(re.findall(r"row: ([^;\"]+)", memory.svg)) == {"mha", "gqa"}
    assert time.title == "Time against energy, per token, attention at 30M-h16"
    for chart in (time, quality):
        dots = re.findall(r"milliseconds per token: ([\d.]+);[^<>]*row: (\w+)", chart.svg)
        assert sorted(dots) == [("5", "gqa"), ("5", "mha")], "none of the old"


def colours_in(svg: str) -> dict[str, str]:
    """The fill of each row's marks."""
    marks = re.findall(r"row: (\w+)[^<>]*? fill=\"(#\w+)\"", svg)
    assert len(dict(marks)) == len(set(marks)), "one colour a name"
    return dict(marks)


def test_who_ran_out_of_memory_is_named_and_every_variant_keeps_its_colour() -> None:
    """At the largest batch, as the matrix; without mha there gqa is not the first colour."""
    lost = r.Outcome(status="out_of_memory", reason="CUDA out of memory")
    mha = made.generate("mha", contexts=(4096,))
    points = [
        p if p.batch == 1 else p.model_copy(update={"outcome": lost, "windows": ()})
        for p in mha.points
    ]
    others = [made.generate(name, contexts=(4096,)) for name in ("gqa", "mqa")]
    study = studies(rows([mha.model_copy(update={"points": tuple(points)}), *others]))[0]
    memory, _, _ = charts_of_study(study, "generate")
    assert memory.title.endswith("attention at 30M-h16, batch 32, 4,096 tokens")
    assert memory.notes == ("mha: out of memory.",)
    trainings = [made.trained(name) for name in ("mha", "gqa", "mqa")]
    untold = trainings[0].model_copy(update={"scores": None})
    whole, without = (
        charts_of_study(studies(rows(found))[0], "pretrain")[2]
        for found in (trainings, [untold, *trainings[1:]])
    )
    told = colours_in(whole.svg)
    assert told.keys() == {"mha", "gqa", "mqa"}
    assert colours_in(without.svg) == {name: told[name] for name in ("gqa", "mqa")}


def test_quality_is_drawn_of_the_best_learning_rate_of_each() -> None:
    rates = [
        made.trained(name, bits=bits, lr=lr, started_at=f"2026-01-0{day}T00:00:00+00:00")
        for name in ("mha", "gqa")
        for day, lr, bits in ((1, 1e-3, 1.2), (2, 2e-3, 1.5))  # the newer one is no better
    ]
    quality = charts_of_study(studies(rows(rates))[0], "pretrain")[2]
    assert re.findall(r"bits per byte: ([\d.]+)", quality.svg) == ["1.2", "1.2"]
    assert "Each at its best learning rate." in quality.notes


def test_below_a_table_every_study_of_the_page_is_drawn_and_then_what_is_of_none() -> None:
    presets = ("0.5B-h16", "1.5B-h16")
    sizes = [made.pretrain(n, 4096, preset=p) for p in presets for n in ("mha", "gqa")]
    alone = samples.record(samples.pretrain(name="pretrain-alone"))
    table = rows([*sizes, alone])
    of_page = studies(table)
    assert len(of_page) == 2
    for known in (of_page, []):  # a page of none finds those of the table itself
        titles = [chart.title for chart in charts_below("pretrain", table, table, known)]
        memory = [title for title in titles if title.startswith("Where the memory goes")]
        assert [re.sub(r".* at |, length.*", "", title) for title in memory] == [
            *(study.size for study in of_page),
            "Where the memory goes",
        ]


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
    drawn = text.count("Quality against time, attention at 30M-h16 (")
    assert drawn == 1, "a study's first screen is its matrix"
