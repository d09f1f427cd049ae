"""Cases: which combinations make sense, and what a case says about itself."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError

from efficientllm.spec.case import Case, Point
from efficientllm.spec.document import SpecError
from efficientllm.spec.model import Checkpoint
from efficientllm.spec.protocol import LOOKS, PROFILES, Protocol
from efficientllm.spec.suite import one_line_suite
from efficientllm.spec.workload import AdamW, Points, Precision, Pretrain

COMMIT = "0123456789" * 4


@pytest.mark.parametrize(
    "rules", [{"dedup": "near"}, {"order": "as_read"}, {"filter": {"min_chars": 1}}]
)
def test_only_what_is_trained_on_is_selected(rules: dict[str, Any]) -> None:
    data = {"kind": "stdlib"} | rules
    training = {"model": "backbone-tiny", "workload": {"kind": "pretrain", "data": data}}
    assert Case.model_validate(training).workload.data.selects
    for parts in (
        {"workload": {"kind": "generate", "data": data}},
        {"workload": "generate", "quality": {"data": data}},
    ):
        with pytest.raises(ValidationError, match="only the data of pretrain and finetune takes"):
            Case.model_validate({"model": "backbone-tiny"} | parts)


@pytest.mark.parametrize(("kind", "part"), [("pretrain", "prose"), ("finetune", "code")])
@pytest.mark.parametrize("rule", ["dedup=exact", "order=short_first", "filter.min_chars=9"])
def test_the_default_text_is_selected_from_without_its_name(
    kind: str, part: str, rule: str
) -> None:
    words = ("model=backbone-tiny", *(("technique=full",) if kind == "finetune" else ()))
    (short,) = one_line_suite(kind, (*words, f"data.{rule}")).cases
    named = (f"data.{rule}", "data.kind=stdlib", f"data.part={part}")
    (long,) = one_line_suite(kind, (*words, *named)).cases
    assert short.case_id == long.case_id
    assert short.workload.data.part == part


def test_what_names_a_text_of_another_kind_still_needs_the_kind() -> None:
    with pytest.raises(SpecError, match="needs a `kind:`"):
        one_line_suite("pretrain", ("model=backbone-tiny", "data.path=./texts"))


def case(**parts: Any) -> Case:
    return Case.model_validate({"model": "backbone-tiny", "workload": "generate"} | parts)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"workload": "pretrain", "technique": "bf16"}, "pretraining starts from scratch"),
        (
            {"workload": "pretrain", "model": {"kind": "product", "of": "x"}},
            "pretraining takes a backbone or a catalog shape",
        ),
        ({"workload": "pretrain", "model": "a/b"}, "pretraining takes a backbone"),
        ({"workload": "finetune"}, "finetune needs one of full, freeze, lora"),
        ({"workload": "finetune", "technique": "bf16"}, "finetune needs one of"),
        ({"workload": "finetune", "technique": "full+lora"}, "full and lora exclude each other"),
        ({"workload": "finetune", "technique": "int4+int8+lora"}, "int4 and int8 exclude"),
        ({"workload": "finetune", "technique": "int4+full"}, "int4 weights cannot be trained"),
        ({"workload": "finetune", "technique": "bf16+freeze"}, "bf16 weights cannot be trained"),
        ({"technique": "lora"}, "generate from the product of a finetune case"),
    ],
)
def test_combinations_without_a_meaning_are_refused(parts: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        case(**parts)


@pytest.mark.parametrize("technique", ["lora", "int4+lora", "bf16+lora", "full", "freeze"])
def test_every_way_to_tune_is_a_case(technique: str) -> None:
    assert case(workload="finetune", technique=technique).technique_label == technique


def test_far_buckets_of_distances_need_distances() -> None:
    def sizes(**sizes: int) -> dict[str, Any]:
        return {"kind": "backbone", "position": {"kind": "t5"} | sizes}

    for buckets, most in ((64, 32), (64, 20), (256, 128)):
        with pytest.raises(ValidationError, match=f"max_distance {most} must be above"):
            case(model=sizes(buckets=buckets, max_distance=most))
    assert case(model=sizes(buckets=64, max_distance=33))


def test_training_has_one_point_its_batch_and_length() -> None:
    found = case(workload={"kind": "pretrain", "batch": 4, "sequence_length": 64})
    assert found.points == (Point(4, 64),)
    assert str(found.points[0]) == "b4 c64"


def test_a_budget_in_tokens_is_whole_steps_rounded_up() -> None:
    def steps(tokens: int) -> int | None:
        return Pretrain(batch=4, sequence_length=64, tokens=tokens).budget_steps

    assert [steps(1), steps(256), steps(257), steps(2560)] == [1, 1, 2, 10]
    assert Pretrain().budget_steps is None
    with pytest.raises(ValidationError, match="steps or tokens, not both"):
        Pretrain(steps=1, tokens=1)


def test_a_decay_is_of_wsd_and_leaves_room_for_the_warm_up() -> None:
    assert AdamW(schedule="wsd", warmup_share=0.3, decay_share=0.7).decay_share == 0.7
    with pytest.raises(ValidationError, match="decay_share belongs to schedule: wsd"):
        AdamW(decay_share=0.1)
    with pytest.raises(ValidationError, match="more than the whole training"):
        AdamW(schedule="wsd", warmup_share=0.4, decay_share=0.7)


def test_only_a_training_that_ends_is_saved_on_the_way() -> None:
    assert Pretrain(steps=100, checkpoint_every=20).checkpoint_every == 20
    with pytest.raises(ValidationError, match="checkpoint_every needs steps or tokens"):
        Pretrain(checkpoint_every=20)


def test_a_curve_is_of_declared_steps() -> None:
    quality = {"curve": 5}
    for workload in ({"steps": 5}, {"tokens": 5 * 8 * 4096}, {"tokens": "20x"}):
        found = case(workload={"kind": "pretrain"} | workload, quality=quality)
        assert found.quality is not None
        assert found.quality.curve == 5
    for parts in ({"workload": "pretrain"}, {"workload": "generate"}):
        with pytest.raises(ValidationError, match="curve needs a training with steps or tokens"):
            case(**parts, quality=quality)
    with pytest.raises(ValidationError, match="a curve of 5 scorings does not fit 4 steps"):
        case(workload={"kind": "pretrain", "steps": 4}, quality=quality)


@pytest.mark.parametrize("value", ["fitt", 0, True, 1.5])
def test_a_micro_batch_that_is_none_is_told_once(value: Any) -> None:
    with pytest.raises(ValidationError, match=r"from 1, or auto or fit \(got") as caught:
        Pretrain(batch=8, micro_batch=value)
    assert caught.value.error_count() == 1


def test_a_micro_batch_must_divide_the_batch() -> None:
    with pytest.raises(ValidationError, match="micro_batch 3 does not divide batch 8"):
        Pretrain(batch=8, micro_batch=3)


@pytest.mark.parametrize("params", ["float32", "bf16"])
@pytest.mark.parametrize("states", ["float32", "bf16"])
def test_optimizer_states_have_the_type_of_the_parameters(params: Any, states: Any) -> None:
    if params == states:
        assert Precision(params=params, optimizer_state=states).compute == "bf16"
    else:
        with pytest.raises(ValidationError, match="optimizer_state must equal params"):
            Precision(params=params, optimizer_state=states)


def test_training_in_pure_half_precision_is_refused() -> None:
    with pytest.raises(ValidationError, match="fp16 is for compute only"):
        Precision(params="fp16", optimizer_state="fp16")
    assert Precision(compute="fp16").params == "float32"


@pytest.mark.parametrize(
    "points",
    [{"batch": []}, {"batch": [1, 1]}, {"context": [1]}, {"batch": list(range(1, 258))}],
    ids=["empty", "twice", "short", "many"],
)
def test_points_are_some_different_and_not_too_many(points: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Points.model_validate(points)


def test_random_weights_are_those_that_nobody_trained() -> None:
    assert case().random_weights
    assert case(model="Llama-3.1-8B").random_weights
    assert not case(model="a/b").random_weights
    assert not case(model={"kind": "product", "of": "x"}).random_weights


def test_only_training_with_a_budget_makes_a_product() -> None:
    assert case(workload={"kind": "pretrain", "steps": 1}).makes_product
    assert case(workload={"kind": "finetune", "tokens": 1}, technique="full").makes_product
    assert not case(workload="pretrain").makes_product
    assert not case().makes_product


def test_specs_are_frozen_and_closed() -> None:
    found = case()
    with pytest.raises(ValidationError, match="frozen"):
        found.name = "x"
    with pytest.raises(ValidationError, match="Extra inputs"):
        case(color="blue")


def test_a_case_survives_json() -> None:
    found = case(technique="int4+lora", workload="finetune", name="x")
    again = Case.model_validate_json(found.model_dump_json())
    assert again == found
    assert again.case_id == found.case_id


@pytest.mark.parametrize(
    "model",
    [
        {"source": f"a/b@{COMMIT}", "allow_code": True},
        {"source": "a/b", "commit": COMMIT, "allow_code": True},
        {"source": "./here", "allow_code": True},
        {"source": "a/b", "allow_code": False},
    ],
)
def test_somebody_elses_code_needs_an_exact_name(model: dict[str, Any]) -> None:
    assert Checkpoint.model_validate(model).allow_code == model["allow_code"]


@pytest.mark.parametrize(
    "source", ["a/b", "a/b@main", "a/b@v1.0", f"a/b@{COMMIT[:39]}", f"a/b@{'Z' * 40}"]
)
def test_code_under_a_name_that_can_move_is_refused(source: str) -> None:
    with pytest.raises(ValidationError, match="allow_code runs somebody's Python"):
        Checkpoint(source=source, allow_code=True)


@pytest.mark.parametrize(
    ("profile", "looks"),
    [
        ("smoke", (1,)),
        ("quick", (1,)),
        ("standard", (3, 5, 7, 10)),
        ("publish", (5, 7, 10, 14, 20)),
    ],
)
def test_a_profile_is_looked_at_only_at_its_looks(profile: Any, looks: tuple[int, ...]) -> None:
    assert Protocol(profile=profile).looks() == looks
    assert Protocol(profile=profile, trials=4).looks() == (4,)
    assert set(looks) <= {1, *LOOKS}


def test_profiles_ask_for_more_from_smoke_to_publish() -> None:
    ladder = [PROFILES[name] for name in ("smoke", "quick", "standard", "publish")]
    for low, high in pairwise(ladder):
        assert low.min_units < high.min_units
        assert low.min_seconds < high.min_seconds
        assert low.cap_seconds < high.cap_seconds
        assert low.max_trials <= high.max_trials
    table = PROFILES["standard"], PROFILES["publish"]
    assert [(p.time_half_width, p.energy_half_width) for p in table] == [(0.02, 0.03), (0.01, 0.02)]


def test_only_smoke_is_never_ranked_and_only_publish_starts_fresh() -> None:
    profiles = [Protocol(profile=p) for p in ("smoke", "quick", "standard", "publish")]
    assert [p.ranked for p in profiles] == [False, True, True, True]
    assert [p.fresh_interpreters for p in profiles] == [False, False, False, True]


@pytest.mark.parametrize("trials", [0, -1, 101])
def test_absurd_numbers_of_trials_are_refused(trials: int) -> None:
    with pytest.raises(ValidationError):
        Protocol(trials=trials)
