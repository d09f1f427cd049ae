"""Predictions: weights, gradients and states equal what a built model holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from efficientllm import duration, predict
from efficientllm.catalog.peaks import machine_named
from efficientllm.catalog.shape import Shape, presets
from efficientllm.models.checkpoint import build_model, save_checkpoint
from efficientllm.models.decoder import Decoder
from efficientllm.predict import GIB, Memory
from efficientllm.spec.case import Case, Point
from efficientllm.spec.document import SpecError
from efficientllm.spec.protocol import Protocol
from efficientllm.spec.suite import load_suite
from efficientllm.spec.workload import AdamW, Training
from efficientllm.techniques import apply
from efficientllm.techniques.build import DTYPES, Build, bytes_by_kind, tensor_bytes
from efficientllm.workloads.train import optimizer
from tests import tiny

CPU = torch.device("cpu")
PURE = {"params": "bf16", "optimizer_state": "bf16"}


def case(**parts: Any) -> Case:
    return Case.model_validate({"model": "backbone-tiny", "workload": "generate"} | parts)


def memory(of: Case) -> Memory:
    shape = predict.shape_of(of)
    assert shape is not None
    return predict.memory(of, shape, of.points[0])


def built(of: Case) -> Build:
    """The case's model with its techniques, as a worker has it before the first step."""
    kinds = [t.kind for t in of.technique if t.kind in DTYPES]
    if isinstance(of.workload, Training) and not kinds:
        kinds = [of.workload.precision.params]
    model, shape = build_model(of.model, CPU, DTYPES[kinds[0]] if kinds else None, 0, "")
    build = Build(model, shape, CPU, weights_random=True)
    for technique in of.technique:
        build.reach.append(apply(build, technique))
    return build


def held(build: Build) -> int:
    return sum(bytes_by_kind(build.model).values())


@pytest.mark.parametrize("preset", ["tiny", "small"])
@pytest.mark.parametrize(
    "technique",
    [
        None,
        "bf16",
        "fp16",
        "float32",
        "int8",
        "int8-dynamic",
        "int4",
        {"kind": "int4", "group_size": 32},
    ],
    ids=str,
)
def test_weights_are_what_a_built_model_holds(preset: str, technique: Any) -> None:
    of = case(model=f"backbone-{preset}", technique=technique)
    assert memory(of).weights == held(built(of))


def test_layers_that_no_group_fits_stay_as_they_are() -> None:
    of = case(model={"kind": "backbone", "preset": "tiny", "ffn": 416}, technique="int4")
    assert memory(of).weights == held(built(of))  # down has 416 inputs: 3.25 groups of 128


def test_int4_bits_include_scales_and_zeros() -> None:
    """4 bits, and 32 for every group: 4.25 bits at a group of 128, 5 at 32."""
    shape = presets()["small"]
    linear = sum(a * b for a, b in predict.linears(shape)) * shape.layers
    rest = predict.parameters(shape).total - linear
    for group, bits in ((128, 4.25), (32, 5.0)):
        of = case(model="backbone-small", technique={"kind": "int4", "group_size": group})
        assert predict.weight_bytes(of, shape) == linear * bits / 8 + rest * 2


def test_experts_are_predicted_as_out_of_reach_of_quantization() -> None:
    sizes = {}
    for technique in ("bf16", "int8", "int4"):
        of = case(model="Mixtral-8x7B-v0.1", technique=technique)
        sizes[technique] = memory(of).weights / GIB
    attention = 32 * 4096 * (2 * 4096 + 2 * 1024)
    assert sizes["bf16"] - sizes["int8"] == pytest.approx(attention / GIB, rel=0.01)
    assert sizes["bf16"] - sizes["int4"] == pytest.approx(attention * 1.47 / GIB, rel=0.01)


