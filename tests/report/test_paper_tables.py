"""The section beside the paper's tables: marks in every cell, reasons, links, no more than that."""

from __future__ import annotations

import re

from efficientllm import record as r
from efficientllm.report.html import page
from efficientllm.report.paper_tables import MAX_TABLES
from efficientllm.results import Results
from tests import samples
from tests.report.published_samples import attention, trial

HOSTILE = "<script>alert(1)</script>"


def section(*records: r.Record) -> str:
    """The section's HTML; empty where the page has none."""
    found = re.search(r'<section class="beside".*?</section>', page(Results(records)), re.DOTALL)
    return found[0] if found else ""


def cells(text: str, head: str) -> list[str]:
    """The cells of one metric's line of the first table."""
    row = next(part for part in text.split("<tr>") if f">{head}</abbr></th>" in part)
    return re.findall(r"<td.*?</td>", row, re.DOTALL)


def test_every_cell_carries_the_mark_of_its_number_and_of_its_ratio() -> None:
    text = section(*attention((0.30, 0.3849, 0.60, 0.50)))
    assert "<h2>Beside the paper's Tables 3 and 4</h2>" in text
    mqa, gqa, mla, nsa, order = cells(text, "mean seconds per step or request, s beside AL, s")
    assert ">0.1298 A</abbr>" in mqa
    assert "x3.00 A" in gqa
    assert ">0.2537 A<" in mla
    assert "estimated" not in nsa
    assert "tau +0.33, p 0.75, n 4" in order
    assert "nsa &lt; mla here, &gt; there" in order


def test_what_follows_from_an_estimate_is_marked_as_one() -> None:
    text = section(trial("mqa", watts=600), trial("nsa", watts=700))
    mqa, nsa, order = cells(text, "mean power, W beside AEC, W")
    assert 'class="estimated">647 E</abbr>' in mqa
    assert 'class="estimated">x0.93 E<' in mqa  # 600 / 647 = 0.927
    assert "rank on the paper&#39;s site 3 S" in mqa
    assert "x1.17 A" in nsa  # 700 / 598 = 1.171
    assert "tau -1.00, p 1.00, n 2 (1 E)" in order
    assert "mqa &lt; nsa here, &gt; there E" in order


def test_every_number_of_the_section_has_a_mark() -> None:
    records = [*attention((0.3, 0.2, 0.5, 0.6)), trial(position="t5"), trial(position="none")]
    text = section(*records)
    published = re.findall(r"(?:paper|drawn) <abbr[^>]*>(.*?)</abbr>", text)
    assert len(published) == 6 * (4 + 3)
    assert all(re.fullmatch(r"~?[\d.e-]+ [AEF]", told) for told in published)
    for mark in "AFECS":
        assert f"<b>{mark}</b>" in text


def test_impossible_values_are_shown_with_their_reason() -> None:
    text = section(trial(), trial(position="t5"))
    rope, relate, order = cells(text, "tokens per parameter and second, 1/s beside TT, 1/s")
    assert re.search(r"drawn <abbr[^>]*>0\.84 F<", rope)
    assert "8.98e-2 A" in relate
    assert 'title="the paper&#39;s value is impossible"' in relate
    assert "not ranked: the paper&#39;s values are impossible" in order
    assert "27 times" in text
    assert ">t5 (Relate)*<" in text


def test_it_stands_only_where_two_variants_ran() -> None:
    assert section(trial()) == ""
    assert section(samples.record()) == ""
    lost = trial("nsa", outcome=r.Outcome(status="unsupported", reason=HOSTILE))
    assert section(trial(), lost) == ""
    text = section(trial(), trial("mqa"), lost)
    assert "unsupported" in text
    assert HOSTILE not in text


def test_links_lead_to_records() -> None:
    records = trial(), trial("mqa")
    links = re.findall(r'href="#([^"]+)"', section(*records))
    assert len(links) == 6 * 2
    assert set(links) == set(re.findall(r'<details id="([^"]+)"', page(Results(records))))


def test_a_machine_s_name_never_becomes_an_element() -> None:
    machine = samples.MACHINE.model_copy(update={"device": HOSTILE, "name": "m"})
    text = section(trial(machine=machine), trial("mqa", machine=machine))
    assert "&lt;script&gt;alert(1)" in text
    assert HOSTILE not in text


def test_the_page_s_own_machine_comes_first_and_a_limit_says_what_it_leaves_out() -> None:
    other = samples.MACHINE.model_copy(update={"name": "other", "device": "NVIDIA H100"})
    theirs = [
        trial(k, machine=other, env_id="e" * 64, started_at="2025-01-01T00:00:00+00:00")
        for k in ("mqa", "gqa")
    ]
    here = [trial(k, preset="1.5B-h16") for k in ("mqa", "gqa")]
    text = section(*theirs, *here)
    assert re.findall(r"<summary>(.*?)</summary>", text) == [
        "Table 3, attention, 1.5B: b2 c8192, NVIDIA H200",
        "Table 3, attention, 1.5B: b2 c8192, NVIDIA H100",
    ]
    assert text.count("<details open>") == 1
    many = [trial(k, step=(n, 1024)) for n in range(1, MAX_TABLES + 3) for k in ("mqa", "gqa")]
    assert "2 more are not shown" in section(*many)
