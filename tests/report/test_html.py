"""The page as text: safe, self-contained, honest about what is missing."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import re
from typing import Any

import pytest

from efficientllm import record as r
from efficientllm.report.html import page
from efficientllm.results import Results
from efficientllm.spec.document import SpecError
from tests import samples

HOSTILE = '"><img src=x onerror=alert(1)></script><script>alert(1)</script>{{7*7}}'


def results(*records: r.Record) -> Results:
    return Results(tuple(records))


class Structure(html.parser.HTMLParser):
    """Every element with its attributes, and the text inside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.contents: dict[str, list[str]] = {"script": [], "style": []}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def attributes(self) -> set[str]:
        return {name for _, attrs in self.elements for name in attrs}

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in self.contents:
            self.contents[self._inside].append(data)


def sample(**changes: Any) -> r.Record:
    return samples.record(**changes)


def pair() -> tuple[r.Record, ...]:
    """Three rounds of bf16 and of an int4 that decodes twice as fast."""
    int4 = samples.case(name="generate-int4", technique="int4")
    fast = samples.generate_windows(tpot=0.005)
    held = {"embedding": 2 * 2048 * 128, "other": 400_000}
    return tuple(
        record
        for round_ in range(3)
        for record in (
            sample(round_=round_),
            sample(of=int4, round_=round_, windows=fast, build=samples.build(bytes_by_kind=held)),
        )
    )


def test_the_first_screen_answers_with_an_interval_when_it_is_decided() -> None:
    text = page(results(*pair()))
    assert "int4 decodes 2.00 [2.00, 2.00] times as fast as bf16: 100 to 200 tokens/s." in text
    assert "Not decided" not in text
    assert "NVIDIA H200, 2026-01-01, protocol standard (3 trials a row)" in text


def test_the_first_screen_hedges_as_long_as_nothing_is_decided() -> None:
    text = page(results(*pair()[:2]))
    assert "<h1>So far int4 decodes 2.00 times as fast" in text
    assert "Not decided: 1 of the three pairs of trials" in text


def test_names_from_records_never_become_elements() -> None:
    hostile = samples.case(name=HOSTILE)
    broken = r.Outcome(status="crash", reason=HOSTILE + "\u202e")
    records = [
        sample(of=hostile),
        sample(of=samples.case(name="generate-b", technique="int8"), outcome=broken),
        sample(
            of=samples.case(name="generate-c", technique="int4"),
            notes={"energy": HOSTILE},
            readings=(),
            machine=samples.MACHINE.model_copy(update={"device": HOSTILE, "name": "m"}),
        ),
    ]
    clean = Structure(page(results(*pair())))
    attacked = Structure(page(results(*records)))
    tags = {tag for tag, _ in attacked.elements}
    assert "img" not in tags
    assert len([t for t, _ in attacked.elements if t == "script"]) == 2
    assert tags <= {tag for tag, _ in clean.elements} | {"abbr", "rect", "circle", "ul", "li"}
    assert not [a for _, attrs in attacked.elements for a in attrs if a.startswith("on")]
    assert "{{7*7}}" in page(results(*records)), "data is never a template"