@pytest.mark.parametrize(
    ("workload", "technique", "precision"),
    [
        ("pretrain", None, {}),
        ("pretrain", None, PURE),
        ("finetune", "full", {}),
        ("finetune", "full", PURE),
        ("finetune", "freeze", {}),
        ("finetune", "lora", {}),
        ("finetune", "lora", PURE),
        ("finetune", "bf16+lora", {}),
        ("finetune", "int8+lora", {}),
    ],
)
def test_gradients_and_states_are_what_one_real_step_leaves(
    workload: str, technique: str | None, precision: dict[str, str]
) -> None:
    spec = {"kind": workload, "sequence_length": 32, "batch": 2, "precision": precision}
    of = case(workload=spec, technique=technique)
    build = built(of)
    if technique is None:
        build.model.requires_grad_(True)
    steps = optimizer(build.model, AdamW())
    tokens = tiny.tokens(2, 8)
    build.model(tokens, labels=tokens).loss.backward()
    steps.step()
    learned = [p for p in build.model.parameters() if p.requires_grad]
    states = [t for state in steps.state.values() for t in state.values() if t.ndim > 0]
    predicted = memory(of)
    assert predicted.weights == held(build)
    assert predicted.gradients == sum(tensor_bytes(p.grad) for p in learned if p.grad is not None)
    assert predicted.optimizer == sum(map(tensor_bytes, states))
    assert predicted.cache == 0


@pytest.mark.parametrize(("technique", "element"), [("bf16", 2), ("float32", 4)])
def test_the_cache_is_what_the_decoder_allocates(technique: str, element: int) -> None:
    points = {"batch": 3, "context": 100}
    of = case(technique=technique, workload={"kind": "generate", "points": points})
    model = Decoder.from_shape(presets()["tiny"]).to(DTYPES[technique])
    slots = 256  # 100 + 128 new tokens, rounded up to whole 64s
    real = sum(tensor_bytes(t) for layer in model.new_cache(3, slots) for t in layer)
    assert memory(of).cache == real == 4 * 2 * 2 * 32 * 3 * slots * element


def test_the_measured_run_of_a_1_5b_backbone_is_predicted() -> None:
    """79 GiB on an H200: 8 x 4,096 tokens, parameters, products and states in bf16."""
    spec = {"kind": "pretrain", "batch": 8, "sequence_length": 4096, "precision": PURE}
    total = memory(case(model="backbone-1.5B", workload=spec)).total / GIB
    assert total == pytest.approx(79, rel=0.05)


def test_a_micro_batch_lowers_activations_alone() -> None:
    spec = {"kind": "pretrain", "batch": 8, "sequence_length": 1024}
    whole = memory(case(model="backbone-1.5B", workload=spec))
    parts = memory(case(model="backbone-1.5B", workload=spec | {"micro_batch": 2}))
    assert parts.activations < whole.activations / 2
    assert (parts.weights, parts.optimizer) == (whole.weights, whole.optimizer)


@pytest.mark.parametrize(
    ("needed", "verdict"), [(0, "fits"), (89, "fits"), (91, "tight"), (100, "tight"), (101, "no")]
)
def test_tight_is_the_last_tenth(needed: float, verdict: str) -> None:
    assert predict.fit(needed, 100.0) == verdict


def largest(of: Case, shape: Shape, gib: float) -> int | None:
    return predict.largest_batch(of, shape, of.points[0], gib * GIB)


@pytest.mark.parametrize("workload", ["generate", "pretrain"])
def test_the_nearest_batch_that_fits_fits_and_the_next_does_not(workload: str) -> None:
    spec: dict[str, Any] = {"kind": "pretrain", "batch": 64, "sequence_length": 4096}
    if workload == "generate":
        spec = {"kind": "generate", "points": {"batch": 1024, "context": 8192}}
    of = case(model="backbone-1.5B", workload=spec)
    shape = predict.shape_of(of)
    assert shape is not None
    gib = machine_named("h200-141gb").memory_gib
    found = largest(of, shape, gib)
    assert found is not None

    def needed(batch: int) -> float:
        part = {"points": {"batch": batch, "context": 8192}} if workload == "generate" else {}
        smaller = case(model="backbone-1.5B", workload=spec | (part or {"micro_batch": batch}))
        return memory(smaller).total

    assert needed(found) <= gib * GIB < needed(2 * found)


