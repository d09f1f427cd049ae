"""What `plan` prints before anything is paid for: tokens a parameter, hours, and kWh at most."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console
from typer.testing import CliRunner

from efficientllm import forecast
from efficientllm import record as r
from efficientllm.cli import app
from efficientllm.commands import _announce, _missing
from efficientllm.machine import Gpu
from efficientllm.matching import told
from efficientllm.pin import pin_suite
from efficientllm.plan import Shelf
from efficientllm.spec.protocol import Protocol
from efficientllm.spec.suite import Suite, load_suite, one_line_suite
from tests import samples

CARD = Gpu(0, "GPU-1", "NVIDIA H200", 140 << 30, 139 << 30, 600.0, 0.0, 0, "580", False, (9, 0))


def planned(folder: Path, gpu: Gpu | None, *words: str, stage: str = "pretrain") -> str:
    suite = pin_suite(one_line_suite(stage, words))
    console = Console(width=200, record=True, file=io.StringIO())
    forecast.plan_command(console, suite, folder / "store", gpu)
    return console.export_text()


@pytest.mark.parametrize(("length", "fits"), [(1024, True), (2048, False)])
def test_more_tokens_than_learned_positions_do_not_fit(
    length: int, fits: bool, tmp_path: Path
) -> None:
    words = ("model.position={kind: learned, max_positions: 1024}", f"sequence_length={length}")
    text = planned(tmp_path, CARD, "model=backbone-tiny", *words)
    assert bool(re.search(r"c\d+ +[0-9.]+ +fits", text)) is fits
    assert ("no; it has 1024 learned positions, and 2048 are asked for" in text) is not fits


@pytest.mark.parametrize(("new", "fits"), [(24, True), (25, False)])
def test_what_is_generated_needs_positions_too(new: int, fits: bool, tmp_path: Path) -> None:
    words = ("model.position={kind: learned, max_positions: 1024}", f"new_tokens={new}")
    point = ("points.batch=1", "points.context=1000")
    text = planned(tmp_path, CARD, "model=backbone-tiny", *words, *point, stage="generate")
    assert bool(re.search(r"c1000 +[0-9.]+ +fits", text)) is fits
    assert ("1024 learned positions, and 1025 are asked for" in text) is not fits


def test_a_record_that_planning_moves_away_is_named(tmp_path: Path) -> None:
    planned(tmp_path, CARD, "model=backbone-tiny")
    (case,) = pin_suite(one_line_suite("pretrain", ("model=backbone-tiny",))).cases
    machine = forecast.machine.describe(CARD).name
    folder = tmp_path / "store" / machine / case.case_id
    folder.mkdir(parents=True)
    (folder / "0-0.json").write_text("{}")
    text = planned(tmp_path, CARD, "model=backbone-tiny")
    assert "moved to quarantine: " in " ".join(text.split())


def test_a_compute_optimal_training_is_priced_before_it_starts(tmp_path: Path) -> None:
    text = planned(tmp_path, CARD, "model=backbone-0.5B", "tokens=20x")
    row = next(line for line in text.splitlines() if line.startswith("backbone-0.5B"))
    assert " 20 " in row
    hours = float(re.search(r"about ([0-9.]+) h in all", text)[1])  # type: ignore[index]
    # 6 x 0.49e9 parameters x 9.9e9 tokens, attention beside them, at 0.35 of 989 TFLOP/s
    assert 25 < hours < 60
    energy = re.search(r"at most ([0-9.]+) kWh in that time: an upper bound", text)
    assert energy is not None
    assert float(energy[1]) == pytest.approx(0.6 * hours, rel=0.01)
    assert "at its limit of 600 W" in text


def test_the_catalog_knows_the_limit_of_a_card_that_does_not_tell_it(tmp_path: Path) -> None:
    text = planned(tmp_path, CARD._replace(power_limit_w=None), "model=backbone-0.5B", "steps=10")
    assert "at its limit of 700 W" in text


def test_without_a_card_whose_limit_is_known_no_energy_is_guessed(tmp_path: Path) -> None:
    unknown = CARD._replace(product="Some Card", power_limit_w=None)
    for gpu in (None, unknown):
        text = planned(tmp_path, gpu, "model=backbone-tiny", "steps=1000")
        assert "in all (predicted" in text
        assert "kWh" not in text


def test_work_without_a_budget_has_no_tokens_per_parameter(tmp_path: Path) -> None:
    text = planned(tmp_path, CARD, "model=backbone-tiny")
    row = next(line for line in text.splitlines() if line.startswith("backbone-tiny"))
    assert re.fullmatch(r"\S+\s+b8 c4096\s+[0-9.]+\s+fits\s+\d+ s\s+0 of 1\s*", row)


def test_time_is_that_of_trials_that_ended_well_for_each_that_is_missing() -> None:
    suite = pin_suite(one_line_suite("pretrain", ("model=backbone-tiny", "protocol=standard")))
    lost = r.Outcome(status="crash", reason="so")
    ended = [samples.record(seconds=s) for s in (50.0, 70.0)]
    ended.append(samples.record(seconds=1.0, outcome=lost))

    class Filled:
        here = staticmethod(lambda case: ended)
        finished = staticmethod(lambda case, protocol: {0: ended[0]})

    shelf = cast(Shelf, Filled())
    assert suite.protocol.looks()[0] == 3
    assert forecast.total_seconds(suite, shelf, CARD) == 60.0 * 2


def test_names_lose_the_stage_that_all_share_and_keep_it_where_they_differ(tmp_path: Path) -> None:
    assert planned(tmp_path, CARD, "model=backbone-tiny").count("pretrain") == 1  # the suite
    console = Console(width=200, record=True, file=io.StringIO())
    suite = pin_suite(load_suite("quickstart", ()))
    forecast.plan_command(console, suite, tmp_path / "store", CARD)
    text = console.export_text()
    assert "pretrain-mha" in text
    assert "finetune-lora" in text


def test_what_matching_leaves_is_told_for_machines_that_are_not_here_too() -> None:
    suite = load_suite("attention", ("model.preset=0.5B-h16", "model.match=params"))
    console = Console(width=200, record=True, file=io.StringIO())
    forecast.plan_on_command(console, suite.only("train-4096-8-m*"), ["h100-80gb"])
    text = console.export_text()
    assert all(line in text for line in told(suite.only("train-4096-8-m*").cases))
    assert "match" in text


def test_machines_that_are_not_here_get_the_micro_batch_that_fits_each() -> None:
    suite = load_suite("attention", ("model.preset=1.5B-h16",)).only("train-4096-*")
    console = Console(width=200, record=True, file=io.StringIO())
    forecast.plan_on_command(console, suite, ["h100-80gb", "h200-141gb"])
    text = console.export_text()
    rows = [re.findall(r"fits, micro_batch (\d+)", line) for line in text.splitlines()[1:-1]]
    sizes = {tuple(row) for row in rows if row}
    assert len(sizes) == 1, text
    ((small, large),) = sizes
    assert int(small) < int(large)


H100 = CARD._replace(product="NVIDIA H100 80GB HBM3", memory_bytes=80 << 30)


def test_what_was_chosen_keeps_the_micro_batch_of_the_whole_study(tmp_path: Path) -> None:
    """MLA is hungrier than the rest: without it more would fit, and no run would do that."""
    whole = load_suite("attention", ("model.preset=1.5B-h16",))
    chosen = whole.only("train-4096-*-mqa")

    def sizes(of: Suite | None) -> list[str]:
        console = Console(width=200, record=True, file=io.StringIO())
        forecast.plan_on_command(console, chosen, ["h100-80gb"], of)
        forecast.plan_command(console, chosen, tmp_path, H100, of)
        return re.findall(r"fits, micro_batch (\d+)", console.export_text())

    assert [sizes(None), sizes(whole)] == [["4", "4"], ["2", "2"]]


def test_a_name_that_is_shown_is_one_that_only_takes(tmp_path: Path) -> None:
    whole = pin_suite(load_suite("quickstart", ()))
    console = Console(width=200, record=True, file=io.StringIO())
    forecast.plan_command(console, whole.only("pretrain-*"), tmp_path, CARD, whole)
    assert "pretrain-mha" in console.export_text()


@pytest.mark.parametrize("where", [["--on", "h100-80gb"], []])
def test_the_command_shows_what_run_would_choose(
    where: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efficientllm.machine.choose_gpu", lambda _: H100)
    words = ["plan", "attention", "model.preset=1.5B-h16", "--only", "train-4096-*-mqa"]
    words += [*where, "--store", str(tmp_path / "store")]
    shown = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "train-4096-8-mqa" in shown.output
    assert "mha" not in shown.output
    assert "fits, micro_batch 2" in shown.output


def test_variants_that_are_not_chosen_need_not_be_possible() -> None:
    """At this size one variant's attention is more than all that its match allows."""
    words = ["plan", "attention", "model.preset=tiny", "model.match=cache", "--only"]
    shown = CliRunner().invoke(app, [*words, "one-gqa"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "one-gqa" in shown.output
    assert "train-4096-8-mha is not asked for and left out: model: tiny mha" in shown.output
    refused = CliRunner().invoke(app, [*words, "one-mha"], env={"COLUMNS": "200"})
    assert refused.exit_code == 2
    assert "leave this variant out (--only)" in refused.output


@pytest.mark.parametrize(("tokens", "said"), [(1, True), (32_768, False), (32_769, True)])
def test_a_budget_that_whole_steps_exceed_is_told(tokens: int, said: bool) -> None:
    suite = pin_suite(one_line_suite("pretrain", ("model=backbone-tiny", f"tokens={tokens}")))
    trained = 32_768 if tokens <= 32_768 else 65_536
    line = (
        f"{tokens:,} tokens are asked for and {trained:,} are trained, in whole steps of 8 x 4,096"
    )
    assert [line in x for x in forecast.remarks(suite)] == [True] * said
    few = one_line_suite("pretrain", ("model=backbone-tiny", "tokens=3276801"))  # one step of 101
    assert forecast.rounded(pin_suite(few)) == []


def test_a_case_under_a_second_name_is_told_and_costs_nothing(tmp_path: Path) -> None:
    """Two files of one content are one attention."""
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text("class Mine: ...")
    arms = ",".join(f"custom:{tmp_path / name}:Mine" for name in ("one.py", "two.py"))
    words = ("model=backbone-tiny", f"model.attention={arms}")
    suite = pin_suite(one_line_suite("pretrain", words), allow_code=True)
    (line,) = forecast.doubled(suite)
    assert line.endswith(f"under another name: it is measured once, as {suite.cases[0].name}")

    class Empty:
        here = staticmethod(lambda case: [])
        finished = staticmethod(lambda case, protocol: {})

    console = Console(width=200, record=True, file=io.StringIO())
    forecast.plan_command(console, suite, tmp_path / "store", CARD)
    assert line in console.export_text().replace("\n", " ")
    _announce(console, suite, 60.0, CARD)
    text = console.export_text().replace("\n", " ")
    assert line in text
    assert " 1 cases " in text
    shelf = cast(Shelf, Empty())
    alone = suite._replace(cases=suite.cases[:1])
    assert forecast.total_seconds(suite, shelf, CARD) == forecast.total_seconds(alone, shelf, CARD)
    assert _missing(suite, shelf) == 1
    assert _missing(suite._replace(protocol=Protocol(trials=3)), shelf) == 3