def test_the_policy_allows_exactly_our_style_and_our_script() -> None:
    text = page(results(*pair()))
    policy = next(
        attrs["content"] or ""
        for tag, attrs in Structure(text).elements
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    style = text.split("<style>")[1].split("</style>")[0]
    script = text.rsplit("<script>", 1)[1].split("</script>")[0]
    for content, directive in ((style, "style-src"), (script, "script-src")):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy


def test_nothing_on_the_page_points_outside() -> None:
    text = page(results(*pair()))
    for tag, attrs in Structure(text).elements:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base", "form")
        assert "style" not in attrs, "inline styles would need an unsafe policy"
        for name in ("href", "src", "xlink:href", "action"):
            assert (attrs.get(name) or "#").startswith("#")
    assert not re.findall(r"url\(|@import", text)


def test_every_number_leads_to_its_record() -> None:
    structure = Structure(page(results(*pair())))
    targets = {attrs["id"] for tag, attrs in structure.elements if tag == "details"}
    links = [attrs["href"] for tag, attrs in structure.elements if tag == "a"]
    assert links
    assert {(link or "")[1:] for link in links} <= targets


def test_what_was_not_measured_says_why() -> None:
    bare = sample(readings=(), notes={"nvml": "no NVIDIA driver here"})
    text = page(results(bare, sample(of=samples.case(name="generate-int8", technique="int8"))))
    assert "no NVIDIA driver here" in text
    assert "No chart: no energy" not in text, "one row has energy, so the chart is drawn"
    alone = page(results(bare))
    assert "No chart: no energy: no NVIDIA driver here" in alone


def test_what_was_captured_is_told_by_name_and_nothing_where_the_record_says_nothing() -> None:
    plain = sample()
    points = tuple(p.model_copy(update={"captured": ("prefill", "decode")}) for p in plain.points)
    assert "in one CUDA graph" not in page(results(plain))
    text = page(results(plain.model_copy(update={"points": points})))
    assert re.search(r"in one CUDA graph</t\w>\s*<td>prefill, decode<", text)


def test_failures_are_rows_with_their_reason() -> None:
    lost = r.Outcome(status="out_of_memory", reason="tried to allocate 90 GiB")
    text = page(
        results(
            sample(), sample(of=samples.case(name="generate-x", technique="fp16"), outcome=lost)
        )
    )
    assert "out_of_memory" in text
    assert "tried to allocate 90 GiB" in text


def test_random_weights_are_named_and_enter_no_quality_chart() -> None:
    random = samples.build(weights="random")
    one = sample(build=random, scores=None, notes={"quality": "random weights: cost only"})
    text = page(results(one))
    assert "cost only" in text
    assert "No chart: no quality: random weights: cost only" in text


def test_hundreds_of_rows_stay_under_two_megabytes_and_say_what_they_leave_out() -> None:
    records = [
        sample(
            of=samples.case(name=f"generate-{i}", workload={"kind": "generate", "new_tokens": i})
        )
        for i in range(2, 242)
    ]
    text = page(results(*records))
    assert len(text.encode()) < 2_000_000
    shown = text.count("<details id=")
    assert shown >= 100
    assert f"{240 - shown} rows are not shown, those first that nothing else here leads to" in text


def test_a_store_with_nothing_but_probes_is_told_so() -> None:
    probe = samples.case(name="probe-sleep", model="none", technique=None, workload="probe")
    with pytest.raises(ValueError, match="run a suite first"):
        page(results(sample(of=probe, windows=[])))


def test_a_page_begins_with_the_suite_that_is_named_or_else_with_what_ran_last() -> None:
    early, late = (
        tuple(
            record.model_copy(
                update={
                    "trial": record.trial.model_copy(update={"suite": suite}),
                    "started_at": f"2026-01-0{day}T00:00:00+00:00",
                    "env_id": str(day) * 64,
                }
            )
            for record in pair()
        )
        for day, suite in ((1, "quantization"), (2, "quickstart"))
    )
    both = results(*early, *late)
    assert "EfficientLLM <span>quickstart</span>" in page(both)
    named = page(both, suite="quantization")
    assert "EfficientLLM <span>quantization</span>" in named
    assert "NVIDIA H200, 2026-01-01, protocol standard" in named
    assert named.count("<details id=") == 4, "what else there is stands below"
    with pytest.raises(SpecError, match="called 'attention'; there is quantization, quickstart"):
        page(both, suite="attention")


def test_published_records_stand_beside_and_never_take_the_first_screen() -> None:
    """Whose machine it is decides, not whose record is newer."""
    other = samples.MACHINE.model_copy(update={"name": "other", "device": "NVIDIA H100"})
    published = results(
        *(
            record.model_copy(
                update={
                    "machine": other,
                    "env_id": "e" * 64,
                    "started_at": "2030-01-01T00:00:00+00:00",
                }
            )
            for record in pair()
        )
    )
    text = page(results(*pair()), published)
    assert "NVIDIA H200, 2026-01-01, protocol standard" in text
    assert text.count("<details id=") == 4
    machines = re.findall(r'<th scope="row">.*?(other machine)?</th>', text.replace("</span>", ""))
    assert machines == ["", "", "other machine", "other machine"], "those of here come first"
    probe = samples.case(name="probe-sleep", model="none", technique=None, workload="probe")
    alone = page(results(sample(of=probe, windows=[])), published)
    assert "NVIDIA H100, 2030-01-01" in alone, "without own rows the published ones speak"


def test_a_published_record_that_lies_in_the_store_counts_once() -> None:
    own = results(*pair())
    assert len(own.beside(results(*pair())).records) == len(own.records)


def test_without_quality_the_first_chart_shows_energy() -> None:
    records = [
        record.model_copy(update={"scores": None, "notes": {"quality": "random weights"}})
        for record in pair()
    ]
    lead = page(results(*records)).split("What is invalid")[0]
    assert "Time against energy, per token" in lead


def test_only_a_suite_that_its_name_runs_offers_its_command() -> None:
    named = [
        record.model_copy(update={"trial": record.trial.model_copy(update={"suite": "quickstart"})})
        for record in pair()
    ]
    assert 'data-copy="efficientllm run quickstart"' in page(results(*named))
    assert "data-copy" not in Structure(page(results(*pair()))).attributes()


def test_the_first_screen_compares_within_one_model_and_takes_the_newest() -> None:
    """Two one-line runs share a suite's name, and nothing else."""
    small = [
        record.model_copy(update={"started_at": "2026-02-01T00:00:00+00:00"})
        for technique in ("bf16", "int8")
        for record in [
            sample(
                of=samples.case(
                    name=f"generate-small-{technique}",
                    model="backbone-small",
                    technique=technique,
                )
            )
        ]
    ]
    sentence = re.search(r"<h1>(.*?)</h1>", page(results(*pair(), *small)), re.DOTALL)
    assert sentence is not None
    assert "small-int8" in sentence[1]
    assert "small-bf16" in sentence[1]