def test_the_micro_batch_that_is_advised_fits_beside_gradients_that_stay() -> None:
    of = case(model="backbone-1.5B", workload={"kind": "pretrain", "batch": 64})
    shape = predict.shape_of(of)
    assert shape is not None
    for gib in range(26, 80, 2):
        found = largest(of, shape, gib)
        if found is not None:
            at = memory(predict.with_micro_batch(of, found))
            assert at.gradients_stay
            assert at.total <= gib * GIB


def test_when_not_even_one_sequence_fits_there_is_no_batch() -> None:
    of = case(model="Llama-3.1-70B")
    shape = predict.shape_of(of)
    assert shape is not None
    assert largest(of, shape, 24) is None


def test_an_odd_batch_falls_to_its_divisors_in_training_and_to_powers_of_two_else() -> None:
    shape = presets()["tiny"]
    of = case(workload={"kind": "pretrain", "batch": 6, "sequence_length": 128})
    assert largest(of, shape, 1000) == 3
    of = case(workload={"kind": "generate", "points": {"batch": 6}})
    assert largest(of, shape, 1000) == 4


def test_shapes_come_from_presets_the_catalog_parents_and_checkpoints(tmp_path: Path) -> None:
    assert predict.shape_of(case()) == presets()["tiny"]
    quickstart = load_suite("quickstart")
    found = {case.name: predict.shape_of(case, quickstart) for case in quickstart.cases}
    assert found["finetune-lora"] == found["generate-int4"] == found["pretrain-gqa"]
    orphan = case(model={"kind": "product", "of": "x", "parent": "a" * 64})
    assert predict.shape_of(orphan, quickstart) is None
    save_checkpoint(tiny.decoder(), tmp_path)
    read = predict.shape_of(case(model=str(tmp_path)))
    assert read is not None
    assert predict.parameters(read) == predict.parameters(tiny.shape())
    with pytest.raises(SpecError, match="no checkpoint there"):
        predict.shape_of(case(model="./nothing"))


def test_a_probe_has_no_shape() -> None:
    assert predict.shape_of(case(model="none", workload="probe")) is None


def test_time_grows_with_work_and_the_cap_bounds_it() -> None:
    shape, quick = presets()["1.5B"], Protocol()

    def guess(**spec: Any) -> float:
        of = case(model="backbone-1.5B", workload={"kind": "pretrain"} | spec)
        return duration.seconds(of, shape, quick, 3e14, gpu=True)

    assert guess() < guess(steps=1000) < guess(steps=2000)
    points = {"batch": [1, 8], "context": [1024]}
    of = case(model="backbone-1.5B", workload={"kind": "generate", "points": points})
    slow = duration.seconds(of, shape, quick, 1e6, gpu=False)
    assert slow < 2 * quick.limits.cap_seconds + 60


def test_a_training_step_counts_its_own_tokens_and_pairs() -> None:
    of = case(workload={"kind": "pretrain", "batch": 4, "sequence_length": 64})
    expected = duration.cost.training_flops(presets()["tiny"], (), 256, 4 * 64 * 65 / 2)
    assert duration.flops(of, presets()["tiny"], Point(4, 64)) == expected


def test_a_known_peak_is_counted_on_in_part_and_an_unknown_machine_is_tried() -> None:
    assert duration.reached_flops(machine_named("h200-141gb")) == pytest.approx(0.35 * 989e12)
    assert duration.reached_flops(machine_named("v100-32gb")) == pytest.approx(0.35 * 125e12)
    assert 1e8 < duration.reached_flops(None) < 1e14
