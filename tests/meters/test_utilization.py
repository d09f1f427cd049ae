"""Activity and clocks of a card."""

from __future__ import annotations

from pathlib import Path

import pytest

from efficientllm.meters import MeterGone
from efficientllm.meters.utilization import Clocks, Gpm
from tests.fakes import card_of, lay_out


def test_activities_are_shares_and_not_percentages(tmp_path: Path) -> None:
    card = card_of(lay_out(tmp_path, card={}))
    meter = Gpm(card, card.UUID)
    assert meter.columns == ("sm_active", "tensor_active", "dram_active")
    assert meter.read() == pytest.approx((0.8, 0.6, 0.4))


def test_one_activity_that_is_not_there_leaves_the_others(tmp_path: Path) -> None:
    card = card_of(lay_out(tmp_path, card={}))
    meter = Gpm(card, card.UUID)
    answer = card.nvmlGpmMetricsGet

    def without_dram(request: object) -> None:
        answer(request)
        request.metrics[2].nvmlReturn = card.NVML_ERROR_NOT_SUPPORTED  # type: ignore[attr-defined]

    card.nvmlGpmMetricsGet = without_dram
    assert meter.read() == (0.8, 0.6, None)


def test_a_card_before_hopper_has_no_activity_counters(tmp_path: Path) -> None:
    card = card_of(lay_out(tmp_path, card={"unsupported": ["nvmlGpmQueryDeviceSupport"]}))
    with pytest.raises(card.NVMLError, match="Not Supported"):
        Gpm(card, card.UUID)


def test_clocks_heat_and_reasons_are_one_row(tmp_path: Path) -> None:
    scenario = {"sm_mhz": 1755, "temperature_c": 61, "reasons": 0x44, "busy_percent": 97}
    card = card_of(lay_out(tmp_path, card=scenario))
    assert Clocks(card, card.UUID).read() == (1755.0, 61.0, 68.0, 0.97)


def test_one_clock_question_unanswered_is_one_null(tmp_path: Path) -> None:
    card = card_of(lay_out(tmp_path, card={"unsupported": ["nvmlDeviceGetTemperature"]}))
    assert Clocks(card, card.UUID).read() == (1980.0, None, 0.0, 0.0)


def test_a_card_that_answers_nothing_about_its_clocks_has_no_such_meter(tmp_path: Path) -> None:
    card = card_of(lay_out(tmp_path, card={"lost_after": 0}))
    card.nvmlDeviceGetTotalEnergyConsumption(card.UUID)
    with pytest.raises(MeterGone, match="no question about its clocks"):
        Clocks(card, card.UUID)
