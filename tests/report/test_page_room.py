"""What a page leaves out where its room is short, in which order, and what was never run."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from efficientllm.report import html
from efficientllm.report.html import page
from efficientllm.results import Results
from tests import samples
from tests.report import architecture_samples as made
from tests.report.test_html import pair


class Seen(NamedTuple):
    details: set[str]
    links: set[str]
    drawings: int


def seen(text: str) -> Seen:
    details, links = (set(re.findall(f'{x}(r-[^"]+)"', text)) for x in ('<details id="', 'href="#'))
    return Seen(details, links, text.count('class="drawing"'))


def led_to(text: str) -> set[str]:
    """Rows whose numbers stand in a study's table."""
    tables = re.findall(r'<div class="scroll matrix">.*?</table>', text, re.DOTALL)
    return set(re.findall(r'href="#(r-[^"]+)"', "".join(tables)))


@pytest.fixture(scope="module")
def records() -> Results:
    more = [made.in_suite(made.pretrain("mha", 64 * i), "attention", 99 + i) for i in range(1, 16)]
    return Results((*more, *made.attention_suite()))


def test_drawings_of_the_newest_rows_go_before_a_row_that_something_leads_to(
    records: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = page(records)
    led = led_to(whole)
    assert led < seen(whole).details
    room = len(whole.encode())
    order = []
    while not order or order[-1].details >= led:
        room = room * 5 // 6
        monkeypatch.setattr(html, "MAX_BYTES", room)
        order.append(seen(page(records)))
    drawn, bare = ([each for each in order if bool(each.drawings) is x] for x in (True, False))
    assert min(len(each.details) for each in drawn) < len(seen(whole).details)
    assert all(each.details >= led for each in drawn)
    assert bare
    assert all(each.details <= led for each in bare)


def test_no_row_is_weighed_where_leaving_out_drawings_is_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(html, "MAX_BYTES", 1000)
    rendered: list[tuple[int, int]] = []

    def text(shown: int, drawn: int) -> str:
        rendered.append((shown, drawn))
        return "x" * (10 * shown + 50 * drawn)

    assert len(html._fitting(text, 20, 5)) == 10 * 20 + 50 * html.DRAWN
    assert rendered == [(20, html.DRAWN), (20, 20)]
    rendered.clear()
    monkeypatch.setattr(html, "MAX_BYTES", 790)
    html._fitting(text, 20, 5)
    assert (20, 20) not in rendered, "more drawings where there is no room for fewer"


def test_no_link_leads_to_a_row_that_there_was_no_room_for(
    records: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = page(records)
    monkeypatch.setattr(html, "MAX_BYTES", 1)
    least = page(records)
    assert len(seen(least).details) == 1
    assert seen(least).links == seen(least).details
    numbers = re.findall(r'<a(?: href="#r-[^"]*")? title="[^"]*">([^<]*)</a>', least)
    assert set(numbers) <= set(re.findall(r'<a href="#r-[^"]*" title="[^"]*">([^<]*)</a>', whole))
    assert "scroll matrix" in least
    assert len(numbers) > 1


def test_published_rows_are_left_out_before_the_readers_however_new_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(html, "MAX_ROWS", 4)
    mine = [*made.learning_suite(1, ("mha", "gqa")), *made.attention_suite(1, ("mha",))[:2]]
    machine = samples.MACHINE.model_copy(update={"name": "another"})
    newer = {"started_at": "2030-01-01T00:00:00+00:00", "machine": machine}
    published = [made.pretrain(name, 4096, **newer) for name in ("mla", "nsa")]
    text = page(Results(tuple(mine)), beside=Results(tuple(published)))
    assert "2 published rows are not shown here." in text
    assert "not shown, those first" not in text


def test_rows_of_the_suite_that_is_named_are_kept_before_newer_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(html, "MAX_ROWS", 2)
    records = []
    for day, suite in (("1", "quantization"), ("2", "quickstart")):
        changes = {"started_at": f"2026-01-0{day}T00:00:00+00:00", "env_id": day * 64}
        records += [made.in_suite(x, suite, 0).model_copy(update=changes) for x in pair()]
    kept = seen(page(Results(tuple(records)), suite="quantization")).details
    assert len(kept) == 2
    assert all("-111111-" in name for name in kept)


def test_variants_of_a_suite_that_nobody_ran_are_named() -> None:
    some, every = (made.learning_suite(1, of) for of in (("mha", "gqa", "mla"), made.VARIANTS))
    missing = "Not run at 30M-h16: mqa, sliding, nsa of suite attention-small."
    assert missing in page(Results(tuple(some)))
    assert "Not run at" not in page(Results(tuple(every)))


def test_a_size_that_no_suite_has_misses_nothing() -> None:
    """The suite attention has other sizes than these records."""
    assert "Not run at" not in page(Results(tuple(made.attention_suite(1, ("mha", "gqa")))))
