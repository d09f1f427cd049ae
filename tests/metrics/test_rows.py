"""The table of metrics: which there are, what they are called, and that none invents a number."""

from __future__ import annotations

import math
from typing import Any

import pytest

from efficientllm import record as r
from efficientllm.analysis.table import rows
from efficientllm.metrics import BY_KEY, METRICS, Metric, Unmeasured, View
from efficientllm.spec.case import Case
from tests import samples

KEYS = """
train_tokens_per_s samples_per_s it_tokens_per_s prefill_tokens_per_s step_p50_s ttft_s tpot_s
load_s compile_s peak_allocated_gib peak_reserved_gib device_used_gib host_peak_rss_gib
weights_gib gradients_gib optimizer_gib activations_gib kv_cache_gib kv_bytes_per_token energy_j
j_per_token net_j_per_token j_per_step j_per_request aec_w mfu mfu_fullattn mbu roofline_share
sm_active tensor_active dram_active perplexity bits_per_byte final_loss tokens_per_param
quality_retained size_ratio size_ratio_disk bits_per_param mcr total_params trainable_params
active_params amu_gib amu_share pcu_busy_share al_s tt_tokens_per_param_s st_samples_per_param_s
""".split()

UNITS = {
    "_gib": "GiB",
    "_tokens_per_s": "token/s",
    "samples_per_s": "1/s",
    "_per_param_s": "1/s",
    "_p50_s": "s",
    "ttft_s": "s",
    "tpot_s": "s",
    "al_s": "s",
    "load_s": "s",
    "compile_s": "s",
    "bytes_per_token": "B",
    "_j": "J",
    "j_per_token": "J",
    "j_per_step": "J",
    "j_per_request": "J",
    "_w": "W",
    "_share": "share",
    "_active": "share",
    "bits_per_byte": "bit/B",
    "bits_per_param": "bit",
}


def test_the_keys_are_those_that_were_promised() -> None:
    assert sorted(metric.key for metric in METRICS) == sorted(KEYS)
    assert len(set(KEYS)) == len(METRICS) == len(BY_KEY)


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.key)
def test_every_metric_says_what_it_is(metric: Metric) -> None:
    assert len(metric.definition) > 12
    assert metric.definition.endswith(".")
    assert metric.label
    assert metric.stages
    units = {unit for suffix, unit in UNITS.items() if metric.key.endswith(suffix)}
    assert not units or metric.unit in units, f"{metric.key} in {metric.unit}"


def test_labels_tell_metrics_apart() -> None:
    labels = [metric.label for metric in METRICS]
    assert len(set(labels)) == len(labels)


def test_the_papers_symbols_are_all_there() -> None:
    symbols = {metric.symbol for metric in METRICS if metric.symbol}
    assert symbols == {"IT", "AEC", "PPL", "MCR", "AMU", "PCU", "AL", "TT", "ST"}


def test_counts_are_exact_and_nothing_that_scatters_is() -> None:
    assert {metric.key for metric in METRICS if metric.kind == "exact"} == {
        "weights_gib",
        "gradients_gib",
        "optimizer_gib",
        "kv_cache_gib",
        "kv_bytes_per_token",
        "size_ratio",
        "size_ratio_disk",
        "bits_per_param",
        "total_params",
        "trainable_params",
        "active_params",
    }


def view(record: r.Record) -> View:
    return View(record, record.points[0])


def a_training_record(**changes: Any) -> r.Record:
    point = samples.record(samples.pretrain()).points[0]
    held = {"weights": 1 << 20, "gradients": 1 << 20, "optimizer": 1 << 21}
    fields: dict[str, Any] = {
        "points": (point.model_copy(update={"holdings": held}),),
        "losses": (3.0, 2.0),
        "phases": (r.Phase(name="load", start_ns=0, end_ns=10**9),),
    }
    return samples.record(samples.pretrain(), **fields | changes)


COMPLETE = {
    "generate": samples.record(phases=(r.Phase(name="load", start_ns=0, end_ns=10**9),)),
    "training": a_training_record(),
    "cpu": samples.record(machine=samples.CPU_MACHINE),
    "smallest": samples.record(
        build=None, scores=None, readings=(), resolved={}, points=samples.record().points
    ),
    "no samples": samples.record(readings=()),
    "no windows": samples.record(windows=[]),
    "empty windows": samples.record(
        windows=[
            w.model_copy(update={"unit_s": (), "end_ns": w.start_ns})
            for w in samples.generate_windows()
        ]
    ),
}


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.key)
def test_a_value_is_finite_and_a_missing_one_has_its_reason(metric: Metric) -> None:
    for name, record in COMPLETE.items():
        value = metric(view(record))
        if isinstance(value, Unmeasured):
            assert len(value.reason) > 5, name
        else:
            assert math.isfinite(value), name
            assert value > 0 or metric.key in ("trainable_params", "activations_gib"), name


@pytest.mark.parametrize("status", ["out_of_memory", "crash", "timeout", "nan"])
@pytest.mark.parametrize("case", [samples.case(), samples.pretrain()], ids=["generate", "pretrain"])
def test_a_trial_that_ended_early_has_reasons_and_no_numbers(status: Any, case: Case) -> None:
    outcome = r.Outcome(status=status, reason="it ended")
    nothing = {"build": None, "scores": None, "readings": (), "phases": ()}
    record = samples.record(case, outcome=outcome, **nothing)
    (row,) = rows([record])
    for metric in METRICS:
        value = metric(row.views[0])
        assert isinstance(value, Unmeasured), metric.key
        assert len(value.reason) > 5, metric.key


def test_a_failed_point_gives_its_own_end_as_the_reason() -> None:
    outcome = r.Outcome(status="out_of_memory", reason="tried to allocate 2 GiB")
    point = samples.record().points[0].model_copy(update={"windows": (), "outcome": outcome})
    value = BY_KEY["tpot_s"](view(samples.record(points=(point,))))
    assert value == Unmeasured("out_of_memory: tried to allocate 2 GiB")


def test_a_metric_of_another_stage_says_so() -> None:
    assert BY_KEY["mbu"](view(a_training_record())) == Unmeasured("not a metric of pretrain")
    assert BY_KEY["final_loss"](view(samples.record())) == Unmeasured("not a metric of generate")
