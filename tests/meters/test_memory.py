"""Views of memory that must not be confused: the card's, the process's, the allocator's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from efficientllm.meters import MeterGone
from efficientllm.meters.memory import AllocatorMemory, DeviceMemory, ProcessMemory
from tests.fakes import card_of, lay_out

MIB = 1 << 20


def test_device_memory_leaves_out_what_the_driver_keeps(tmp_path: Path) -> None:
    card = card_of(lay_out(tmp_path, card={"used_bytes": 7 * MIB}))
    assert card.nvmlDeviceGetMemoryInfo(card.UUID).used == 519 * MIB
    assert DeviceMemory(card, card.UUID).read() == (7.0 * MIB,)


def test_device_memory_of_a_lost_card_is_gone(tmp_path: Path) -> None:
    card = card_of(lay_out(tmp_path, card={"lost_after": 0}))
    meter = DeviceMemory(card, card.UUID)
    card.nvmlDeviceGetTotalEnergyConsumption(card.UUID)
    with pytest.raises(MeterGone, match="GPU is lost"):
        meter.read()


def test_process_memory_is_that_of_the_process_asked_for() -> None:
    code = "x = bytearray(200 << 20); print(flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        meter = ProcessMemory(process.pid)
        row = meter.read()
        assert row is not None
        assert row[0] is not None
        assert 200 * MIB < row[0] < 300 * MIB
        process.communicate(b"\n")
    assert meter.read() is None, "nothing new of a process that has ended"


def resident() -> int:
    peak = AllocatorMemory(torch.device("cpu")).peaks()["host_peak_rss"]
    assert peak is not None
    return peak


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks cannot restart")
def test_a_spike_that_is_freed_again_stays_in_the_peak_until_it_is_restarted() -> None:
    memory = AllocatorMemory(torch.device("cpu"))
    memory.restart()
    before = resident()
    spike = torch.ones(64 * MIB, dtype=torch.float32)
    del spike
    assert resident() - before > 240 * MIB
    memory.restart()
    assert resident() - before < 64 * MIB


def test_a_cpu_has_no_allocator_peak_and_never_shows_zero() -> None:
    memory = AllocatorMemory(torch.device("cpu"))
    assert memory.now() is None
    peaks = memory.peaks()
    assert peaks["peak_allocated"] is peaks["peak_reserved"] is None


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks cannot restart")
def test_what_is_done_aside_is_in_no_peak_of_the_host() -> None:
    memory = AllocatorMemory(torch.device("cpu"))
    memory.restart()
    before = memory.peaks()["host_peak_rss"]
    with memory.aside():
        spike = torch.ones(64 * MIB, dtype=torch.float32)
        del spike
    after = memory.peaks()["host_peak_rss"]
    assert before is not None
    assert after is not None
    assert after - before < 64 * MIB


def test_peaks_from_before_and_after_an_aside_are_one_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = AllocatorMemory(torch.device("cpu"))
    allocated, retries = [10, 99, 7, 12], [1, 5, 2, 0]

    def peaks() -> dict[str, int | None]:
        both = {"peak_allocated": allocated[0], "alloc_retries": retries[0]}
        return both | {"peak_reserved": None}

    def reset() -> None:
        allocated.pop(0)
        retries.pop(0)

    monkeypatch.setattr(memory, "_peaks", peaks)
    monkeypatch.setattr(memory, "_reset", reset)
    with memory.aside():
        reset()  # what the aside itself reaches: 99, and 5 retries
    expected: dict[str, int | None] = {"peak_allocated": 10, "alloc_retries": 3}
    assert memory.peaks() == expected | {"peak_reserved": None}
    memory.restart()
    assert memory.peaks() == {"peak_allocated": 12, "alloc_retries": 0, "peak_reserved": None}
