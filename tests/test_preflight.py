"""Before a trial: the card as empty as it should be, and a word about who else is there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from efficientllm import clock, machine, preflight
from efficientllm.machine import DeviceError, Gpu
from efficientllm.preflight import wait_for_memory
from tests.fakes import card_of, lay_out

GIB = 1 << 30
MIB = 1 << 20


class Card:
    """The one card, whose memory in use the test sets."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = lay_out(folder, card={})
        monkeypatch.setitem(sys.modules, "pynvml", card_of(folder))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        (self.gpu,) = machine.gpus()

    def show(self, **scenario: Any) -> None:
        (self.folder / "scenario.json").write_text(json.dumps(scenario))


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Card:
    monkeypatch.setattr(preflight, "MEMORY_WAIT_S", 0.0)
    return Card(tmp_path, monkeypatch)


def test_a_cpu_needs_no_preflight() -> None:
    assert wait_for_memory(None) == {}


def test_a_card_that_is_empty_but_for_a_context_is_not_shared(card: Card) -> None:
    card.show(used_bytes=60 * MIB)
    assert wait_for_memory(card.gpu) == {}


@pytest.mark.parametrize(
    ("used", "note"),
    [(300 * MIB, "shared_device"), (3 * GIB, "crowded_device"), (60 * GIB, "crowded_device")],
)
def test_who_else_is_on_the_card_is_noted_by_how_much_they_hold(
    card: Card, used: int, note: str
) -> None:
    card.show(used_bytes=used)
    expected = f"{used / GIB:.2f} GiB of the card were in use before the trial"
    assert wait_for_memory(card.gpu) == {note: expected}


def test_memory_that_a_dead_worker_still_holds_is_waited_for(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the card is in use; two looks later it has been returned."""
    left = [60 * GIB, 60 * GIB, 10 * MIB]
    naps: list[float] = []
    monkeypatch.setattr(preflight, "MEMORY_WAIT_S", 60.0)
    monkeypatch.setattr(clock, "sleep", naps.append)
    card.show(used_bytes=left[0])

    def gpus() -> list[Gpu]:
        return [card.gpu._replace(foreign_bytes=left[len(naps)])]

    monkeypatch.setattr(machine, "gpus", gpus)
    assert wait_for_memory(card.gpu) == {}
    assert len(naps) == 2


def test_a_card_that_is_gone_ends_the_run(card: Card) -> None:
    card.show(missing=True)
    with pytest.raises(DeviceError, match=r"NVIDIA H200.* is not there any more"):
        wait_for_memory(card.gpu)
