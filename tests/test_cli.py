"""The command line as a user meets it: what it prints and with which status it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from efficientllm import commands, machine, results
from efficientllm.cli import app
from efficientllm.store import Store
from tests.report.test_html import pair


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with three trials of bf16 and of an int4 that is twice as fast."""
    made = Store(tmp_path / "store")
    for record in pair():
        made.put(record)
    return made.root


def called(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize(
    "command",
    ["run", "plan", "fetch", "list", "show", "compare", "report", "export", "doctor", "check"],
)
def test_every_command_helps_with_an_example(command: str) -> None:
    result = called(command, "--help")
    assert result.exit_code == 0
    assert "Example: efficientllm" in result.output


def test_compare_prints_ratios_and_conditions_decide_the_status(store: Path) -> None:
    words = ("compare", "generate-bf16", "generate-int4", "--store", store)
    plain = called(*words)
    assert plain.exit_code == 0
    assert "x2.000" in plain.output
    assert called(*words, "--fail-if", "slower>5%").exit_code == 0
    backwards = called(
        "compare", "generate-int4", "generate-bf16", "--store", store, "--fail-if", "slower>5%"
    )
    assert backwards.exit_code == 1
    assert "100.0% slower" in backwards.stderr
    nonsense = called(*words, "--fail-if", "slower")
    assert nonsense.exit_code == 2
    assert "write it like" in nonsense.stderr


def test_an_undecided_condition_has_a_status_of_its_own(tmp_path: Path) -> None:
    made = Store(tmp_path)
    for record in pair()[:2]:
        made.put(record)
    result = called(
        "compare", "generate-int4", "generate-bf16", "--store", tmp_path, "--fail-if", "slower>5%"
    )
    assert result.exit_code == 6
    assert "but undecided: 1 of the three pairs" in result.stderr


def test_show_names_where_intervals_come_from_and_percentiles(store: Path) -> None:
    result = called("show", "generate-bf16", "--store", store)
    assert result.exit_code == 0
    assert "3 trials" in result.output
    assert "decode unit  p50 10.0 ms, p90 10.0 ms" in result.output
    raw = called("show", "generate-bf16", "--store", store, "--raw")
    assert json.loads(raw.output)["trial"]["name"] == "generate-bf16"


def test_a_point_that_a_row_does_not_have_is_told_with_those_it_has(store: Path) -> None:
    result = called("show", "generate-bf16", "--store", store, "--at", "batch=99")
    assert result.exit_code == 2
    assert "'generate-bf16' has no such point; there is b1 c1024" in result.stderr
    assert called("show", "generate-bf16", "--store", store, "--at", "batch").exit_code == 2


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "md", "latex"])
def test_every_format_is_written_to_a_file(form: str, store: Path, tmp_path: Path) -> None:
    target = tmp_path / f"out.{form}"
    assert called("export", store, "--format", form, "-o", target).exit_code == 0
    assert target.stat().st_size > 100


def test_an_export_holds_one_suite_where_it_is_named(store: Path) -> None:
    whole, sample, other = (
        called("export", store, *words).output
        for words in ((), ("--suite", "sample"), ("--suite", "quickstart"))
    )
    assert whole == sample
    assert "generate-int4" in whole
    assert "generate" not in other


def test_what_cannot_be_written_is_one_line_and_status_three(store: Path, tmp_path: Path) -> None:
    for words in (
        ("export", store, "-o", tmp_path / "no" / "x.csv"),
        ("report", store, "-o", tmp_path, "--alone"),
    ):
        result = called(*words)
        assert result.exit_code == 3
        assert len(result.stderr.strip().splitlines()) == 1
        assert "Traceback" not in result.output


def test_a_report_is_written_where_it_was_asked_for(store: Path, tmp_path: Path) -> None:
    result = called("report", store, "-o", tmp_path / "page.html", "--alone")
    assert result.exit_code == 0
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    told = called("report", store, "-o", tmp_path / "y.html", "--alone", "--suite", "nonsense")
    assert told.exit_code == 2
    assert "no record here is of a suite called 'nonsense'" in told.stderr
    assert not (tmp_path / "y.html").exists()
    empty = called("report", tmp_path / "nothing", "-o", tmp_path / "x.html")
    assert empty.exit_code == 2
    assert "run something first" in empty.stderr


def test_a_report_stands_alone_where_that_is_asked_for(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else published records stand beside its own."""
    told: list[object] = []

    def write_report(own: object, others: object, target: Path, suite: str) -> Path:
        told.append(others)
        return target

    monkeypatch.setattr(commands, "write_report", write_report)
    monkeypatch.setattr(results, "published", lambda: [store])
    assert called("report", store, "-o", tmp_path / "x.html", "--alone").exit_code == 0
    assert called("report", store, "-o", tmp_path / "x.html").exit_code == 0
    alone, beside = told
    assert alone is None
    assert isinstance(beside, results.Results)
    assert beside.records


@pytest.mark.parametrize("words", [("report", "--alone"), ("export",)], ids=lambda words: words[0])
def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(
    words: tuple[str, ...], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, written = tmp_path / "old", Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        written(path, content[:9])
        raise OSError(28, "No space left on device")

    target.write_text("as it was")
    monkeypatch.setattr(Path, "write_bytes", full)
    result = called(*words, store, "-o", target)
    assert result.exit_code == 3
    assert f"{target}: No space left on device" in result.stderr
    assert target.read_text() == "as it was"


def test_a_report_goes_into_its_store_or_into_a_folder_that_is_made_for_it(
    store: Path, tmp_path: Path
) -> None:
    assert called("report", store, "--alone").exit_code == 0
    assert called("report", store, "--alone", "-o", tmp_path / "a" / "b.html").exit_code == 0
    pages = [path.read_text() for path in (store / "report.html", tmp_path / "a" / "b.html")]
    assert pages[0] == pages[1]


@pytest.mark.parametrize("what", ["suites", "models", "techniques", "machines", "metrics"])
def test_each_list_shows_its_kind(what: str) -> None:
    result = called("list", what)
    assert result.exit_code == 0
    expected = {
        "suites": "quickstart",
        "models": "Llama-3.1-8B",
        "techniques": "lora",
        "machines": "h200-141gb",
        "metrics": "it_tokens_per_s",
    }
    assert expected[what] in result.output


def test_plan_predicts_for_machines_that_are_not_here() -> None:
    result = called("plan", "quantization", "--on", "h100-80gb,l4-24gb")
    assert result.exit_code == 0
    assert "h100-80gb" in result.output
    unknown = called("plan", "quantization", "--on", "h100-80g")
    assert unknown.exit_code == 2
    assert "h100-80gb" in unknown.stderr


def test_a_card_that_is_not_there_is_status_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", list)
    result = called("plan", "quickstart", "--gpu", "3")
    assert result.exit_code == 4
    assert "there is no such GPU" in result.stderr


def test_own_records_are_needed_to_export(tmp_path: Path) -> None:
    result = called("export", tmp_path)
    assert result.exit_code == 2
    assert "no records" in result.stderr
