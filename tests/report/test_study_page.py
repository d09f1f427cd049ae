"""The page of a study: its matrix and its sentence hold what the records hold, and no more."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from efficientllm import record as r
from efficientllm.analysis.crossover import Crossing
from efficientllm.analysis.differences import Trainings
from efficientllm.analysis.flag import Flag
from efficientllm.analysis.study import Study, studies, trainings
from efficientllm.analysis.table import Row, of_suite, rows
from efficientllm.analysis.work import training_precision
from efficientllm.cost import cache_bytes
from efficientllm.report import html, section
from efficientllm.report.answer import largest, study_headline
from efficientllm.report.cells import Cell
from efficientllm.report.charts import PALETTE
from efficientllm.report.columns import told_apart
from efficientllm.report.contexts import Family, _told, cost_charts, families
from efficientllm.report.downloads import downloads
from efficientllm.report.export import export
from efficientllm.report.headline import headline
from efficientllm.report.html import page
from efficientllm.report.learning import MAX_CURVE, cache_chart, learning_chart, token_chart
from efficientllm.report.matrix import Matrix, matrix
from efficientllm.report.section import rows_of_suite, studies_of
from efficientllm.report.spent import spent
from efficientllm.report.table_charts import charts_of_rows, latency_energy, named
from efficientllm.results import Results, load
from tests import samples
from tests.report import architecture_samples as made
from tests.report.test_html import Structure, pair


@cache
def costs(rounds: int = 3) -> Study:
    return studies(rows(made.attention_suite(rounds)))[0]


@cache
def learned(seeds: int = 3) -> Study:
    return studies(rows(made.learning_suite(seeds)))[0]


@cache
def shown(rounds: int = 3) -> Matrix:
    return matrix(costs(rounds), trainings(learned()))


@cache
def whole() -> str:
    return page(Results((*made.learning_suite(), *made.attention_suite())))


def cell(of: Matrix, head: str, where: str, name: str) -> Cell:
    (ask,) = [ask for ask in of.asks if ask.head == head and where in ask.where]
    return dict(of.column(ask))[name]


def test_decode_is_shown_at_the_longest_context_that_the_baseline_ran() -> None:
    # 32 x 65,536 tokens of mha's cache are 32 GiB, beyond the made-up card's 30
    heads = [(ask.head, ask.where) for ask in shown().asks]
    assert ("decode tokens/s", "batch 1, 65,536 tokens") in heads
    assert ("decode tokens/s", "batch 32, 16,384 tokens") in heads
    assert ("training tokens/s", "length 16,384") in heads
    lost = cell(shown(), "longest context", "batch 32", "mha")
    assert (lost.text, lost.ratio, lost.state) == ("16,384", "out of memory", "failed")
    assert lost.title == "65,536 tokens: out of memory the cache takes 32 GiB"
    assert cell(shown(), "longest context", "batch 32", "gqa").text == "65,536"


def test_a_context_that_only_others_were_asked_for_is_told_and_no_limit() -> None:
    others = made.attention_suite(1, ("mha", "mqa"))
    short = made.in_suite(made.generate("gqa", contexts=(4096, 16384)), "attention", len(others))
    (study,) = studies(rows([*others, short]))
    found = matrix(study, trainings(learned()))
    told = cell(found, "longest context", "batch 32", "gqa")
    assert (told.text, told.ratio, told.state) == ("16,384", "longer not run", "undecided")
    assert told.title == "65,536 tokens were not run, as they were with others"
    assert cell(found, "longest context", "batch 32", "mqa").ratio == ""


def test_a_ratio_is_the_paired_one_with_its_interval() -> None:
    found = cell(shown(), "decode tokens/s", "batch 32", "sliding")
    expected = made.tpot("mha", 32, 16384) / made.tpot("sliding", 32, 16384)
    assert found.line is not None
    assert found.line.ratio == pytest.approx(expected, rel=1e-6)
    assert (found.line.verdict, found.state) == ("better", "")
    assert found.ratio.startswith(f"x{expected:.2f} \u00b1")
    base = cell(shown(), "decode tokens/s", "batch 32", "mha")
    assert (base.ratio, base.line) == ("baseline", None)


def test_a_difference_inside_the_band_is_amber_and_says_why() -> None:
    found = cell(shown(), "training tokens/s", "", "gqa")
    assert found.state == "undecided"
    assert found.title.startswith("not decided: the interval touches the band of 2 %")


def test_the_cache_is_counted_and_compares_exactly_from_one_trial_on() -> None:
    for rounds in (1, 3):
        found = cell(shown(rounds), "cache per token", "", "mqa")
        assert (found.text, found.ratio, found.state) == ("1,024 B", "x0.062", "")
        assert "counted, not sampled" in found.title


def test_one_trial_decides_no_speed() -> None:
    found = cell(shown(1), "decode tokens/s", "batch 32", "sliding")
    assert found.state == "undecided"
    assert "1 of the three pairs of trials" in found.title
    assert "\u00b1" not in found.ratio


def test_quality_stands_with_its_size_or_says_that_it_was_not_measured() -> None:
    found = cell(shown(), "bits per byte", "30M-h16, 0.4", "mla")
    assert found.text == "1.4964"
    assert found.ratio.startswith("-0.0040 \u00b1")
    assert "better, 3 seeds" in found.title
    without = cell(matrix(costs(), trainings(costs())), "bits per byte", "no training", "mla")
    assert (without.text, without.state) == ("not measured", "none")


def test_one_seed_leaves_quality_amber() -> None:
    study = learned(1)
    found = cell(matrix(study, trainings(study)), "bits per byte", "", "mla")
    assert found.state == "undecided"
    assert "not decided: one seed" in found.title


def test_where_nothing_is_decided_the_largest_difference_is_named() -> None:
    """With three seeds that scatter: what a reader asks is what became of the largest."""
    far = {"mha": (1.50, 1.60, 1.40), "mla": (1.45, 1.62, 1.33), "gqa": (1.49, 1.61, 1.41)}
    records = [made.trained(n, i, bits=bits[i]) for i in range(3) for n, bits in far.items()]
    study = studies(rows(records))[0]
    head = study_headline(study.rows(), "", matrix(study, trainings(study)), trainings(study))
    assert "no difference in quality is decided, not even that of mla (" in head.sentence
    assert "the interval holds 0" in head.sentence


def test_a_missing_variant_and_a_broken_one_say_so() -> None:
    lost = r.Outcome(status="crash", reason="no kernel")
    records = [
        x
        for x in made.attention_suite(1, ("mha", "gqa", "mla"))
        if not (x.trial.name.startswith("train-") and x.trial.name.endswith("-mla"))
    ]
    records += [made.generate("nsa", outcome=lost)]
    found = matrix(studies(rows(records))[0], trainings(costs()))
    assert cell(found, "training tokens/s", "", "mla").title == "no such row"
    broken = cell(found, "decode tokens/s", "batch 1,", "nsa")
    assert (broken.text, broken.title, broken.state) == ("crash", "no kernel", "failed")


def test_a_suite_half_run_answers_at_the_context_that_most_variants_have() -> None:
    records = [
        x
        for x in made.attention_suite(1, ("mha", "gqa", "mla"))
        if x.trial.name != "train-16384-mla"
    ]
    found = matrix(studies(rows(records))[0], trainings(costs()))
    assert cell(found, "training tokens/s", "length 4,096", "mla").text


def test_the_study_that_was_also_decoded_stands_before_a_larger_one() -> None:
    decoded = made.attention_suite(1, ("mha", "gqa"))
    larger = [made.pretrain(name, 4096, preset="3B-h16") for name in ("mha", "gqa")]
    assert [study.size for study in studies(rows([*larger, *decoded]))] == [made.MODEL, "3B-h16"]


@pytest.mark.parametrize(
    ("profile", "rounds", "compute", "decides"),
    [
        ("quick", (0, 1, 2), "bf16", True),
        ("quick", (3, 4, 5), "bf16", False),
        ("quick", (0, 1, 2), "float32", False),
        ("smoke", (0, 1, 2), "bf16", False),
    ],
    ids=["pairs", "no common round", "another precision", "smoke"],
)
def test_a_study_that_decides_stands_before_a_larger_one_with_more_points(
    profile: str, rounds: tuple[int, ...], compute: str, decides: bool
) -> None:
    how = {"protocol": {"profile": profile, "trials": 3}}
    three = [made.pretrain("mha", 4096, i, **how) for i in (0, 1, 2)]
    three += [made.pretrain("gqa", 4096, i, compute=compute, **how) for i in rounds]
    larger = [
        made.pretrain(name, context, preset="3B-h16")
        for name in ("mha", "gqa")
        for context in (4096, 16384)
    ]
    assert (studies(rows([*larger, *three]))[0].size == made.MODEL) == decides


def test_smoke_rows_are_shown_and_never_decided() -> None:
    smoke = {"profile": "smoke", "trials": 3}
    names = ("mha", "sliding")
    records = [made.generate(name, i, protocol=smoke) for i in range(3) for name in names]
    found = matrix(studies(rows(records))[0], trainings(costs()))
    one = cell(found, "decode tokens/s", "batch 32", "sliding")
    assert one.state == "undecided"
    assert "never ranked" in one.title


def test_the_sentence_names_the_largest_decided_effects_with_interval_and_condition() -> None:
    quality = trainings(learned())
    head = study_headline(costs().rows(), "What?", shown(), quality)
    assert head.sentence.startswith("Beside mha at 30M-h16: nsa trains 1.16 [1.1")
    assert "times as fast (length 16,384); sliding decodes 1.41 [1." in head.sentence
    assert "(batch 32, 16,384 tokens); sliding keeps 1/256 of the cache; " in head.sentence
    assert "sliding takes +0.0400 [+0.0" in head.sentence
    assert "bits per byte (30M-h16, 0.42 tokens a parameter, 3 seeds)." in head.sentence
    assert head.hedge == ""
    assert largest(shown(), "no such metric") is None


def test_the_sentence_hedges_as_long_as_nothing_is_decided() -> None:
    head = study_headline(costs(1).rows(), "", shown(1), trainings(learned(1)))
    assert "so far nsa trains 1.17 times as fast" in head.sentence
    assert "no difference in quality is decided (30M-h16, 0.42" in head.sentence
    assert "one seed" in head.sentence
    assert head.hedge.startswith("Not decided: 1 of the three pairs")
    nothing = study_headline(costs(1).rows(), "", shown(1), trainings(costs(1)))
    assert nothing.sentence.endswith("what they buy in quality is not measured.")


def test_what_is_decided_at_another_point_stands_before_what_is_not() -> None:
    """Training was repeated at 4,096 tokens only; the matrix shows 16,384."""
    names = ("mha", "gqa", "nsa")
    once = [made.pretrain(name, 16384) for name in names]
    study = studies(rows([*(made.pretrain(n, 4096, i) for i in range(3) for n in names), *once]))[0]
    head = study_headline(study.rows(), "", matrix(study, trainings(study)), trainings(study))
    decided, so_far = head.sentence.removeprefix("Beside mha at 30M-h16: ").split("; ")[:2]
    assert decided.startswith("nsa trains 1.0")
    assert decided.endswith("times as fast (length 4,096)")
    assert so_far == "so far nsa trains 1.17 times as fast (length 16,384)"
    assert head.hedge.startswith("Not decided where it says so far: 1 of the three pairs")


def test_another_precision_or_batch_at_another_point_is_not_told_with_it() -> None:
    names = ("mha", "nsa")
    once = [made.pretrain(name, 16384) for name in names]
    other = [made.pretrain(n, 4096, i, compute="float32") for i in range(3) for n in names]
    study = studies(rows([*other, *once]))[0]
    head = study_headline(study.rows(), "", matrix(study, trainings(study)), trainings(study))
    assert "length 4,096" not in head.sentence
    assert "so far nsa trains 1.17 times as fast (length 16,384)" in head.sentence


def test_of_what_is_never_ranked_the_sentence_states_no_factor_but_the_reason() -> None:
    smoke = {"profile": "smoke", "trials": None}
    records = [made.pretrain(n, 4096, i, protocol=smoke) for i in range(3) for n in ("mha", "nsa")]
    study = studies(rows(records))[0]
    head = study_headline(study.rows(), "", matrix(study, trainings(study)), trainings(study))
    reason = "speed of training is not compared (train-4096-mha is a smoke run, which is never"
    assert reason in head.sentence
    assert "times as fast" not in head.sentence
    assert head.hedge == ""


def position(name: str, n: int, suite: str = "position", **changes: Any) -> r.Record:
    """One encoding's training in a suite, as its n-th record; `position` ran last."""
    record = made.in_suite(made.pretrain("gqa", 4096, position=name, **changes), suite, n)
    day = "2026-01-02" if suite == "attention" else "2026-01-03"
    return record.model_copy(update={"started_at": day + record.started_at[10:]})


