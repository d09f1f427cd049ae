"""Shares of the hardware's limits, from FLOPs and bytes counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

from efficientllm import record as r
from efficientllm.catalog.backbone import backbone_shape
from efficientllm.catalog.shape import Shape
from efficientllm.metrics import BY_KEY, Ceiling, Unmeasured, View
from efficientllm.metrics.compute import decode_bytes, multiplied_dtype
from efficientllm.spec.case import Case
from efficientllm.spec.model import Backbone
from tests import samples

H200_FLOPS, H200_BYTES = 989e12, 4.8e12
LAYERS = 4 * (2 * 128**2 + 2 * 128 * 64 + 3 * 128 * 384)  # weights that a token multiplies
HEAD = 2048 * 128
WEIGHTS = 2 * 1_050_752  # bytes in bf16
PER_PAIR = 4 * 4 * 4 * 32  # 2 products x 2 FLOPs, layers, heads, head_dim
CACHE = 4 * 2 * 2 * 32 * 2  # layers, k and v, heads, head_dim, bytes


def view(record: r.Record, **fields: Any) -> View:
    return View(record, record.points[0], **fields)


def value(key: str, record: r.Record, **fields: Any) -> float:
    found = BY_KEY[key](view(record, **fields))
    assert not isinstance(found, Unmeasured), found.reason
    return found


def reason(key: str, record: r.Record, **fields: Any) -> str:
    found = BY_KEY[key](view(record, **fields))
    assert isinstance(found, Unmeasured)
    return found.reason


def shaped(**changes: Any) -> r.Build:
    """The sample build with another shape."""
    base = backbone_shape(Backbone(preset="tiny"))
    shape = Shape.model_validate(base.model_dump() | changes)
    return samples.build(shape=shape.model_dump(exclude={"sources", "note"}))


def test_training_divides_six_flops_a_weight_and_causal_attention_by_the_peak() -> None:
    tokens, pairs = 400 * 1024, 400 * 1024 * 1025 / 2
    flops = 3 * (2 * tokens * (LAYERS + HEAD) + pairs * PER_PAIR)
    record = samples.record(samples.pretrain())
    assert value("mfu", record) == pytest.approx(flops / 10 / H200_FLOPS)


def test_the_other_convention_counts_attention_twice_as_dear() -> None:
    record = samples.record(samples.pretrain())
    square = 3 * 400 * 1024**2 * PER_PAIR
    causal = 3 * 400 * 1024 * 1025 / 2 * PER_PAIR
    more = value("mfu_fullattn", record) - value("mfu", record)
    assert more == pytest.approx((square - causal) / 10 / H200_FLOPS)


@pytest.mark.parametrize(
    "attention", [{"sliding_window": 256}, {"sparse": {"block": 64, "selected": 4, "window": 256}}]
)
def test_what_never_attends_to_all_tokens_has_no_full_attention_convention(attention: Any) -> None:
    """It would count pairs that the algorithm never has: several times its peak at 64k."""
    for of in (samples.case(), samples.pretrain()):
        record = samples.record(of, build=shaped(**attention))
        assert value("mfu", record) > 0
        assert reason("mfu_fullattn", record).startswith("a window or chosen blocks never")
    wide = samples.record(build=shaped(sliding_window=1024))
    assert value("mfu_fullattn", wide) > value("mfu", wide), "a window over the whole row"


def test_prefill_counts_the_head_once_a_prompt() -> None:
    flops = 2 * 1024 * LAYERS + 1024 * 1025 / 2 * PER_PAIR + 2 * HEAD
    assert value("mfu", samples.record()) == pytest.approx(flops / 0.1 / H200_FLOPS)
    square = 2 * 1024 * LAYERS + 1024**2 * PER_PAIR + 2 * HEAD
    assert value("mfu_fullattn", samples.record()) == pytest.approx(square / 0.1 / H200_FLOPS)


def test_decode_reads_the_weights_once_a_step_and_the_visible_cache() -> None:
    read = WEIGHTS + 1088 * CACHE  # 1,024 tokens of prompt and 64 new ones on average
    assert value("mbu", samples.record()) == pytest.approx(read / 0.01 / H200_BYTES)


def test_an_untied_table_is_looked_up_and_not_read() -> None:
    untied = shaped(tied=False)
    table = 2 * HEAD
    build = untied.model_copy(
        update={"bytes_by_kind": {"embedding": table, "head": table, "other": WEIGHTS - table}}
    )
    for record, weights in (
        (samples.record(), WEIGHTS),
        (samples.record(build=build), WEIGHTS),  # the head instead of the table
    ):
        counted = decode_bytes(view(record))
        assert not isinstance(counted, Unmeasured)
        total, window = counted
        assert total == pytest.approx(1000 * (weights + 1088 * CACHE))
        assert window.name == "decode"


def test_a_float32_cache_is_read_at_four_bytes() -> None:
    record = samples.record(resolved={"device": "cuda", "activations": "float32"})
    counted = decode_bytes(view(record))
    assert not isinstance(counted, Unmeasured)
    assert counted[0] == pytest.approx(1000 * (WEIGHTS + 1088 * 2 * CACHE))


def test_quantized_weights_are_read_at_their_own_size() -> None:
    build = samples.build(bytes_by_kind={"embedding": 2 * HEAD, "attention": 1000, "norm": 24})
    counted = decode_bytes(view(samples.record(build=build)))
    assert not isinstance(counted, Unmeasured)
    assert counted[0] == pytest.approx(1000 * (2 * HEAD + 1024 + 1088 * CACHE))


def test_what_a_mixture_reads_is_not_guessed() -> None:
    build = shaped(arch="moe", experts={"count": 8, "per_token": 2, "ffn": 96})
    assert reason("mbu", samples.record(build=build)) == (
        "which experts were read is not counted yet"
    )


def test_the_share_of_a_machines_own_ceiling() -> None:
    ceiling = Ceiling(flops=700e12, bytes_per_s=4.3e12)
    training = samples.record(samples.pretrain())
    assert value("roofline_share", training, ceiling=ceiling) == pytest.approx(
        value("mfu", training) * H200_FLOPS / 700e12
    )
    generating = samples.record()
    assert value("roofline_share", generating, ceiling=ceiling) == pytest.approx(
        value("mbu", generating) * H200_BYTES / 4.3e12
    )
    assert "run efficientllm doctor" in reason("roofline_share", training)


@pytest.mark.parametrize("key", ["mfu", "mfu_fullattn", "mbu"])
def test_without_a_peak_there_is_no_share_of_it(key: str) -> None:
    unknown = samples.MACHINE.model_copy(update={"device": "Wonder Chip 9000"})
    assert reason(key, samples.record(machine=unknown)) == (
        "no peak known for Wonder Chip 9000; declare one: --peaks"
    )
    assert "a CPU has no datasheet" in reason(key, samples.record(machine=samples.CPU_MACHINE))


def test_a_declared_peak_is_used() -> None:
    unknown = samples.MACHINE.model_copy(update={"device": "Wonder Chip 9000"})
    declared = {
        "id": "wonder",
        "match": ["Wonder"],
        "memory_gib": 100.0,
        "bandwidth_tb_s": 2.4,
        "power_w": 500.0,
        "peak": {"bf16": 494.5},
        "source": "its maker",
    }
    record = samples.record(machine=unknown, declared_peak=declared)
    assert value("mfu", record) == pytest.approx(2 * value("mfu", samples.record()))
    assert value("mbu", record) == pytest.approx(2 * value("mbu", samples.record()))


def test_another_card_of_the_family_has_its_own_peak() -> None:
    nvl = samples.MACHINE.model_copy(update={"device": "NVIDIA H200 NVL"})
    record = samples.record(machine=nvl)
    assert value("mfu", record) == pytest.approx(value("mfu", samples.record()) * 989 / 835)


def test_a_type_that_the_maker_states_no_peak_for_has_no_share() -> None:
    a100 = samples.MACHINE.model_copy(update={"device": "NVIDIA A100-SXM4-80GB"})
    declared = {
        "id": "old",
        "match": ["A100"],
        "memory_gib": 80.0,
        "bandwidth_tb_s": 2.0,
        "power_w": 400.0,
        "peak": {"bf16": 312.0},
        "source": "its maker",
    }
    case = samples.case(technique="int8-dynamic")
    record = samples.record(case, machine=a100, declared_peak=declared)
    assert reason("mfu", record) == "old states no int8 peak"


def test_a_family_without_a_formula_has_no_flops() -> None:
    for key in ("mfu", "mfu_fullattn", "mbu"):
        assert "no FLOP formula" in reason(key, samples.record(build=samples.build(shape=None)))


@pytest.mark.parametrize(
    ("technique", "activations", "expected"),
    [
        ("bf16", "bf16", "bf16"),
        ("fp16", "fp16", "fp16"),
        ("float32", "float32", "float32"),
        ("int8", "bf16", "bf16"),
        ("int4", "bf16", "bf16"),
        ("int8-dynamic", "bf16", "int8"),
        (None, "bf16", "bf16"),
        (None, "float32", "float32"),  # a checkpoint that is stored so
        (None, "fp16", "fp16"),
    ],
)
def test_generation_multiplies_in_the_type_it_holds(
    technique: str | None, activations: str, expected: str
) -> None:
    case = samples.case(technique=technique)
    assert multiplied_dtype(case, activations=activations) == expected
    record = samples.record(case, resolved={"device": "cuda", "activations": activations})
    peak = {"bf16": 989, "fp16": 989, "float32": 67, "int8": 1979}[expected]
    assert value("mfu", record) == pytest.approx(
        value("mfu", samples.record()) * 989 / peak, rel=1e-9
    )


@pytest.mark.parametrize(
    ("precision", "tf32", "peak"),
    [
        ({"params": "float32", "compute": "bf16"}, "highest", 989),
        ({"params": "float32", "compute": "float32"}, "highest", 67),
        ({"params": "float32", "compute": "float32"}, "high", 494),
        ({"params": "float32", "compute": "fp16"}, "highest", 989),
    ],
)
def test_training_multiplies_in_its_compute_type(
    precision: dict[str, str], tf32: str, peak: float
) -> None:
    workload = {"kind": "pretrain", "sequence_length": 1024, "batch": 4, "precision": precision}
    case: Case = samples.pretrain(workload=workload)
    record = samples.record(case, resolved={"device": "cuda", "tf32": tf32})
    expected = value("mfu", samples.record(samples.pretrain())) * 989 / peak
    assert value("mfu", record) == pytest.approx(expected)


def series(meter: str, **columns: float | None) -> r.Reading:
    """One sample a second, all alike, over the whole trial."""
    times = tuple(samples.START_NS + i * samples.SECOND for i in range(80))
    return r.Reading(
        meter=meter,
        device="gpu",
        t_ns=times,
        columns={name: (level,) * 80 for name, level in columns.items()},
    )


def test_activity_is_the_mean_of_its_counter_over_the_window() -> None:
    gpm = series("gpm", sm_active=0.75, tensor_active=0.5, dram_active=0.25)
    record = samples.record(readings=(gpm, series("clocks", busy_share=1.0)))
    assert value("sm_active", record) == pytest.approx(0.75)
    assert value("tensor_active", record) == pytest.approx(0.5)
    assert value("dram_active", record) == pytest.approx(0.25)
    assert value("pcu_busy_share", record) == pytest.approx(1.0)


def test_activity_outside_the_window_does_not_count() -> None:
    times = tuple(samples.START_NS + i * samples.SECOND for i in range(80))
    # decode runs from second 30 to 40
    levels = tuple(0.9 if 30 <= i <= 40 else 0.0 for i in range(80))
    gpm = r.Reading(meter="gpm", device="gpu", t_ns=times, columns={"sm_active": levels})
    assert value("sm_active", samples.record(readings=(gpm,))) == pytest.approx(0.9)


def test_a_missing_counter_gives_the_note_that_the_trial_left() -> None:
    notes = {"gpm": "GPM is not supported before Hopper"}
    record = samples.record(readings=(), notes=notes)
    assert reason("sm_active", record) == "GPM is not supported before Hopper"
    empty = series("gpm", sm_active=None)
    assert reason("sm_active", samples.record(readings=(empty,))) == (
        "no sample fell into the window"
    )


OWN_LAYERS = 4 * 3 * 128 * 384  # the feed-forward alone: what else is multiplied, it states
STATED = 5e9


def own(record: r.Record, **counts: float) -> r.Record:
    """The record as of an attention from a file, with what it states in the first windows."""
    windows = [
        w.model_copy(update={"counts": w.counts | counts if w.name != "request" else w.counts})
        for w in record.points[0].windows
    ]
    point = record.points[0].model_copy(update={"windows": tuple(windows)})
    return record.model_copy(update={"points": (point,), "build": shaped(custom="Mine")})


def test_an_attention_of_ones_own_states_its_flops_and_trains_at_three_times_them() -> None:
    tokens = 400 * 1024
    record = own(samples.record(samples.pretrain()), attention_flops=STATED)
    flops = 3 * (2 * tokens * (OWN_LAYERS + HEAD) + STATED)
    assert value("mfu", record) == pytest.approx(flops / 10 / H200_FLOPS)
    assert reason("mfu_fullattn", record) == "Mine states its FLOPs in one convention only"


def test_its_prefill_and_the_bytes_that_its_decode_reads_are_as_stated() -> None:
    record = own(samples.record(), attention_flops=100 * STATED, cache_read_bytes=1000 * 7e5)
    flops = 2 * 1024 * OWN_LAYERS + STATED + 2 * HEAD
    assert value("mfu", record) == pytest.approx(flops / 0.1 / H200_FLOPS)
    assert value("mbu", record) == pytest.approx((WEIGHTS + 7e5) / 0.01 / H200_BYTES)


def test_what_it_does_not_state_is_null_with_the_reason() -> None:
    ceiling = Ceiling(flops=700e12, bytes_per_s=4.3e12)
    training, generating = own(samples.record(samples.pretrain())), own(samples.record())
    for key, record in (("mfu", training), ("mfu", generating), ("mbu", generating)):
        assert "Mine states no cost for this work" in reason(key, record)
        assert "Mine states no cost" in reason("roofline_share", record, ceiling=ceiling)
