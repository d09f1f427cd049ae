"""Plans: what is missing, in which order, how often, and what cannot run at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efficientllm import plan
from efficientllm.plan import MAX_TRIES, Planned, Shelf, env_id, next_round, sufficient
from efficientllm.record import MEASURING, Machine, Outcome, Record
from efficientllm.spec.case import Case
from efficientllm.spec.protocol import PROFILES, Protocol
from efficientllm.spec.suite import Suite, load_suite
from efficientllm.store import Store
from tests import samples

THREE = """\
protocol: {protocol}
base: {{model: backbone-tiny, workload: generate}}
grid:
  - technique: [bf16, int8, int4]
"""
LINEAGE = """\
protocol: quick
base: {name: pretrain, model: backbone-tiny, workload: {kind: pretrain, steps: 2}}
grid:
  - model.attention: [mha, gqa]
---
base:
  name: finetune
  model: {kind: product, of: pretrain-gqa}
  workload: {kind: finetune, steps: 2}
grid:
  - technique: [full, lora]
---
base: {name: generate, model: {kind: product, of: finetune-lora}, workload: generate}
grid:
  - technique: [bf16, int4]
"""
Precise = Callable[[list[Record], Protocol], bool]


def always(_: list[Record], __: Protocol) -> bool:
    return True


def never(_: list[Record], __: Protocol) -> bool:
    return False


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def suite(tmp_path: Path) -> Callable[..., Suite]:
    def load(text: str, protocol: str = "quick") -> Suite:
        path = tmp_path / "study.yaml"
        path.write_text(text.format(protocol=protocol) if "{protocol}" in text else text)
        return load_suite(str(path))

    return load


def shelf_of(
    store: Store,
    suite: Suite,
    machine: Machine = samples.MACHINE,
    software: dict[str, str] = samples.SOFTWARE,
) -> Shelf:
    return Shelf(store, suite.cases, machine, software)


def put(
    store: Store,
    case: Case,
    round_: int = 0,
    attempt: int = 0,
    status: Any = "ok",
    protocol: str = "quick",
    **changes: Any,
) -> Record:
    """A record of a case, as the launcher would write it."""
    record = samples.record(
        case,
        round_=round_,
        attempt=attempt,
        outcome=Outcome(status=status, reason="" if status == "ok" else "made to"),
        windows=[],
        readings=(),
        protocol={"profile": protocol, "trials": None},
        **changes,
    )
    store.put(record)
    return record


def make_product(store: Store, case: Case, seed: int) -> None:
    folder = store.artifact(case.case_id, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")


def play(
    suite: Suite,
    store: Store,
    precise: Precise = always,
    status: Callable[[Planned], Any] = lambda _: "ok",
    shard: tuple[int, int] = (0, 1),
) -> list[Planned]:
    """Run a suite to its end without running anything; every trial in the order it came."""
    done: list[Planned] = []
    while True:
        due = next_round(suite, shelf_of(store, suite), store, precise, shard=shard)
        if not due.trials:
            return done
        for planned in due.trials:
            ended = status(planned)
            if planned.purpose == "measure":
                put(store, planned.case, planned.round, planned.attempt, ended,
                    suite.protocol.profile)  # fmt: skip
            if ended == "ok" and planned.case.makes_product:
                make_product(store, planned.case, planned.seed)
            done.append(planned)
            assert len(done) < 1000


def told(trials: list[Planned] | tuple[Planned, ...]) -> list[str]:
    return [f"{p.case.name} {p.round}-{p.attempt}" for p in trials]


def missing(suite: Suite, store: Store, **here: Any) -> list[str]:
    return told(next_round(suite, shelf_of(store, suite, **here), store, always).trials)


# What is done


def test_a_finished_trial_is_not_run_again(suite: Any, store: Store) -> None:
    study = suite(THREE)
    put(store, study.case("generate-int8"))
    assert missing(study, store) == ["generate-bf16 0-0", "generate-int4 0-0"]


def test_nothing_is_missing_when_everything_is_done(suite: Any, store: Store) -> None:
    study = suite(THREE)
    assert len(play(study, store)) == 3
    assert missing(study, store) == []


@pytest.mark.parametrize(
    ("software", "again"),
    [
        ({"torch": "2.12.0"}, True),
        ({"driver": "590.1"}, True),
        ({"torchao": "0.1"}, True),
        ({"efficientllm": "0.2.0"}, False),
        ({"commit": "abc-dirty"}, False),
        ({"kernel": "6.1"}, False),
        ({"python": "3.13.0"}, False),
    ],
)
def test_software_that_can_change_a_number_makes_a_new_trial(
    suite: Any, store: Store, software: dict[str, str], *, again: bool
) -> None:
    study = suite(THREE)
    play(study, store)
    assert bool(missing(study, store, software=samples.SOFTWARE | software)) == again


@pytest.mark.parametrize(
    "change",
    [{"name": "another-class"}, {"name": samples.CPU_MACHINE.name}],
    ids=["class", "cpu"],
)
def test_another_class_of_machine_makes_a_new_trial(
    suite: Any, store: Store, change: dict[str, Any]
) -> None:
    study = suite(THREE)
    play(study, store)
    machine = samples.MACHINE.model_copy(update=change)
    assert len(missing(study, store, machine=machine)) == 3


def test_another_card_of_one_class_does_not(suite: Any, store: Store) -> None:
    study = suite(THREE)
    play(study, store)
    assert (
        missing(study, store, machine=samples.MACHINE.model_copy(update={"card": "f" * 12})) == []
    )


def test_a_record_measured_another_way_is_no_replicate(suite: Any, store: Store) -> None:
    study = suite(THREE)
    case = study.case("generate-bf16")
    old = env_id(samples.MACHINE, samples.SOFTWARE, {}, MEASURING + 1)
    put(store, case, measuring=MEASURING + 1, resolved={}, env_id=old)
    assert "generate-bf16 0-1" in missing(study, store)  # with a number that is free


def test_another_case_is_no_replicate_whatever_its_name(suite: Any, store: Store) -> None:
    study = suite(THREE)
    other = study.case("generate-bf16").model_copy(update={"quality": None})
    put(store, Case.model_validate(other.model_dump()))
    assert "generate-bf16 0-0" in missing(study, store)


@pytest.mark.parametrize(
    ("made", "asked", "enough"),
    [
        ("smoke", "quick", False),
        ("quick", "quick", True),
        ("quick", "standard", False),
        ("standard", "quick", True),
        ("publish", "standard", True),
        ("standard", "publish", False),
        ("quick", "smoke", True),
    ],
)
def test_a_record_serves_profiles_that_ask_for_no_longer_windows(
    made: str, asked: str, *, enough: bool
) -> None:
    record = samples.record(windows=[], readings=(), protocol={"profile": made, "trials": None})
    assert sufficient(record, PROFILES[asked]) == enough


def test_a_short_measurement_is_repeated_for_a_longer_profile(suite: Any, store: Store) -> None:
    study = suite(THREE, "standard")
    put(store, study.case("generate-bf16"), protocol="quick")
    assert "generate-bf16 0-1" in missing(study, store)


def test_env_ids_are_equal_for_equal_surroundings_only() -> None:
    machine, software = samples.MACHINE, samples.SOFTWARE
    one = env_id(machine, software, {"compile": "layer", "idle_power_w": 80.0})
    assert one == env_id(machine, software, {"idle_power_w": 81.5, "compile": "layer"})
    assert one == env_id(machine, software, {"compile": "layer", "epochs": 1.5})  # of the seed
    assert one == env_id(machine, software, {"compile": "layer", "match_residual": 0.02})
    assert one != env_id(machine, software, {"compile": "none"})
    assert one != env_id(machine, software, {"compile": "layer"}, MEASURING + 1)


# How often


@pytest.mark.parametrize("status", ["crash", "timeout", "device_lost"])
def test_what_a_rerun_may_mend_is_tried_three_times(suite: Any, store: Store, status: str) -> None:
    study = suite(THREE)
    bad = "generate-int8"
    found = play(study, store, status=lambda p: status if p.case.name == bad else "ok")
    tries = [p.attempt for p in found if p.case.name == bad]
    assert tries == list(range(MAX_TRIES)) == [0, 1, 2]
    assert len(found) == 2 + MAX_TRIES


@pytest.mark.parametrize("status", ["out_of_memory", "nan", "unsupported"])
def test_what_a_rerun_would_repeat_is_done_at_once(suite: Any, store: Store, status: str) -> None:
    study = suite(THREE, "standard")
    found = play(study, store, status=lambda _: status)
    assert told(found) == [f"generate-{t} 0-0" for t in ("bf16", "int8", "int4")]


def test_a_second_try_that_works_ends_the_trying(suite: Any, store: Store) -> None:
    study = suite(THREE)
    found = play(study, store, status=lambda p: "crash" if p.attempt == 0 else "ok")
    assert [p.attempt for p in found] == [0, 0, 0, 1, 1, 1]


def test_a_look_at_the_precision_happens_only_at_looks(suite: Any, store: Store) -> None:
    study = suite(THREE, "standard")
    asked: list[int] = []

    def precise(records: list[Record], _: Protocol) -> bool:
        asked.append(len(records))
        return False

    found = play(study, store, precise)
    assert set(asked) == {3, 5, 7, 10}
    rounds = [p.round for p in found if p.case.name == "generate-bf16"]
    assert rounds == list(range(10))


@pytest.mark.parametrize("enough", [3, 5, 7, 10])
def test_a_precise_case_stops_at_its_look_and_the_others_go_on(
    suite: Any, store: Store, enough: int
) -> None:
    study = suite(THREE, "standard")

    def precise(records: list[Record], _: Protocol) -> bool:
        return records[0].trial.name == "generate-int8" and len(records) >= enough

    found = play(study, store, precise)
    count = {c.name: sum(p.case.name == c.name for p in found) for c in study.cases}
    assert count == {"generate-bf16": 10, "generate-int8": enough, "generate-int4": 10}


def test_a_fixed_number_of_trials_is_that_number(suite: Any, store: Store) -> None:
    study = suite(THREE, "{profile: standard, trials: 4}")
    assert len(play(study, store, never)) == 12


def test_a_lost_round_is_given_up_and_not_replaced_by_endless_others(
    suite: Any, store: Store
) -> None:
    study = suite(THREE, "standard")
    found = play(study, store, status=lambda p: "crash" if p.round == 1 else "ok")
    names = told([p for p in found if p.case.name == "generate-bf16"])
    assert names == [f"generate-bf16 {x}" for x in ("0-0", "1-0", "1-1", "1-2")]


# In which order


def test_rounds_interleave(suite: Any, store: Store) -> None:
    study = suite(THREE, "standard")
    order = [p.case.name.rpartition("-")[2] for p in play(study, store)]
    assert order == ["bf16", "int8", "int4"] * 3


def test_a_case_that_was_interrupted_catches_up_before_the_others_go_on(
    suite: Any, store: Store
) -> None:
    study = suite(THREE, "standard")
    for name in ("generate-bf16", "generate-int4"):
        put(store, study.case(name), protocol="standard")
    assert missing(study, store) == ["generate-int8 0-0"]


def test_parents_are_finished_before_children_start(suite: Any, store: Store) -> None:
    order = [p.case.name for p in play(suite(LINEAGE), store)]
    assert order == [
        "pretrain-mha",
        "pretrain-gqa",
        "finetune-full",
        "finetune-lora",
        "generate-bf16",
        "generate-int4",
    ]


def test_every_round_of_a_parent_precedes_its_children(suite: Any, store: Store) -> None:
    study = suite(LINEAGE.replace("quick", "standard"))
    stages = [p.case.stage for p in play(study, store)]
    assert stages == ["pretrain"] * 6 + ["finetune"] * 6 + ["generate"] * 6


def test_a_round_is_its_seed(suite: Any, store: Store) -> None:
    found = play(suite(THREE, "standard"), store)
    assert all(p.seed == p.round for p in found)


# Lineage


def test_missing_weights_are_made_again_without_a_new_record(suite: Any, store: Store) -> None:
    study = suite(LINEAGE)
    for name in ("pretrain-mha", "pretrain-gqa", "finetune-full", "finetune-lora"):
        put(store, study.case(name))
    due = next_round(study, shelf_of(store, study), store, always)
    assert [(p.case.name, p.purpose) for p in due.trials] == [
        ("pretrain-gqa", "rebuild"),  # eldest first
        ("finetune-lora", "rebuild"),
        ("generate-bf16", "measure"),
        ("generate-int4", "measure"),  # made once for both
    ]
    files = sum(1 for _ in store.entries())
    play(study, store)
    assert sum(1 for _ in store.entries()) == files + 2


def test_weights_that_are_there_are_not_made_again(suite: Any, store: Store) -> None:
    study = suite(LINEAGE)
    for name in ("pretrain-mha", "pretrain-gqa", "finetune-full", "finetune-lora"):
        put(store, study.case(name))
    make_product(store, study.case("finetune-lora"), 0)  # its parent's are not needed any more
    due = next_round(study, shelf_of(store, study), store, always)
    assert {p.purpose for p in due.trials} == {"measure"}


def test_a_child_of_another_seed_makes_that_parent(suite: Any, store: Store) -> None:
    study = suite(LINEAGE.replace("of: finetune-lora}", "of: finetune-lora, seed: 1}"))
    found = play(study, store)
    rebuilt = [(p.case.name, p.seed) for p in found if p.purpose == "rebuild"]
    assert rebuilt == [("finetune-lora", 1)]


@pytest.mark.parametrize("status", ["out_of_memory", "nan", "unsupported", "crash"])
def test_the_descendants_of_a_failed_parent_are_blocked_with_the_reason(
    suite: Any, store: Store, status: str
) -> None:
    study = suite(LINEAGE)
    bad = "pretrain-gqa"
    found = play(study, store, status=lambda p: status if p.case.name == bad else "ok")
    assert {p.case.name for p in found} == {"pretrain-mha", bad}
    due = next_round(study, shelf_of(store, study), store, always)
    assert [item.case.name for item in due.blocked] == [
        "finetune-full",
        "finetune-lora",
        "generate-bf16",
        "generate-int4",
    ]
    assert all(bad in item.reason and status in item.reason for item in due.blocked)


def test_a_blocked_child_runs_once_its_parent_has_been_mended(suite: Any, store: Store) -> None:
    study = suite(LINEAGE)
    put(store, study.case("pretrain-mha"))
    put(store, study.case("pretrain-gqa"), status="crash")
    put(store, study.case("finetune-full"), status="blocked")
    put(store, study.case("pretrain-gqa"), attempt=1)
    make_product(store, study.case("pretrain-gqa"), 0)
    assert missing(study, store) == ["finetune-full 0-1", "finetune-lora 0-0"]


# Shards


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_shards_cover_every_case_exactly_once(suite: Any, tmp_path: Path, count: int) -> None:
    study = suite(THREE, "standard")
    names = []
    for index in range(count):
        own = Store(tmp_path / f"{count}-{index}")
        names += told(play(study, own, shard=(index, count)))
    assert sorted(names) == sorted(told(play(study, Store(tmp_path / "all"))))


@pytest.mark.parametrize("count", [1, 2, 4, 6, 9])
def test_a_shard_brings_its_ancestors_along(suite: Any, tmp_path: Path, count: int) -> None:
    study = suite(LINEAGE)
    covered: set[str] = set()
    for index in range(count):
        found = play(study, Store(tmp_path / str(index)), shard=(index, count))
        assert {p.purpose for p in found} <= {"measure"}  # ancestors are on record too
        names = {p.case.name for p in found}
        due = {case.name for i, case in enumerate(study.cases) if i % count == index}
        assert due <= names
        parents = {"generate": "finetune-lora", "finetune": "pretrain-gqa"}
        for name in names:
            assert parents.get(name.partition("-")[0], name) in names
        covered |= names
    assert covered == {case.name for case in study.cases}


def test_shards_on_one_store_share_what_they_have(suite: Any, store: Store) -> None:
    study = suite(LINEAGE)
    first = play(study, store, shard=(0, 2))
    second = play(study, store, shard=(1, 2))
    assert len(first) + len(second) == len(study.cases)


def test_a_shelf_sees_what_another_process_has_written_since(suite: Any, store: Store) -> None:
    study = suite(THREE)
    shelf = shelf_of(store, study)
    case = study.case("generate-bf16")
    put(store, case)
    assert shelf.finished(case, study.protocol) == {}
    shelf.refresh(study.cases)
    assert list(shelf.finished(case, study.protocol)) == [0]


def test_attempts_of_other_surroundings_keep_their_numbers(suite: Any, store: Store) -> None:
    study = suite(THREE)
    case = study.case("generate-bf16")
    put(store, case, software={"torch": "1"}, env_id="x")
    assert shelf_of(store, study).next_attempt(case, 0) == 1
    assert shelf_of(store, study).tries(case, 0) == 0


def test_planning_writes_nothing(suite: Any, store: Store) -> None:
    study = suite(LINEAGE)
    assert plan.next_round(study, shelf_of(store, study), store, always).trials
    assert not store.root.exists()


def test_being_told_to_stop_is_no_failed_try(suite: Any, store: Store) -> None:
    study = suite(THREE)
    bad = "generate-int8"
    found = play(
        study,
        store,
        status=lambda p: "interrupted" if p.case.name == bad and p.attempt < 5 else "ok",
    )
    assert [p.attempt for p in found if p.case.name == bad] == [0, 1, 2, 3, 4, 5]
