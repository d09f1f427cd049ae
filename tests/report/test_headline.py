"""The first sentence's surroundings: the machine's line, what is in doubt, what failed a check."""

from __future__ import annotations

from typing import Any

import pytest

from efficientllm import record as r
from efficientllm.analysis.study import studies, trainings
from efficientllm.analysis.table import Row, rows
from efficientllm.report.answer import study_headline
from efficientllm.report.headline import doubts_of, headline, machine_line
from efficientllm.report.matrix import Matrix, matrix
from tests import samples
from tests.report import architecture_samples as made
from tests.report.test_html import pair

INT8 = samples.case(name="generate-int8", technique="int8")
INT4 = samples.case(name="generate-int4", technique="int4")


def unmetered(reason: str, **changes: Any) -> r.Record:
    return samples.record(readings=(), notes={"nvml": reason}, **changes)


def about_energy(*records: r.Record) -> list[str]:
    return [doubt for doubt in doubts_of(rows(records)) if doubt.startswith("energy is not")]


def test_reasons_for_no_energy_that_differ_in_their_numbers_are_said_once() -> None:
    assert about_energy(
        unmetered("reading 3.5 was missed"),
        unmetered("reading 41 was missed", of=INT8),
        unmetered("no driver", of=INT4),
    ) == [
        "energy is not measured in 2 rows: reading 3.5 was missed",
        "energy is not measured: no driver",
    ]


def test_a_row_that_failed_is_no_row_without_energy_or_with_few_trials() -> None:
    failed = unmetered("no driver", outcome=r.Outcome(status="crash", reason="no kernel"))
    doubts = doubts_of(rows([failed, samples.record(INT8)]))
    assert doubts[0] == "generate-bf16 tiny b1 c1024: crash no kernel"
    assert doubts[1].startswith("1 rows rest on fewer than three trials")
    assert not about_energy(failed)


def test_a_failure_is_told_with_its_size_unless_its_name_says_it() -> None:
    lost = r.Outcome(status="crash", reason="no kernel")
    record = made.pretrain("mha", 4096, outcome=lost)
    assert doubts_of(rows([record]))[0] == "train-4096-mha 30M-h16 b8 c4096: crash no kernel"
    trial = record.trial.model_copy(update={"name": "train-30M-h16"})
    record = record.model_copy(update={"trial": trial})
    assert doubts_of(rows([record]))[0] == "train-30M-h16 b8 c4096: crash no kernel"


def test_of_many_failures_the_first_six_are_told() -> None:
    lost = r.Outcome(status="crash", reason="no kernel")
    lengths = [64 << i for i in range(8)]
    failed = [made.pretrain("mha", length, outcome=lost) for length in lengths]
    assert [doubt.split()[0] for doubt in doubts_of(rows(failed))] == [
        f"train-{length}-mha" for length in lengths[:6]
    ]


def test_what_is_invalid_stands_before_what_is_only_warned_of() -> None:
    unsettled = [w.model_copy(update={"converged": False}) for w in samples.generate_windows()]
    differing = (samples.counter(500.0), samples.power(250.0))
    warned = samples.record(windows=unsettled)
    invalid = samples.record(INT8, readings=differing)
    levels = {flag.code: flag.level for row in rows([warned, invalid]) for flag in row.flags}
    told = [d.split(":")[0] for d in doubts_of(rows([warned, invalid])) if d[0].isupper()]
    assert [levels[code] for code in told] == sorted(levels[code] for code in told)
    assert {levels[code] for code in told} == {"invalid", "warn"}


def test_the_line_of_the_machine_says_from_how_few_trials_and_whose_code_rows_come() -> None:
    whole = pair()
    assert "(3 trials a row)" in machine_line(rows(whole))
    assert "(1 trial a row)" in machine_line(rows(whole[:2]))
    uneven = machine_line(rows(whole[:-2:2] + whole[1:2]))
    assert "(1 to 2 trials a row)" in uneven
    assert "rows from" not in uneven
    software = samples.SOFTWARE | {"source": "a" * 12}
    other = samples.record(INT8, software=samples.SOFTWARE | {"source": "b" * 12})
    told = machine_line(rows([samples.record(software=software), other]))
    assert told.endswith("; rows from 2 versions of the code")


def failing(monkeypatch: pytest.MonkeyPatch, attention: str, rounds: int) -> Matrix:
    """A study's matrix in which one attention is not what it is called."""
    failed = property(lambda row: "sees later tokens" if attention in row.name else "")
    monkeypatch.setattr(Row, "unsound", failed)
    monkeypatch.setattr(Row, "ranked", property(lambda row: not row.unsound))
    study = studies(rows(made.attention_suite(rounds)))[0]
    return matrix(study, trainings(study))


@pytest.mark.parametrize("attention", ["mha", "nsa"])
def test_beside_an_attention_that_failed_a_check_every_cell_says_so(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = failing(monkeypatch, attention, 3)
    assert shown.study.baseline == "mha"
    compared = [
        (name, cell) for name, cells in shown.lines for cell in cells if cell.line is not None
    ]
    concerned = [cell for name, cell in compared if attention in (name, "mha")]
    assert {(cell.state, cell.why) for cell in concerned} == {("undecided", "sees later tokens")}
    others = {cell.why for name, cell in compared if attention not in (name, "mha")}
    assert "sees later tokens" not in others


@pytest.mark.parametrize("rounds", [1, 3])
def test_an_attention_that_failed_a_check_is_in_no_sentence(
    rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where something else is decided nor where it would only be the largest so far."""
    shown = failing(monkeypatch, "nsa", rounds)
    head = study_headline(shown.study.rows(), "", shown, trainings(shown.study))
    assert "nsa" not in head.sentence
    assert "sliding trains 1." in head.sentence


def test_an_invalid_value_is_shown_without_a_ratio() -> None:
    record = made.pretrain("nsa", 4096)
    (point,) = record.points
    compiled = tuple(w.model_copy(update={"recompiles": 1}) for w in point.windows)
    point = point.model_copy(update={"windows": compiled})
    spoiled = record.model_copy(update={"points": (point,)})
    study = studies(rows([made.pretrain("mha", 4096), spoiled]))[0]
    shown = matrix(study, trainings(study))
    (ask,) = [ask for ask in shown.asks if ask.key == "train_tokens_per_s"]
    cell = dict(shown.column(ask))["nsa"]
    assert (cell.ratio, cell.state, cell.line) == ("invalid", "undecided", None)
    assert cell.text


def test_two_smoke_rows_have_numbers_and_no_factor() -> None:
    smoke = {"profile": "smoke", "trials": None}
    table = rows([samples.record(of, protocol=smoke) for of in (samples.case(), INT8)])
    head = headline(table, "")
    assert head.sentence == (
        "The speed of int8 is not compared with that of bf16: generate-bf16 is a smoke run, which"
        " is never ranked."
    )
    assert head.hedge == ""
    assert {figure.change for figure in head.figures} == {""}
    assert head.figures[0].before
    ranked = headline(rows([samples.record(of) for of in (samples.case(), INT8)]), "")
    assert "times as fast" in ranked.sentence
    assert ranked.figures[0].change.startswith("x")