def test_a_study_of_positions_names_the_kernels_and_finds_its_rotary_rows() -> None:
    """Those were measured once, for the suite of attentions; nothing else is taken from it."""
    kernels = {"rope": "cudnn", "alibi": "flex", "none": "cudnn"}
    at = {name: {"resolved": {"attention": kernel}} for name, kernel in kernels.items()}
    elsewhere = position("rope", 9, "attention")
    machine = elsewhere.machine.model_copy(update={"name": "another"})
    records = [
        position("rope", 0, "attention", **at["rope"]),
        made.in_suite(made.pretrain("gqa", 16384), "attention", 1),
        made.in_suite(made.pretrain("mha", 4096), "attention", 2),
        position("alibi", 3, **at["alibi"]),
        position("none", 4, **at["none"]),
        elsewhere.model_copy(update={"machine": machine, "env_id": "0" * 64}),
    ]
    shown_rows = rows(records)
    assert len(shown_rows) == len(records)
    main = rows_of_suite(shown_rows, records, records[4])
    assert {id(row.record) for row in main} == {id(records[i]) for i in (0, 3, 4)}
    found = studies_of(main, shown_rows)
    assert found is not None
    positions = found.sections[0].matrix
    assert positions.study.baseline == "rope"
    told = {name: cell(positions, "kernel", "training", name).text for name in kernels}
    assert told == kernels
    assert not [ask for ask in shown().asks if ask.head == "kernel"]


