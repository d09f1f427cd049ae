"""The page in a real browser: sorting, filtering, prices, links, and silence on the network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from efficientllm.report.html import page
from efficientllm.results import Results
from tests import samples
from tests.report import architecture_samples as made
from tests.report.test_html import pair

pytestmark = pytest.mark.browser

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: the page was not tried in a browser")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    other = samples.record(
        of=samples.case(name="generate-fp16", technique="fp16"),
        windows=samples.generate_windows(tpot=0.02),
        machine=samples.CPU_MACHINE,
        readings=(),
        started_at="2025-12-31T00:00:00+00:00",
    )
    smoke = samples.record(
        of=samples.case(name="generate-int8", technique="int8"), protocol={"profile": "smoke"}
    )
    train = samples.record(of=samples.pretrain())
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(Results((*pair(), other, smoke, train))), "utf-8")
    return path


class Opened:
    """A page, with everything it said and asked for."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def cases(self) -> list[str]:
        """Visible case names of the generate table, from top to bottom."""
        rows = self.page.locator("#generate tbody tr:visible th a")
        return [str(text) for text in rows.all_inner_texts()]


@pytest.fixture
def opened(browser: Any, page_file: Path) -> Iterator[Opened]:
    made = Opened(browser, page_file, viewport={"width": 1280, "height": 900})
    yield made
    assert made.said == [], "the page's console stays silent"
    assert made.asked == [page_file.as_uri()], "no request leaves the page"
    made.context.close()


def test_a_click_on_a_heading_sorts_by_number_and_a_second_one_turns_it(opened: Opened) -> None:
    heading = opened.page.get_by_role("button", name="tokens/s in all")
    heading.click()
    rising = opened.cases()
    assert rising[0] == "fp16"
    assert rising[-1] == "int4"
    heading.click()
    assert opened.cases() == rising[::-1] or opened.cases()[0] == "int4"
    assert opened.page.locator("#generate th[aria-sort=descending]").count() == 1


def test_rows_without_a_value_stay_at_the_end_both_ways(opened: Opened) -> None:
    heading = opened.page.locator("#generate").get_by_role("button", name="energy per token")
    heading.click()
    assert opened.cases()[-1] == "fp16"
    heading.click()
    assert opened.cases()[-1] == "fp16"


def test_filters_narrow_by_text_machine_and_validity(opened: Opened) -> None:
    stage = opened.page.locator("#generate")
    stage.locator(".filter").fill("int")
    assert set(opened.cases()) == {"int4", "int8"}
    assert "2 of 4 rows" in stage.locator(".count").inner_text()
    stage.locator(".ranked").check()
    assert opened.cases() == ["int4"]
    stage.locator(".filter").fill("")
    stage.locator(".ranked").uncheck()
    stage.locator(".machine").select_option("Test CPU")
    assert opened.cases() == ["fp16"]


def test_more_metrics_appear_on_demand(opened: Opened) -> None:
    stage = opened.page.locator("#generate")
    assert stage.get_by_role("button", name="busy share").count() == 0
    before = stage.locator("thead th:visible").count()
    stage.locator(".more").check()
    assert stage.locator("thead th:visible").count() > before


def test_no_money_is_shown_until_a_price_is_filled_in(opened: Opened) -> None:
    assert opened.page.locator(".money:visible").count() == 0
    opened.page.locator("#hour").fill("3.60")
    row = opened.page.locator("#generate tbody tr", has_text="bf16").first
    # 3.60 an hour at 100 tokens/s: 0.001 a second, 10 seconds a thousand tokens.
    assert row.locator(".money").inner_text() == "10.0"
    opened.page.locator("#kwh").fill("0.36")
    # 500 W at 100 tokens/s is 5 J a token: 5 MJ a million, 1.39 kWh, 0.50 in all.
    assert row.locator(".money").inner_text() == "10.5"
    opened.page.locator("#hour").fill("")
    opened.page.locator("#kwh").fill("")
    assert opened.page.locator(".money:visible").count() == 0


def test_a_number_opens_its_record_with_power_and_memory_over_time(opened: Opened) -> None:
    row = opened.page.locator("#generate tbody tr", has_text="bf16").first
    row.locator("td.number a").first.click()
    details = opened.page.locator("details[open]")
    details.first.wait_for()
    assert details.count() == 1
    assert "power, W" in details.inner_text()
    assert details.locator("svg polyline").count() >= 1


def test_buttons_save_tables_and_the_raw_record(opened: Opened) -> None:
    for name, start in (("CSV", "suite,case,"), ("Markdown", "### "), ("Raw record", "{")):
        with opened.page.expect_download() as waiting:
            opened.page.get_by_role("button", name=name, exact=True).click()
        content = Path(waiting.value.path()).read_text("utf-8")
        assert content.startswith(start)


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "report.html"
    records = (*made.learning_suite(), *made.attention_suite())
    path.write_text(page(Results(records)), "utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_studys_matrix_stands_on_the_first_screen(
    browser: Any, study_file: Path, scheme: str, width: int
) -> None:
    opened = Opened(
        browser, study_file, viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    matrix = opened.page.locator(".matrix").first.bounding_box()
    assert matrix["y"] + matrix["height"] <= 900
    opened.page.locator(".matrix td a").first.click()
    opened.page.locator(".records details[open]").first.wait_for()
    assert opened.said == []
    opened.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_a_phone_and_a_desktop_in_light_and_dark(
    browser: Any, page_file: Path, scheme: str, width: int
) -> None:
    made = Opened(browser, page_file, viewport={"width": width, "height": 844}, color_scheme=scheme)
    assert made.page.evaluate("document.documentElement.scrollWidth") <= width
    contrast = made.page.evaluate(
        "(() => { const s = getComputedStyle(document.body);"
        " const v = (c) => c.match(/[\\d.]+/g).slice(0, 3).map(Number)"
        ".reduce((a, b) => a + b, 0) / 3;"
        " return Math.abs(v(s.color) - v(s.backgroundColor)); })()"
    )
    assert contrast > 150
    made.context.close()
