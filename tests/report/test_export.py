"""Exports: the same numbers in every format, and nothing private in any."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from efficientllm.analysis.table import Row, rows
from efficientllm.metrics import METRICS
from efficientllm.record import Examined, Finding, Outcome
from efficientllm.report.export import export, flat, public_record
from efficientllm.report.html import page
from efficientllm.report.public import without_paths
from efficientllm.report.table_charts import latency_energy, named
from efficientllm.results import Results, load, read_published
from tests import samples
from tests.report import architecture_samples as made
from tests.report.test_html import pair


@pytest.fixture
def table() -> list[Row]:
    return rows(pair())


def test_csv_and_parquet_hold_every_metric_with_bounds_and_reasons(
    table: list[Row], tmp_path: Path
) -> None:
    from pyarrow import parquet

    text = list(csv.DictReader(io.StringIO(export(table, "csv").decode())))
    path = tmp_path / "table.parquet"
    path.write_bytes(export(table, "parquet"))
    columns = parquet.read_table(path).to_pylist()
    for row in (text[0], columns[0]):
        assert {metric.key for metric in METRICS} <= row.keys()
        assert float(row["it_tokens_per_s"]) == pytest.approx(100.0)
        assert float(row["it_tokens_per_s_low"]) == pytest.approx(100.0)
        assert row["it_tokens_per_s_basis"] == "trials"
        assert row["mcr_why_null"].startswith("no task score")
    assert columns[0]["mcr"] is None
    assert text[0]["mcr"] == ""


def test_what_did_not_end_well_is_told_beside_its_name_and_under_no_metric() -> None:
    lost = samples.record(outcome=Outcome(status="nan", reason="loss"), scores=None)
    both = rows([lost, samples.record(samples.case(name="good", technique="int8"))])
    markdown, latex = export(both, "md").decode(), export(both, "latex").decode()
    (line,) = [x for x in markdown.splitlines() if "(nan)" in x]
    heads = next(x for x in markdown.splitlines() if x.startswith("| case"))
    assert line.count("|") == heads.count("|")
    assert line.count(" - ") == line.count("|") - 4, "case, point and n stand there"
    assert "(nan)" in latex
    only = export(rows([lost]), "md").decode()
    assert "(nan)" in only, "even where no row has a metric"


def test_weights_are_told_as_the_row_is_read_and_not_as_they_began(table: list[Row]) -> None:
    """A training begins from random weights and ends with trained ones."""
    steps = {"kind": "pretrain", "sequence_length": 1024, "batch": 4, "steps": 100}
    random = samples.build(weights="random")
    learned = samples.record(samples.pretrain(workload=steps), build=random)
    cost = samples.record(samples.case(name="cost"), build=random)
    assert [flat(row)["weights"] for row in rows([learned, cost])] == ["trained", "random"]
    assert {flat(row)["weights"] for row in table} == {"trained"}


def test_markdown_and_latex_carry_half_widths_n_footnotes_and_the_method(table: list[Row]) -> None:
    markdown, latex = export(table, "md").decode(), export(table, "latex").decode()
    for text in (markdown, latex):
        assert "int4" in text
        assert "Measured with EfficientLLM 0.1.0 on NVIDIA H200" in text
        assert "3 trial(s)" in text
    assert "| case | point | n |" in markdown
    assert r"\toprule" in latex
    assert latex.count("{") == latex.count("}")


def test_flags_become_numbered_footnotes() -> None:
    smoke = rows([samples.record(protocol={"profile": "smoke"})])
    text = export(smoke, "md").decode()
    assert "<sup>1</sup>" in text or "<sup>2</sup>" in text
    assert "SMOKE" in text


def test_an_invalid_value_is_marked_in_every_format_and_drawn_in_no_chart() -> None:
    """A power that the counter contradicts: its joules stand there, and do not count."""
    readings = (samples.counter(), samples.power(700.0))
    bad = [samples.record(round_=i, readings=readings) for i in range(3)]
    (row,) = table = rows(bad)
    assert row.cell("j_per_token").invalid
    (plain,) = csv.DictReader(io.StringIO(export(table, "csv").decode()))
    keys = plain["invalid"].split()
    assert "j_per_token" in keys
    assert "it_tokens_per_s" not in keys
    markdown, latex = export(table, "md").decode(), export(table, "latex").decode()
    assert markdown.count("\u2020") == 2, "the value and what the mark means"
    assert latex.count(r"$^\dagger$") == 2
    assert "\u2020" not in export(rows([samples.record()]), "md").decode()
    assert latency_energy(named(table)).svg == ""
    assert "\u2020" not in visible(page(Results(tuple(bad)))), "the page strikes it through"
    compiled = [w.model_copy(update={"recompiles": 1}) for w in samples.generate_windows()]
    assert latency_energy(named(rows([samples.record(windows=compiled)]))).svg == "", (
        "nor its seconds"
    )
    assert latency_energy(named(rows([samples.record()]))).svg


def visible(text: str) -> str:
    """A page without what its buttons give."""
    return re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_tables_of_differences_name_the_machine_where_there_are_several() -> None:
    here = [made.trained(name, seed) for name in ("mha", "mla") for seed in range(3)]
    machine = samples.MACHINE.model_copy(update={"name": "b", "device": "NVIDIA B"})
    there = [r.model_copy(update={"machine": machine, "env_id": "0" * 64}) for r in here]
    heads = re.findall("### Differences.*", export(rows([*here, *there]), "md").decode())
    assert sorted(head.rpartition(", ")[2] for head in heads) == ["NVIDIA B", "NVIDIA H200"]
    (alone,) = re.findall("### Differences.*", export(rows(here), "md").decode())
    assert alone.endswith("attention at 30M-h16")


def test_json_lines_load_again_as_the_same_records(table: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "published.jsonl"
    path.write_bytes(export(table, "jsonl"))
    again, bad = read_published(path)
    assert bad == []
    assert len(again) == 6
    assert {record.key for record in again} == {record.key for record in pair()}
    assert len(load(path).rows()) == 2


def test_nothing_exported_names_a_host_a_user_or_a_path() -> None:
    private = samples.case(
        model={"kind": "checkpoint", "source": "/home/ada/secret/model", "sha256": "b" * 64},
        workload={"kind": "generate", "data": {"kind": "files", "path": "/home/ada/text"}},
    )
    record = samples.record(of=private, environment={"OMP_NUM_THREADS": "4"})
    text = public_record(record).model_dump_json()
    assert "/home" not in text
    assert "ada" not in text
    case = json.loads(text)["case"]
    assert case["model"]["source"] == "model"
    assert case["model"]["sha256"] == "b" * 64


def test_a_spreadsheet_never_runs_a_name() -> None:
    attack = samples.case(name="=cmd()|' /C calc'!A0")
    text = export(rows([samples.record(of=attack)]), "csv").decode()
    assert ",'=cmd()" in text or ",\"'=cmd()" in text


def test_an_unknown_format_and_an_empty_store_are_errors(table: list[Row]) -> None:
    with pytest.raises(ValueError, match="there is jsonl, csv, parquet, md, latex"):
        export(table, "xlsx")
    with pytest.raises(ValueError, match="no records"):
        export([], "csv")


def test_markup_in_names_is_inert() -> None:
    name = "a|b*c_[x](y)<b>&%$#{}~^\\"
    row = rows([samples.record(of=samples.case(name=name))])
    assert "\\|" in export(row, "md").decode()
    assert "<b>" not in export(row, "md").decode().replace("\\<b\\>", "")
    latex = export(row, "latex").decode()
    assert r"\&\%\$\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}" in latex


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("No such file: '/home/ada/secret/x'", "No such file: 'x'"),
        ('in "/home/ada l/my files/x.json", line 3', 'in "x.json", line 3'),
        ("'~/secret files/x' and ~ada/y", "'x' and y"),
        ("open(/home/ada/a.txt):12: denied", "open(a.txt):12: denied"),
        ("file:///home/ada/x and //server/ada/y", "x and y"),
        ("gcc -L/home/ada/lib -lx path=/home/ada/tmp/", "gcc -Llib -lx path=tmp"),
        ("/home/ada: full; /root, /Users/ada/", "~: full; ~, ~"),
        ("https://huggingface.co/a/b serves a/b at 5 tok/s", None),
        ("and/or, a / b, 1/2, ./x", None),
    ],
)
def test_words_lose_their_paths_and_keep_their_sense(said: str, told: str | None) -> None:
    assert without_paths(said) == (said if told is None else told)


def test_no_format_tells_a_path_that_an_error_or_a_note_named() -> None:
    said = "FileNotFoundError: [Errno 2] No such file: '/home/ada/secret/x'"
    failed = Outcome(status="crash", reason=said)
    record = samples.record(
        notes={"quality": said, "sampler": said, "shared_device": said},
        scores=None,
        resolved={"device": "cuda", "library": "/home/ada/lib/libx.so", "idle_power_w": 80.0},
        build=samples.build(shape=samples.build().shape | {"name": "/home/ada/checkpoint"}),
    )
    good = record.points[0].model_copy(update={"left_out": {"request": said}})
    bad = record.points[0].model_copy(
        update={"outcome": failed, "windows": (), "point_id": "b" * 64, "batch": 2}
    )
    partly = record.model_copy(update={"points": (good, bad)})
    whole = samples.record(of=samples.case(technique="int4"), outcome=failed)
    table = rows([partly, whole])
    assert "/home/ada" in str(table)
    for form in ("csv", "jsonl", "md", "latex", "parquet"):
        content = export(table, form)
        assert b"secret" not in content, form
        assert b"/home" not in content, form
    text = export(table, "jsonl").decode()
    assert text.count("No such file: 'x'") == 6
    public = public_record(partly)
    assert public.resolved == {"device": "cuda", "library": "libx.so", "idle_power_w": 80.0}
    assert public.build is not None
    assert public.build.shape is not None
    assert public.build.shape["name"] == "checkpoint"
    assert public.readings == partly.readings


def test_an_attention_of_ones_own_leaves_without_its_path() -> None:
    file = "/home/ada/secret/mine.py"
    model = {"kind": "backbone", "preset": "tiny", "attention": f"custom:{file}:Mine"}
    finding = Finding(name="output", verdict="failed", seen=f"OSError: {file}: gone")
    build = samples.build(
        attention=Examined(name="Mine", source="class Mine: ...", findings=(finding,))
    )
    record = samples.record(samples.case(model=model), build=build)
    for form in ("jsonl", "csv", "md", "latex"):
        assert b"secret" not in export(rows([record]), form)
    public = public_record(record)
    assert public.case["model"]["attention"]["file"] == "mine.py"
    assert public.build is not None
    assert public.build.attention is not None
    assert public.build.attention.source == "class Mine: ..."