def test_what_another_suite_has_measured_again_stays_in_the_suite_that_measured_it(
    tmp_path: Path,
) -> None:
    """Else the suite would fall back to what an older version of a library gave."""
    old = position("rope", 0, "attention").model_copy(update={"env_id": "0" * 64})
    mine = [position("rope", 1, "attention"), position("alibi", 2, "attention")]
    again = position("rope", 3)
    records = [old, *mine, again]
    main = rows_of_suite(rows(records), records, mine[1])
    assert {id(row.record) for row in main} == {id(record) for record in (old, mine[1], again)}
    found = studies(main)[0].at("rope", "pretrain", main[0].point)
    assert found is not None
    assert found.record is again
    whole, path = Results(tuple(records)), tmp_path / "attention.jsonl"
    path.write_bytes(export(main, "jsonl", whole.repeated(main, "attention")))
    read = load(path)
    names = [row.name for row in of_suite(read.rows(), read.records, "attention")]
    assert names == [row.name for row in main], "exported, it stays so"


def test_a_glance_under_another_suite_is_none_of_a_suites_rows() -> None:
    lost = position("rope", 0, "attention")
    lost = lost.model_copy(update={"points": (), "outcome": r.Outcome(status="crash", reason="x")})
    glance = position("rope", 1, "scratch", protocol={"profile": "smoke", "trials": None})
    records = [lost, position("alibi", 2, "attention"), glance]
    main = of_suite(rows(records), records, "attention")
    assert {row.record.trial.suite for row in main} == {"attention"}


def test_what_failed_a_check_is_shown_and_no_sentence_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = studies(rows(made.attention_suite()))[0]
    fast = largest(matrix(study, trainings(study)), "train_tokens_per_s")
    assert fast is not None
    assert fast.name == "nsa"
    failed = property(lambda row: "sees later tokens" if "nsa" in row.name else "")
    monkeypatch.setattr(Row, "unsound", failed)
    shown = matrix(study, trainings(study))
    next_one = largest(shown, "train_tokens_per_s")
    assert next_one is not None
    assert next_one.name != "nsa"
    cells = [cell for ask in shown.asks for name, cell in shown.column(ask) if name == "nsa"]
    assert "sees later tokens" in {cell.why for cell in cells}


def test_the_encoding_called_none_is_not_read_as_nobody() -> None:
    fast = position("none", 1)
    fast = fast.model_copy(
        update={"points": (_timed(fast, made.pretrain("sliding", 4096).points[0]),)}
    )
    study = studies(rows([position("rope", 0), fast]))[0]
    head = study_headline(study.rows(), "", matrix(study, trainings(study)), trainings(study))
    assert "Beside rope at 30M-h16: so far no encoding trains 1." in head.sentence


def test_the_first_trial_of_a_suite_is_set_beside_its_sisters_baseline() -> None:
    records = [position("rope", 0, "attention"), position("alibi", 1)]
    assert "Beside rope at 30M-h16: " in page(Results(tuple(records)))


def test_a_page_that_is_cut_keeps_what_it_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "MAX_ROWS", 3)
    others = [made.in_suite(made.pretrain(n, 16384), "attention", 5) for n in ("mha", "nsa")]
    named = [position("rope", 0, "attention"), *(position(n, 1) for n in ("alibi", "none"))]
    text = page(Results((*named, *others)))
    assert "Beside rope at 30M-h16: " in text
    assert "2 rows are not shown, those first that nothing else here leads to" in text


