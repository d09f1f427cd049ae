"""Memory by hand; the mean in use is neither a peak nor traffic."""

from __future__ import annotations

import pytest

from efficientllm import record as r
from efficientllm.metrics import BY_KEY, Unmeasured, View
from tests import samples

GIB = 2**30
SECOND = samples.SECOND


def value(key: str, record: r.Record) -> float:
    found = BY_KEY[key](View(record, record.points[0]))
    assert not isinstance(found, Unmeasured), found.reason
    return found


def reason(key: str, record: r.Record) -> str:
    found = BY_KEY[key](View(record, record.points[0]))
    assert isinstance(found, Unmeasured)
    return found.reason


def memory(*samples_: tuple[float, int | None], meter: str = "device_memory") -> r.Reading:
    column = "used_bytes" if meter == "device_memory" else "resident_bytes"
    return r.Reading(
        meter=meter,
        device="gpu",
        t_ns=tuple(samples.START_NS + round(t * SECOND) for t, _ in samples_),
        columns={column: tuple(b for _, b in samples_)},
    )


def training(**holdings: int) -> r.Record:
    record = samples.record(samples.pretrain())
    point = record.points[0].model_copy(update={"holdings": holdings})
    return record.model_copy(update={"points": (point,)})


def test_peaks_are_the_allocators_and_the_processs_own() -> None:
    record = samples.record()
    assert value("peak_allocated_gib", record) == 2.0
    assert value("peak_reserved_gib", record) == 3.0
    assert value("host_peak_rss_gib", record) == 1.0


def test_a_cpu_has_no_allocator_peak_and_says_where_to_look() -> None:
    record = samples.record(machine=samples.CPU_MACHINE)
    point = record.points[0].model_copy(update={"memory": {"host_peak_rss": GIB}})
    record = record.model_copy(update={"points": (point,)})
    assert "host_peak_rss_gib" in reason("peak_allocated_gib", record)
    assert "host_peak_rss_gib" in reason("activations_gib", record)
    assert value("host_peak_rss_gib", record) == 1.0


def test_holdings_are_bytes_in_gib() -> None:
    record = training(weights=1 << 28, gradients=1 << 28, optimizer=1 << 29)
    assert value("gradients_gib", record) == 0.25
    assert value("optimizer_gib", record) == 0.5
    assert value("weights_gib", record) == 2 * 1_050_752 / GIB  # from the build, as it is held


def test_activations_are_what_is_left_of_the_peak() -> None:
    record = training(gradients=1 << 28, optimizer=1 << 29)
    assert value("activations_gib", record) == pytest.approx(2 - 0.75 - 2 * 1_050_752 / GIB)
    cramped = training(gradients=4 << 30)
    assert value("activations_gib", cramped) == 0.0


def test_the_cache_weighs_what_was_allocated_and_each_token_its_share() -> None:
    # one sequence of 1,152 slots: 1,024 and 128 new tokens, a multiple of 64
    assert value("kv_cache_gib", samples.record()) == 1152 * 1024 / GIB
    assert value("kv_bytes_per_token", samples.record()) == 1024  # 4 layers x 2 x 2 x 32 x 2


def test_slots_are_allocated_by_the_sixty_four() -> None:
    case = samples.case(workload={"kind": "generate", "points": {"batch": [3], "context": [1000]}})
    record = samples.record(case)  # 1,128 positions in 1,152 slots
    held = {"kv_cache": 3 * 1152 * 1024}
    record = record.model_copy(
        update={"points": (record.points[0].model_copy(update={"holdings": held}),)}
    )
    assert value("kv_bytes_per_token", record) == 1024


def test_a_device_that_is_half_full_has_a_mean_of_one_half_whatever_its_traffic() -> None:
    half = samples.MACHINE.device_memory_bytes // 2
    used = memory(*((t, half) for t in range(80)))
    idle = r.Reading(
        meter="gpm", device="gpu", t_ns=used.t_ns, columns={"dram_active": (0.0,) * len(used.t_ns)}
    )
    record = samples.record(readings=(used, idle))
    assert value("amu_share", record) == pytest.approx(0.50)
    assert value("amu_gib", record) == pytest.approx(half / GIB)
    assert value("device_used_gib", record) == pytest.approx(half / GIB)
    assert value("dram_active", record) == 0.0


def test_the_mean_is_weighted_by_time_and_not_by_samples() -> None:
    # decode runs from second 30 to 40: nine seconds at 10 GiB, then many samples at 20 GiB
    dense = [(39 + i / 100, 20 * GIB) for i in range(101)]
    record = samples.record(readings=(memory((0, 0), (30, 10 * GIB), *dense, (60, 0)),))
    assert value("amu_gib", record) == pytest.approx(11.0, rel=1e-3)
    assert value("device_used_gib", record) == 20.0


def test_a_spike_outside_the_window_is_not_in_it() -> None:
    record = samples.record(
        readings=(memory((5, 100 * GIB), (30, 10 * GIB), (40, 10 * GIB), (45, 90 * GIB)),)
    )
    assert value("amu_gib", record) == 10.0
    assert value("device_used_gib", record) == 10.0


def test_a_cpu_counts_the_resident_memory_of_its_process() -> None:
    resident = memory(*((t, 32 * GIB) for t in range(80)), meter="process_memory")
    record = samples.record(machine=samples.CPU_MACHINE, readings=(resident,))
    assert value("amu_gib", record) == 32.0
    assert value("amu_share", record) == 0.25  # of 128 GiB
    assert reason("device_used_gib", record) == "no card, so no device memory"


def test_memory_that_nobody_sampled_has_a_reason() -> None:
    assert reason("amu_gib", samples.record(readings=())) == "memory was not sampled"
    noted = samples.record(readings=(), notes={"nvml": "libnvidia-ml.so.1 not found"})
    assert reason("amu_gib", noted) == "libnvidia-ml.so.1 not found"
    assert reason("device_used_gib", noted) == "libnvidia-ml.so.1 not found"
    late = samples.record(readings=(memory((70, GIB), (71, GIB)),))
    assert reason("amu_gib", late) == "no sample fell into the window"
