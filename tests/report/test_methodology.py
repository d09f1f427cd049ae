"""Documents say what the program does and what was published."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from efficientllm.report import methodology, readme
from efficientllm.report.methodology import parts, renewed
from efficientllm.results import load
from tests import samples

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "results" / "h100-80gb-quantization.jsonl"


def test_the_methodology_is_the_program_s_own_word() -> None:
    text = (ROOT / "METHODOLOGY.md").read_text("utf-8")
    assert renewed(text, parts()) == text, "run make docs"


def test_every_flag_stands_in_the_methodology() -> None:
    sources = [s.read_text("utf-8") for s in (ROOT / "src/efficientllm/analysis").glob("*.py")]
    told = [re.findall(r'Flag\(\s*"([A-Z_]+)"', source) for source in sources]
    told += [re.findall(r'"([A-Z]+_[A-Z_]+)"', source) for source in sources]
    codes = {code for found in told for code in found}
    text = (ROOT / "METHODOLOGY.md").read_text("utf-8")
    assert {"POSITION_UNUSED", "EDGE_OF_SWEEP", "SAMPLE_GAP", "HOT", "SMOKE"} <= codes
    assert not [code for code in codes if f"`{code}`" not in text]


def test_the_readme_shows_the_published_records_as_they_are() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    table = readme.results_table(load(PUBLISHED).rows())
    study = readme.study_table(load(*PUBLISHED.parent.glob("h100-80gb-attention*.jsonl")))
    assert renewed(text, {"results": table, "study": study}) == text, "run make docs"
    assert PUBLISHED.with_suffix(".svg").exists()


def test_the_readme_compares_with_bf16_at_the_same_point_and_hides_no_failure() -> None:
    table = readme.results_table(load(PUBLISHED).rows())
    assert "| bf16 | 1 | 164.6 ±<0.1 | x1.00 |" in table
    assert "| int4 | 1 | 298.4 ±0.4 | x1.81 |" in table
    assert "| int4 | 32 | 1,707 ±2 | x0.44 |" in table
    assert "int8-dynamic at batch 1: crash" in table
    assert "random weights: cost only" in table


def test_a_document_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="no part between <!-- generated: metrics -->"):
        renewed("nothing", {"metrics": "x"})


def test_a_row_without_a_reference_has_no_ratio() -> None:
    alone = load_rows("int8")
    assert readme._against(alone[0], alone) == "-"


def load_rows(technique: str) -> list[readme.Row]:
    from efficientllm.analysis.table import rows

    of = samples.case(name=f"generate-{technique}", technique=technique)
    return rows([samples.record(of=of)])


def test_main_renews_a_document_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "M.md"
    begin, end = (mark.format("metrics") for mark in (methodology.BEGIN, methodology.END))
    protocol = "\n".join(mark.format("protocol") for mark in (methodology.BEGIN, methodology.END))
    filters = "\n".join(mark.format("filters") for mark in (methodology.BEGIN, methodology.END))
    document.write_text(f"before\n{begin}\nstale words\n{end}\n{protocol}\n{filters}\nafter\n")
    monkeypatch.setattr("sys.argv", ["methodology", str(document)])
    methodology.main()
    text = document.read_text()
    assert "stale words" not in text
    assert "| `mfu` |" in text
    assert "| `quick` |" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