def test_published_rows_that_are_left_out_are_not_told_as_the_readers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who exports a store finds none of them there."""
    monkeypatch.setattr(html, "MAX_ROWS", 2)
    mine = [position(n, i) for i, n in enumerate(("rope", "alibi", "none"))]
    published = [made.pretrain(n, 16384) for n in ("mha", "nsa")]
    text = page(Results(tuple(mine)), beside=Results(tuple(published)))
    assert "1 rows are not shown, those first that nothing else here leads to" in text
    assert "2 published rows are not shown here." in text


def test_every_link_of_a_page_that_is_cut_leads_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawings go first, then rows that stand in no table of a study or beside the paper's."""
    more = [made.in_suite(made.pretrain("mha", 64 * i), "attention", 99 + i) for i in range(1, 30)]
    records = Results((*more, *made.attention_suite()))  # newer, and shorter than a table shows
    whole = page(records)
    monkeypatch.setattr(html, "MAX_BYTES", len(whole.encode()) * 3 // 4)
    cut = page(records)
    assert "rows are not shown, those first that nothing else here leads to" in cut
    details, links = (re.findall(f'{x}(r-[^"]+)"', cut) for x in ('<details id="', 'href="#'))
    assert len(details) < whole.count('<details id="')
    assert set(links) == set(details)


def test_rows_of_other_experiments_move_no_sentence() -> None:
    """Neither a newer trial of a variant that the suite has, nor a variant of another suite's."""
    suite = made.attention_suite()
    trial = made.pretrain("mha", 16384).model_copy(
        update={"started_at": "2026-01-02T00:30:00+00:00", "env_id": "0" * 64}
    )
    scratch = trial.model_copy(
        update={"trial": trial.trial.model_copy(update={"suite": "scratch"})}
    )
    newest = max(suite, key=lambda record: record.started_at)
    with_it, without = (
        rows_of_suite(rows(records), records, newest) for records in ([*suite, scratch], suite)
    )
    assert [row.name for row in with_it] == [row.name for row in without]
    assert all(row.record.trial.suite == "attention" for row in with_it)


def of(record: r.Record, card: str, source: str) -> r.Record:
    """The record as another card and another version of the code would have made it."""
    machine = record.machine.model_copy(update={"card": card})
    software = record.software | {"source": source}
    return record.model_copy(update={"machine": machine, "software": software})


def test_several_cards_and_versions_of_the_code_are_told() -> None:
    records = [
        of(make(name, 4096 if make is made.pretrain else 0), name, name)
        for make in (made.pretrain, made.generate)
        for name in ("mha", "gqa")
    ]
    assert "rows from 2 cards and 2 versions of the code" in page(Results(tuple(records)))
    found = matrix(studies(rows(records))[0], trainings(costs()))
    told = cell(found, "training tokens/s", "length 4,096", "gqa").title
    assert "another card and version of this tool's code than the baseline's" in told
    assert "another" not in cell(found, "cache per token", "batch 1", "gqa").title  # a count
    sentence = study_headline(rows(records), "", found, trainings(costs())).sentence
    assert "(length 4,096; another card and version" in sentence


def test_the_small_print_of_quality_tells_other_cards_and_code() -> None:
    records = [
        of(made.trained(name, seed), name, name) for seed in range(3) for name in ("mha", "gqa")
    ]
    found = matrix(costs(), trainings(studies(rows(records))[0]))
    assert "another card and version" in cell(found, "bits per byte", "", "gqa").title


def test_one_card_and_version_of_the_code_are_not_told() -> None:
    suite = made.attention_suite()
    assert "rows from" not in page(Results(tuple(suite)))
    found = matrix(studies(rows(suite))[0], trainings(costs()))
    assert "another" not in cell(found, "training tokens/s", "length 16,384", "gqa").title


def test_downloads_hold_the_first_screens_study_before_newer_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suite = made.attention_suite(1)
    study = studies(rows(suite))[0]
    monkeypatch.setattr("efficientllm.report.downloads.MAX_ROWS", len(study.rows()))
    newer = [
        made.in_suite(made.pretrain(n, 4096, preset="0.5B-h16"), "attention", 59)
        for n in ("mha", "gqa")
    ]
    every = rows([*suite, *newer])
    found = studies_of(every, every)
    text = downloads(every, found, newer[-1])["csv"]
    lead = found.sections[0].matrix.study if found else study
    assert all(row.name in text for row in lead.rows())
    assert len(text.splitlines()) - 1 < len(every)


def test_equal_variants_are_said_to_be_equal() -> None:
    records = [made.pretrain(name, 4096, i) for name in ("mha", "gqa") for i in range(3)]
    steps = [made.pretrain("mha", 4096, i).points for i in range(3)]
    records = [
        x.model_copy(update={"points": (_timed(x, steps[i % 3][0]),)})
        for i, x in enumerate(records)
    ]
    study = studies(rows(records))[0]
    head = study_headline(study.rows(), "", matrix(study, trainings(study)), trainings(study))
    assert "no variant trains measurably faster or slower (length 4,096)" in head.sentence


def test_a_training_in_another_precision_has_no_ratio_and_says_why() -> None:
    table = [made.pretrain("mha", 4096, i) for i in range(3)]
    table += [made.pretrain("gqa", 4096, i, compute="float32") for i in range(3)]
    study = studies(rows(table))[0]
    found = matrix(study, trainings(study))
    one = cell(found, "training tokens/s", "", "gqa")
    why = "training precision bf16 on float32 weights against float32"
    assert (one.ratio, one.state, one.line, one.against) == ("not compared", "undecided", None, why)
    assert one.title.startswith(f"not compared: {why}; 95 %")
    sentence = study_headline(study.rows(), "", found, trainings(study)).sentence
    assert f"speed of training is not compared ({why})" in sentence
    assert "times as fast" not in sentence


def test_a_row_in_the_baselines_precision_comes_first() -> None:
    records = [made.pretrain("mha", 4096, compute="float32")]
    records += [made.pretrain("gqa", 4096, compute=c) for c in ("float32", "bf16")]
    records = [made.in_suite(record, "attention", n) for n, record in enumerate(records)]
    (study,) = studies(rows(records))
    row = study.like_baseline("gqa", "pretrain", "b8 c4096")
    assert row is not None
    assert training_precision(row) == "float32", "the newer one is of another precision"


def test_a_chart_of_costs_leaves_out_another_precision_and_says_whom() -> None:
    computes = {("mha", 4096): "bf16"}
    study = studies(
        rows(
            made.pretrain(name, length, i, compute=computes.get((name, length), "float32"))
            for name in ("mha", "gqa")
            for length in (4096, 16384)
            for i in range(3)
        )
    )[0]
    (family,) = families(study)
    assert sorted(family.curves["gqa"]) == [16384]
    assert family.left_out == (
        "gqa is left out at 4,096 tokens: training precision bf16 on float32 weights against"
        " float32.",
    )
    (chart,) = cost_charts(study)
    assert chart.notes[-1] == family.left_out[0]


def _timed(record: r.Record, as_: r.PointResult) -> r.PointResult:
    return record.points[0].model_copy(update={"windows": as_.windows})


def test_costs_are_seconds_per_token_at_each_context_and_equal_work() -> None:
    found = {(f.what, f.where): f.curves for f in families(costs())}
    assert list(found) == [
        ("Decode", "batch 1"),
        ("Decode", "batch 32"),
        ("Prefill", "batch 1"),
        ("Prefill", "batch 32"),
        ("Training", "32,768 tokens a step"),
    ]
    decode = found["Decode", "batch 32"]
    assert sorted(decode["gqa"]) == [4096, 16384, 65536]
    assert sorted(decode["mha"]) == [4096, 16384], "it ran out of memory beyond"
    assert decode["gqa"][65536].value == pytest.approx(made.tpot("gqa", 32, 65536), rel=1e-5)
    training = found["Training", "32,768 tokens a step"]["nsa"][16384]
    assert training.value == pytest.approx(1e-9 * (9000 + 0.55 * 4096), rel=1e-5)
    assert training.low is not None
    assert training.low < training.value < (training.high or 0)


def test_crossings_stand_in_words_below_their_chart() -> None:
    charts = {chart.title: chart for chart in cost_charts(costs())}
    told = charts["Decode, batch 32"].notes
    both = "mla passes gqa and nsa passes gqa between 16,384 and 65,536 tokens"
    assert f"{both} (decode, batch 32)." in told
    assert any(note.startswith("Undecided between 4,096 and 16,384") for note in told)
    assert charts["Decode, batch 1"].notes == (
        "No two variants change places between the contexts measured.",
    )
    one_run = {chart.title: chart for chart in cost_charts(costs(1))}["Decode, batch 32"]
    assert not any(" passes gqa between" in note for note in one_run.notes)
    assert any("fewer than three trials" in note for note in one_run.notes)


def test_crossings_that_say_the_same_are_one_line() -> None:
    """Six variants have fifteen pairs, and all may be undecided for one reason."""
    turns = [
        Crossing("mla", "mha", 4096, 16384, decided=False, why="fewer than three trials"),
        Crossing("gqa", "mqa", 4096, 16384, decided=False, why="fewer than three trials"),
        Crossing("nsa", "mha", 4096, 16384, decided=False, why="their intervals overlap"),
        Crossing("nsa", "gqa", 16384, 65536, decided=True),
        Crossing("nsa", "mqa", 16384, 65536, decided=True),
        Crossing("nsa", "mla", 16384, 65536, decided=True),
    ]
    family = Family("Decode", "batch 1", "ms", {}, ())
    assert _told(turns, family) == (
        "Undecided between 4,096 and 16,384 tokens whether mla passes mha and gqa passes mqa:"
        " fewer than three trials.",
        "Undecided between 4,096 and 16,384 tokens whether nsa passes mha: their intervals"
        " overlap.",
        "nsa passes gqa, nsa passes mqa and nsa passes mla between 16,384 and 65,536 tokens"
        " (decode, batch 1).",
    )
    many = [x._replace(why=str(n)) for n in range(9) for x in turns[:2]]
    assert _told(many, family)[-1] == "6 more are not listed."


def test_a_variant_keeps_its_colour_where_others_are_missing_and_none_is_drawn_without() -> None:
    table, variants = trainings(learned()).rows, list(made.VARIANTS)
    few = {name: table[name] for name in ("mqa", "nsa")}
    chart = learning_chart(few, variants)
    third, sixth, first = PALETTE[2], PALETTE[5], PALETTE[0]
    assert third in chart.svg
    assert sixth in chart.svg
    assert first not in chart.svg
    many = [*(f"v{i}" for i in range(9)), "mqa", "nsa"]
    chart = learning_chart(few, many)
    assert chart.notes[-1] == "nsa is left out: no colour is left for it."
    assert sixth not in chart.svg


def test_what_bars_stand_for_is_said() -> None:
    one_run = "Bars of fewer than three trials are within one run."
    assert all(one_run in chart.notes for chart in cost_charts(costs(1)))
    assert not any(one_run in chart.notes for chart in cost_charts(costs(3)))


def test_one_context_gives_no_chart_and_the_reason() -> None:
    (chart,) = cost_charts(studies(rows([*(_decoded_once(n) for n in ("mha", "gqa"))]))[0])
    assert chart.svg == ""
    assert chart.reason == "every batch was measured at one context only"


def _decoded_once(name: str) -> r.Record:
    return samples.record(samples.case(name=name, model=made.model(name)))


def test_training_is_paid_in_joules_and_those_without_are_left_out_by_name() -> None:
    table = trainings(learned()).rows
    cost = spent(table)
    view = table["mha"].views[0]
    assert cost.unit == "joules"
    assert len(cost.notes) == 1
    assert cost.notes[0].startswith("Joules of the board")
    assert cost.per_token(view) == pytest.approx(500 * 9.256e-6, rel=1e-4)
    (blind,) = rows([made.trained("gqa", s, readings=(), notes={"nvml": "none"}) for s in (0, 1)])
    partly = spent(table | {"gqa": blind})
    assert (partly.unit, list(partly.rows)) == ("joules", [n for n in table if n != "gqa"])
    assert partly.notes[1].startswith("gqa is left out: no joules of seed 0: none")
    chart = learning_chart(table | {"gqa": blind}, list(table))
    assert chart.notes == partly.notes


def test_a_seed_without_joules_takes_what_a_token_took_its_sisters() -> None:
    table = trainings(learned()).rows
    blind = {"readings": (), "notes": {"nvml": "none"}}
    seeds = [made.trained("gqa", s, **(blind if s == 1 else {})) for s in range(3)]
    (mixed,) = rows(seeds)
    cost = spent(table | {"gqa": mixed})
    assert list(cost.rows) == list(table)
    assert cost.notes[1:] == ("gqa: seed 1 with the joules a token took the others (none).",)
    first, second, third = (cost.per_token(view) for view in mixed.views)
    assert first > 0
    assert second == pytest.approx((first + third) / 2)
    assert "row: gqa" in learning_chart(table | {"gqa": mixed}, list(table)).svg


def test_training_is_paid_in_seconds_where_fewer_than_two_have_joules() -> None:
    table = trainings(learned()).rows
    (blind,) = rows([made.trained("gqa", readings=(), notes={"nvml": "no driver"})])
    seconds = spent({"mha": table["mha"], "gqa": blind})
    assert (seconds.unit, list(seconds.rows)) == ("seconds", ["mha", "gqa"])
    assert "Seconds, not joules: gqa: no joules of seed 0: no driver" in seconds.notes[0]
    assert seconds.per_token(table["mha"].views[0]) == pytest.approx(9.256e-6, rel=1e-4)
    assert spent({"mha": table["mha"]}).unit == "joules"


def test_a_training_without_a_window_took_no_seconds_that_anybody_knows() -> None:
    """As after a resumption at its last step: all of the curve is there."""
    without = made.trained("gqa", 1, readings=())
    (point,) = without.points
    bare = {"points": (point.model_copy(update={"windows": ()}),)}
    seeds = [made.trained("gqa", 0, readings=()), without.model_copy(update=bare)]
    (mixed,), (none,) = rows(seeds), rows(seeds[1:])
    cost = spent({"gqa": mixed})
    assert cost.unit == "seconds"
    reason = "no step window was measured"
    assert cost.notes[1:] == (f"gqa: seed 1 with the seconds a token took the others ({reason}).",)
    first, second = (cost.per_token(view) for view in mixed.views)
    assert second == first > 0
    (other,) = rows([made.trained("mha", readings=())])
    cost = spent({"mha": other, "gqa": none})
    assert list(cost.rows) == ["mha"]
    assert cost.notes[1:] == (f"gqa is left out: no seconds of seed 1: {reason}.",)
    assert learning_chart({"gqa": none}, ["gqa"]).reason == reason


def test_invalid_joules_are_on_no_axis() -> None:
    table = trainings(learned()).rows
    readings = (samples.counter(500.0), samples.power(250.0))  # they differ by half
    (wrong,) = rows([made.trained("gqa", readings=readings)])
    assert wrong.cell("j_per_token").invalid
    found = spent(table | {"gqa": wrong})
    assert found.notes[1] == "gqa is left out: its energy is invalid (ENERGY_DISAGREE)."


def test_curves_stand_against_tokens_too_also_of_those_without_joules() -> None:
    table = trainings(learned()).rows
    blind = rows([made.trained("gqa", seed, readings=()) for seed in range(3)])[0]
    chart = token_chart(table | {"gqa": blind}, list(table))
    assert chart.notes == ()
    assert "million tokens" in chart.svg
    assert {name for name in table if f"row: {name}" in chart.svg} == set(table)
    assert "no training was scored" in token_chart({}, []).reason


def test_what_failed_a_check_is_dashed_in_the_learning_chart_and_named_below(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows_of = trainings(learned()).rows
    plain = learning_chart(rows_of, list(made.VARIANTS))
    assert "stroke-dasharray" not in plain.svg
    assert not [note for note in plain.notes if "dashed" in note]
    failed = property(lambda row: "sees later tokens" if "nsa" in row.name else "")
    monkeypatch.setattr(Row, "unsound", failed)
    chart = learning_chart(rows_of, list(made.VARIANTS))
    assert "nsa is dashed: sees later tokens." in chart.notes
    assert chart.svg.count('stroke-dasharray="5,4"') == 4, "its three seeds and their mean"


def test_the_learning_chart_has_seeds_and_stays_small() -> None:
    chart = learning_chart(trainings(learned()).rows, list(made.VARIANTS))
    assert "<svg" in chart.svg
    long = tuple(
        r.CurvePoint(step=i, tokens=65536.0 * i, nll=2e4 / i, bytes=20000) for i in range(1, 2001)
    )
    many = rows([made.trained(n, s, curve=long) for n in ("mha", "mla") for s in range(3)])
    large = learning_chart({r.name: r for r in many}, [r.name for r in many])
    assert len(large.svg) < 40_000
    assert MAX_CURVE < 100
    (empty,) = rows([made.trained("mha", curve=())])
    bare = learning_chart({"mha": empty}, ["mha"])
    assert bare.reason == "no training was scored along the way (quality.curve)"


def test_the_cache_chart_rings_what_is_surely_on_the_front() -> None:
    found = trainings(learned())
    chart = cache_chart(found.rows, list(found.differences), list(found.rows))
    # mqa keeps least, nsa is better for little more, mla is better than all: three rings
    assert chart.svg.count('stroke-width="2"') >= len(made.VARIANTS)
    assert _rings(chart.svg) == 3
    one = trainings(learned(1))
    assert _rings(cache_chart(one.rows, list(one.differences), list(one.rows)).svg) == 1, (
        "the least cache alone"
    )
    assert "two trained variants" in cache_chart({}, [], []).reason


def test_a_row_that_is_never_ranked_gets_no_ring_and_who_has_no_cache_is_named() -> None:
    found = trainings(learned())
    smoke = {"protocol": {"profile": "smoke", "trials": 3}}
    records = [made.trained("mqa", seed, **smoke) for seed in range(3)]
    table = found.rows | {"mqa": rows(records)[0]}
    assert _rings(cache_chart(table, list(found.differences), list(found.rows)).svg) == 2, (
        "mqa keeps the least"
    )
    attention = {"kind": "custom", "file": "x.py", "name": "Mine", "sha256": "a" * 64}
    shape = samples.build().shape | {"custom": "Mine"}  # type: ignore[operator]
    of = samples.pretrain(model=made.model() | {"attention": attention})
    (own,) = rows([samples.record(of, build=samples.build(shape=shape))])
    notes = cache_chart(
        found.rows | {"Mine": own}, list(found.differences), [*found.rows, "Mine"]
    ).notes
    assert notes[1] == "Mine is left out: no formula gives its cache."


def _rings(svg: str) -> int:
    return len(
        re.findall(
            r'stroke="currentColor"[^>]*aria-label|aria-label[^>]*stroke="currentColor"', svg
        )
    )


def test_the_whole_page_keeps_the_laws_of_every_page() -> None:
    structure = Structure(whole())
    targets = {attrs["id"] for tag, attrs in structure.elements if "id" in attrs}
    for tag, attrs in structure.elements:
        assert "style" not in attrs
        assert tag not in ("link", "img", "form")
        if tag == "a":
            assert (attrs["href"] or "")[1:] in targets
    assert len(whole().encode()) < 1_500_000


def test_the_first_screen_lends_quality_from_the_small_trainings_and_shows_them() -> None:
    lead = whole().split("What is invalid")[0]
    assert "Each variant beside the baseline" in lead
    assert "30M-h16, 0.42 tokens a parameter" in lead
    assert "-0.0040" in lead
    assert 'class="figures"' not in lead
    assert "Attention at 30M-h16, suite attention-small" in whole()
    assert "Which differences in quality are real" in whole()


def test_quality_is_lent_by_the_machines_that_decide_it_and_they_are_named() -> None:
    """One seed of the machine itself, three of another class: the three speak, under their name."""
    main = rows(made.attention_suite(1))
    once = rows(made.trained(name, bits=1.1) for name in ("mha", "gqa"))
    machine = samples.MACHINE.model_copy(update={"name": "other", "device": "NVIDIA Other 80GB"})
    seeds = [made.trained(name, seed) for name in ("mha", "mla") for seed in range(3)]
    moved = rows(r.model_copy(update={"machine": machine, "env_id": "0" * 64}) for r in seeds)
    found = studies_of(main, [*main, *once, *moved])
    assert found is not None
    assert list(found.quality.rows) == ["mha", "mla"]
    assert found.quality.told == "30M-h16, 0.42 tokens a parameter, on Other 80GB"
    assert found.sections[-1].title.endswith("on Other 80GB")
    alone = studies_of(main, [*main, *once])
    assert alone is not None
    assert alone.quality.told == "30M-h16, 0.42 tokens a parameter"
    assert "on" not in alone.sections[-1].title.split()


def moved(records: list[r.Record]) -> list[Row]:
    """The same on other machines."""
    machine = samples.MACHINE.model_copy(update={"name": "other", "device": "NVIDIA Other 80GB"})
    return rows(x.model_copy(update={"machine": machine, "env_id": "0" * 64}) for x in records)


def lent(*others: Row) -> Trainings:
    main = rows(made.attention_suite(1))
    found = studies_of(main, [*main, *others])
    assert found is not None
    return found.quality


def test_what_decides_is_lent_before_what_only_might_have() -> None:
    decided = rows(made.trained(n, i) for n in ("mha", "mla") for i in range(3))
    scattered = {"mha": (1.4, 1.6, 1.5), "gqa": (1.5, 1.45, 1.6), "mqa": (1.6, 1.5, 1.42)}
    undecided = moved(
        [made.trained(n, i, bits=bits[i]) for n, bits in scattered.items() for i in range(3)]
    )
    assert list(lent(*decided, *undecided).rows) == ["mha", "mla"]
    assert list(lent(*undecided).rows) == ["mha", "gqa", "mqa"]
    once = rows(made.trained(n) for n in ("mha", "mla"))
    assert list(lent(*once, *undecided).rows) == ["mha", "gqa", "mqa"], "they have the seeds"
    three = moved([made.trained(n) for n in ("mha", "mla", "gqa")])
    assert len(lent(*once, *three).rows) == 3, "of single seeds that of most variants"
    same = moved([made.trained(n) for n in ("mha", "mla")])
    assert lent(*same, *once).elsewhere == "", "then the machine's own"


def test_what_lends_has_a_section_however_many_studies_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(section, "MAX_STUDIES", 2)
    larger = [
        made.pretrain(n, 4096, preset=p) for p in ("0.5B-h16", "1.5B-h16") for n in ("mha", "gqa")
    ]
    small = [made.trained(n) for n in ("mha", "gqa")]
    main = [*rows(larger), *rows(small)]
    found = studies_of(main, main)
    assert found is not None
    assert found.quality.size == "30M-h16"
    assert len(found.sections) == 2
    assert "30M-h16" in {s.title.partition(" at ")[2].partition(",")[0] for s in found.sections}


def test_quality_is_lent_by_rows_that_a_page_of_many_does_not_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main = made.attention_suite(1)
    monkeypatch.setattr(html, "MAX_ROWS", len(rows(main)))
    text = page(Results((*made.learning_suite(), *main)))
    assert "-0.0040" in text.split("What is invalid")[0]


def test_a_study_that_trained_by_two_recipes_is_lent_no_quality() -> None:
    """Its own bits per byte are other numbers than those of the published trainings."""
    computes = {"mha": "bf16", "gqa": "float32"}
    main = rows(made.trained(name, precision={"compute": c}) for name, c in computes.items())
    found = studies_of(main, [*rows(made.learning_suite()), *main])
    assert found is not None
    assert list(found.quality.rows) == ["mha"]
    one = cell(found.sections[0].matrix, "bits per byte", "", "gqa")
    assert (one.text, one.state) == ("not compared", "none")
    head = study_headline(main, "", found.sections[0].matrix, found.quality)
    assert "no other was trained and scored as it was" in head.sentence


def test_other_pages_stay_as_they_were() -> None:
    text = page(Results(pair()))
    assert 'class="figures"' in text
    assert "beside the baseline" not in text


def test_the_best_rate_of_what_failed_a_check_says_so_in_the_sweeps_table() -> None:
    table = rows(made.trained("mla", lr=lr, bits=bits) for lr, bits in ((1e-3, 1.5), (2e-3, 1.4)))
    failed = Flag("CUSTOM_CHECK_FAILED", "warn", "all", "causality")
    for row in table:
        row.__dict__["flags"] = (failed, *row.flags)
    found = studies_of([*rows(made.trained(n) for n in ("mha", "gqa")), *table], table)
    assert found is not None
    (swept,) = found.sections[0].sweeps
    assert [flag.code for flag in swept.flags] == ["CUSTOM_CHECK_FAILED", "EDGE_OF_SWEEP"]


def test_a_sweep_is_a_table_with_its_edge_flagged() -> None:
    extra = [
        made.in_suite(made.trained("mla", s, lr=4e-3, bits=1.4), "attention-small", 90 + s)
        for s in range(3)
    ]
    text = page(Results((*made.learning_suite(), *extra)))
    assert "Learning rates tried" in text
    assert "EDGE_OF_SWEEP" in text
    assert "0.002, 0.004" in text
    assert "to choose among: mha 1, gqa 1, mqa 1, sliding 1, mla 2, nsa 1; unevenly" in text


def test_exports_name_the_variant_and_the_differences() -> None:
    table = rows([*made.learning_suite(), *made.attention_suite(1)])
    csv = export(table, "csv").decode().splitlines()
    assert "variant" in csv[0].split(",")
    assert ",nsa," in "\n".join(csv)
    text = export(table, "md").decode()
    assert "### Differences in quality: attention at 30M-h16" in text
    assert re.search(r"\| mla \| mha \| 3 \| -0\.0040 \\?\[.*\| better \|", text)
    assert "Differences in quality" not in export(rows(pair()), "md").decode()


def test_exports_and_the_page_tell_what_names_do_not() -> None:
    records = [
        x.model_copy(update={"trial": x.trial.model_copy(update={"name": "pretrain-one"})})
        for x in (made.pretrain("mha", 4096), made.pretrain("gqa", 4096, compute="float32"))
    ]
    table = rows(records)
    text = export(table, "md").decode()
    assert "| case | variant | precision | point | n |" in text
    assert "| gqa | float32 | b8 c4096 |" in text
    latex = export(table, "latex").decode()
    assert "case & variant & precision & point & $n$" in latex
    assert r"\begin{tabular}{llllr" in latex
    assert "& mha & bf16 on float32 weights & b8 c4096 &" in latex
    csv = export(table, "csv").decode().splitlines()
    assert "variant,precision" in csv[0]
    assert ",gqa,float32," in csv[2]
    named = export(rows(made.attention_suite(1)), "md").decode()
    assert "| case | point | n |" in named, "names say the variant, and the precision is one"
    html = page(Results(tuple(records)))
    assert "<td>gqa</td><td>float32</td>" in html


def test_cases_of_one_name_and_two_sizes_are_told_apart() -> None:
    """A suite run for one size at a time has no size in its names."""
    records = [made.pretrain("gqa", 4096, preset=preset) for preset in ("0.5B-h16", "1.5B-h16")]
    table = rows(records)
    assert {row.name for row in table} == {"train-4096-gqa"}
    assert "| case | size | point | n |" in export(table, "md").decode()
    csv = export(table, "csv").decode()
    assert ",0.5B-h16," in csv
    assert ",1.5B-h16," in csv
    html = page(Results(tuple(records)))
    assert "<td>0.5B-h16</td>" in html
    assert "<td>1.5B-h16</td>" in html
    one = export(table[:1], "md").decode()
    assert "| case | point | n |" in one
    assert told_apart(table) == ["train-4096-gqa 0.5B-h16", "train-4096-gqa 1.5B-h16"]
    assert told_apart(table[:1]) == ["train-4096-gqa"]
    memory = charts_of_rows(table)[0]
    for preset in ("0.5B-h16", "1.5B-h16"):
        assert f"train-4096-gqa {preset} b8 c4096" in memory.svg, "bars of two would be one bar"


def test_colours_that_repeat_are_said_to() -> None:
    many = [made.pretrain(a, n) for a in made.VARIANTS for n in (4096, 16384)]
    repeat = "More cases than colours: colours repeat."
    assert repeat in latency_energy(named(rows(many))).notes
    assert repeat not in latency_energy(named(rows(many[:10]))).notes


def test_one_case_under_two_softwares_has_two_labels() -> None:
    old, new = made.generate("mha"), made.generate("mha", 1, env_id="0" * 64)
    labels = told_apart(rows([old, new]))
    assert len(set(labels)) == 2
    assert all(text.startswith("decode-mha") for text in labels)


def test_the_formula_behind_the_cache_chart_is_the_measured_size() -> None:
    row = trainings(learned()).rows["mla"]
    shape = row.views[0].shape
    assert shape is not None
    assert cache_bytes(shape, 1024) / 1024 == 8 * (4 * 32 + 16) * 2


def test_the_first_screen_states_how_two_trainings_differ() -> None:
    def tuned(technique: str, **workload: object) -> r.Record:
        fields = {"kind": "finetune", "sequence_length": 1024, "batch": 4} | workload
        of = samples.case(name=f"finetune-{technique}", technique=technique, workload=fields)
        return samples.record(of, windows=[samples.training_window()])

    table = rows([tuned("full"), tuned("lora", precision={"compute": "float32"})])
    condition = headline(table, "").condition
    assert "Differs: training precision: bf16 on float32 weights -> float32. NVIDIA" in condition
    assert "Differs" not in headline(rows([tuned("full"), tuned("lora")]), "").condition


def test_a_pair_over_fewer_rounds_says_so_where_the_values_beside_it_tell_another_ratio() -> None:
    """Of a run that was stopped one variant has a seed more, and that one was slow and bad."""

    def seed(name: str, round_: int, unit_s: float, bits: float) -> r.Record:
        window = samples.training_window(64, 1024, unit_s=unit_s, units=36)
        return made.trained(name, round_, bits=bits, windows=[window])

    def cells(*records: r.Record) -> tuple[str, str]:
        study = studies(rows(records))[0]
        found = matrix(study, trainings(study))
        return (
            cell(found, "training tokens/s", "", "mla").ratio,
            cell(found, "bits per byte", "", "mla").ratio,
        )

    pair = [seed("mha", 0, 0.6, 1.5), seed("mla", 0, 0.6, 1.4)]
    assert cells(*pair, seed("mha", 1, 0.9, 1.7)) == (
        "x1.00 (1 of 2 rounds)",
        "-0.1000 (1 of 2 rounds)",
    )
    assert cells(*pair, seed("mha", 1, 0.6, 1.5)) == ("x1.00", "-0.1000")
