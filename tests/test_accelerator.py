"""The quickstart from end to end on an accelerator that is not there.

Worker, sampler, launcher, store and analysis run as on a GPU. What is made up: the card
that NVML shows (`tests/fakes/pynvml.py`), whose energy is known in closed form, and the
device that torch opens (`tests/fakes/accelerator.py`), whose tensors lie on the CPU.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from efficientllm import worker
from efficientllm.analysis.checks import flags
from efficientllm.launch import Launcher
from efficientllm.machine import Gpu, choose_gpu
from efficientllm.metrics import BY_KEY, Unmeasured, View
from efficientllm.metrics.energy import Energy, window_energy
from efficientllm.plan import Planned
from efficientllm.record import Record, Window
from efficientllm.results import load
from efficientllm.spec.case import Case
from efficientllm.spec.protocol import Protocol
from efficientllm.spec.suite import load_suite
from efficientllm.store import Store
from tests.fakes import accelerator, card_of, lay_out, put_on_path

pytestmark = pytest.mark.slow

CARD = {
    "watts": 280.0,
    "high_watts": 320.0,
    "period_s": 0.5,
    "used_bytes": 5 << 28,
    "busy_percent": 3,
    "reasons": 4,
}


PROBES = {"probe", "dying sampler"}


class World:
    """The folder with the stand-ins, the card as the parent sees it, and the store."""

    def __init__(self, folder: Path) -> None:
        self.fakes, self.store = folder / "fakes", Store(folder / "store")
        gpu = choose_gpu(None)
        assert gpu is not None
        self.gpu: Gpu = gpu

    def change(self, scenario: dict[str, Any]) -> None:
        """What samplers that start from now on see."""
        (self.fakes / "scenario.json").write_text(json.dumps(CARD | scenario))

    def joules(self, start_ns: int, end_ns: int) -> float:
        card = card_of(self.fakes)
        return float(card.joules(end_ns / 1e9) - card.joules(start_ns / 1e9))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("accelerator")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")  # two threads on a busy machine wait for each other
        put_on_path(patch, lay_out(folder / "fakes", customize="accelerator", card=CARD))
        yield World(folder)


@pytest.fixture(scope="module")
def records(world: World) -> dict[str, Record]:
    """The quickstart, small and under `smoke`, and five seconds of sleep under `quick`."""
    text = (resources.files("efficientllm") / "suites" / "quickstart.yaml").read_text("utf-8")
    few = {"steps": 6, "sequence_length": 64, "batch": 2, "max_bytes": 2048, "new_tokens": 4}
    for key, number in few.items():
        text = re.sub(rf"{key}: \d+", f"{key}: {number}", text)
    text = text.replace("context: [128]", "context: [32]")
    path = world.store.root.parent / "quickstart.yaml"
    path.write_text(text)
    suite = load_suite(str(path), ("protocol=smoke",))
    made = {}
    with Launcher(world.store, world.gpu) as launcher:
        world.change({"watts": 300.0, "high_watts": 300.0})
        launcher.measure_idle(Protocol(profile="quick"))
        world.change({})
        for case in suite.cases:
            made[case.name] = run(launcher, case, suite.protocol)
        made["probe"] = run(launcher, probe("probe"), Protocol(profile="quick"))
        world.change({"segfault_after": 100})
        made["dying sampler"] = run(launcher, probe("dying sampler"), suite.protocol)
    return made


def probe(name: str) -> Case:
    quality = {"max_bytes": len(name)}  # tells one from the other
    return Case.model_validate(
        {"model": "none", "workload": "probe", "name": name, "quality": quality}
    )


def run(launcher: Launcher, case: Case, protocol: Protocol) -> Record:
    record = launcher.run(Planned(case, 0, 0), protocol, suite="quickstart")
    assert record is not None
    return record


def probe_view(records: dict[str, Record]) -> View:
    return View(records["probe"], records["probe"].points[0])


def levels(view: View) -> dict[str, str]:
    return {flag.code: flag.level for flag in flags(view)}


def test_every_case_of_the_quickstart_runs_or_says_what_it_lacks(
    records: dict[str, Record],
) -> None:
    outcomes = {name: record.outcome.status for name, record in records.items()}
    no_cuda = outcomes.pop("generate-int4")
    assert set(outcomes.values()) == {"ok"}
    assert len(outcomes) == 11
    assert no_cuda == "unsupported"
    assert records["generate-int4"].outcome.reason.startswith("int4 (tinygemm")


def test_each_stage_starts_from_the_weights_of_the_one_before(records: dict[str, Record]) -> None:
    for name, record in records.items():
        if record.outcome.status == "ok" and record.trial.name not in PROBES:
            assert record.scores is not None, name
    tuned, generated = records["finetune-full"], records["generate-float32"]
    assert tuned.losses[0] < records["pretrain-gqa"].losses[0] - 0.01
    bits = [BY_KEY["bits_per_byte"](View(r, r.points[0])) for r in (tuned, generated)]
    assert bits[0] == pytest.approx(bits[1], rel=0.01), "the same weights and text"


def test_the_device_was_the_accelerator(records: dict[str, Record]) -> None:
    for name, record in records.items():
        assert record.machine.device_kind == "cuda"
        assert record.machine.device == "NVIDIA H200"
        if record.outcome.status == "ok":
            assert record.resolved["device"] == "fake", name


def test_the_allocators_peaks_are_in_the_record(records: dict[str, Record]) -> None:
    memory = records["pretrain-mha"].points[0].memory
    assert memory["peak_allocated"] == accelerator.PEAK_ALLOCATED
    assert memory["peak_reserved"] == accelerator.PEAK_RESERVED
    assert memory["alloc_retries"] == 0


def test_every_meter_of_the_card_and_of_the_host_was_read(records: dict[str, Record]) -> None:
    on_card = {"energy", "power", "device_memory", "gpm", "clocks"}
    for name, record in records.items():
        if record.outcome.status == "unsupported":
            continue  # it ends before the sampler has to have read anything
        found = {(reading.meter, reading.device) for reading in record.readings}
        assert found == {(m, "gpu") for m in on_card} | {
            ("process_memory", "host"),
            ("host_load", "host"),
        }, name
        assert ("sampler" in record.notes) == (name == "dying sampler")


def test_each_trial_sits_idle_before_it_loads(records: dict[str, Record]) -> None:
    """For two seconds, which the stand-in shortens; the first too, since memory is in use."""
    assert worker.IDLE_SECONDS == 2.0
    for record in records.values():
        names = [phase.name for phase in record.phases]
        assert names[:3] == ["open", "idle", "load"]
        idle = record.phases[1]
        assert (idle.end_ns - idle.start_ns) / 1e9 >= accelerator.IDLE_SECONDS


def test_idle_power_of_the_run_is_the_cards(records: dict[str, Record]) -> None:
    """Level then, and later a wave so low that no moments a busy machine samples are a drift."""
    for record in records.values():
        assert record.resolved["idle_power_w"] == 300.0
    assert "IDLE_DRIFT" not in levels(probe_view(records))


def test_joules_are_those_of_the_cards_closed_form(
    world: World, records: dict[str, Record]
) -> None:
    view = probe_view(records)
    window = view.main_window
    energy = window_energy(view, window)
    assert isinstance(window, Window)
    assert isinstance(energy, Energy), energy
    truth = world.joules(window.start_ns, window.end_ns)
    assert truth == pytest.approx(300.0 * window.seconds, rel=0.05)
    assert energy.joules == pytest.approx(truth, abs=2 * 320.0 * 0.1)
    assert (energy.scope, energy.source) == ("board", "energy counter")


def test_activity_memory_and_busy_share_are_the_cards(records: dict[str, Record]) -> None:
    view = probe_view(records)
    expected = {"sm_active": 0.8, "tensor_active": 0.6, "dram_active": 0.4}
    expected |= {"device_used_gib": 1.25, "pcu_busy_share": 0.03}
    for key, value in expected.items():
        assert BY_KEY[key].formula(view) == pytest.approx(value), key


def test_a_card_in_use_before_the_trial_and_a_capped_clock_are_flagged(
    records: dict[str, Record],
) -> None:
    found = levels(probe_view(records))
    assert (found["SHARED_DEVICE"], found["POWER_CAPPED"]) == ("warn", "info")
    assert {level for level in found.values()} <= {"warn", "info"}


def test_a_sampler_that_dies_in_a_trial_costs_its_energy_and_no_time(
    records: dict[str, Record],
) -> None:
    record = records["dying sampler"]
    (window,) = record.points[0].windows
    assert (record.outcome.status, window.units) == ("ok", 5)
    assert min(window.unit_s) >= 0.05
    assert levels(View(record, record.points[0]))["SAMPLER_DIED"] == "warn"


def test_energy_of_a_window_too_short_for_it_is_null_with_the_reason(
    records: dict[str, Record],
) -> None:
    record = records["pretrain-mha"]
    found = BY_KEY["energy_j"](View(record, record.points[0]))
    assert isinstance(found, Unmeasured)
    assert found.reason.endswith("energy needs 2 s")


def test_the_store_shows_a_row_for_every_case(world: World, records: dict[str, Record]) -> None:
    rows = {row.name: row for row in load(world.store.root).rows()}
    assert set(rows) == set(records) - PROBES
    assert not any(row.ranked for row in rows.values()), "smoke is never ranked"
