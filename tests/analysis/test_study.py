"""Studies: rows that differ in one part of the backbone and in nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from efficientllm import record as r
from efficientllm.analysis.study import studies, trained, trainings, variant
from efficientllm.analysis.sweep import learning_rate
from efficientllm.analysis.table import rows
from efficientllm.record import Record
from efficientllm.spec.case import Case
from efficientllm.spec.suite import load_suite
from efficientllm.spec.workload import Generate
from tests import samples
from tests.report import architecture_samples as made

SIZES = ("0.5B-h16", "1.5B-h16", "3B-h16")
POSITIONS = ("rope", "sinusoidal", "learned", "t5", "alibi", "none")


def test_variants_are_named_by_their_kind_in_the_suites_order() -> None:
    (study,) = studies(rows(made.attention_suite(1)))
    assert (study.axis, study.size, tuple(study.variants)) == (
        "attention",
        "30M-h16",
        made.VARIANTS,
    )
    assert study.baseline == "mha"
    assert study.stages == ("pretrain", "generate")


def test_without_mha_the_first_variant_is_the_baseline() -> None:
    (study,) = studies(rows(made.attention_suite(1, ("mla", "gqa"))))
    assert study.baseline == "mla"


def test_a_class_that_is_called_mha_is_no_baseline_by_its_name() -> None:
    (study,) = studies(rows([made.pretrain("gqa", 4096), own("v1.py", "mha", "a")]))
    assert tuple(study.variants) == ("gqa", "mha")
    assert study.baseline == "gqa"


def test_attention_and_position_are_two_studies_that_share_their_crossing() -> None:
    kinds = [("mha", "rope"), ("gqa", "rope"), ("gqa", "alibi"), ("gqa", "none")]
    found = studies(rows([made.trained(a, position=p) for a, p in kinds]))
    assert {study.axis: tuple(study.variants) for study in found} == {
        "attention": ("mha", "gqa"),
        "position": ("rope", "alibi", "none"),
    }


def test_other_sizes_are_other_studies_and_what_was_set_is_named() -> None:
    def case(attention: str, **sizes: object) -> object:
        model = made.model(attention) | sizes
        return samples.record(samples.case(name=f"{attention}{sizes}", model=model))

    records = [case(a, **s) for a in ("mha", "gqa") for s in ({}, {"ffn": 1024}, {"layers": 4})]
    found = studies(rows(records))  # type: ignore[arg-type]
    assert sorted(study.size for study in found) == [
        "30M-h16",
        "30M-h16, ffn 1024",
        "30M-h16, layers 4",
    ]


def test_the_study_with_more_that_can_be_compared_comes_first_even_if_it_is_smaller() -> None:
    def case(preset: str, context: int, *attentions: str) -> list[Record]:
        models = (made.model(a) | {"preset": preset} for a in attentions or ("mha", "gqa"))
        workload = {"kind": "generate", "points": {"context": [context]}}
        build = samples.build(total_params=sizes[preset])
        return [
            samples.record(
                samples.case(name=f"{preset}{context}", model=m, workload=workload), build=build
            )
            for m in models
        ]

    sizes = {"0.5B-h16": 500_000_000, "1.5B-h16": 1_500_000_000}
    even = [record for preset in sizes for record in case(preset, 4096)]
    assert [study.size for study in studies(rows(even))] == ["1.5B-h16", "0.5B-h16"]
    more = [*even, *case("0.5B-h16", 16384)]
    assert [study.size for study in studies(rows(more))] == ["0.5B-h16", "1.5B-h16"]
    third = [record for preset in sizes for record in case(preset, 65536, "mha", "gqa", "mqa")]
    gap = [*third, *case("1.5B-h16", 4096), *case("0.5B-h16", 4096, "mha", "gqa", "mqa")]
    assert [study.size for study in studies(rows(gap))] == ["0.5B-h16", "1.5B-h16"]
    alone = [*even, *case("0.5B-h16", 16384, "mha"), *case("0.5B-h16", 65536, "gqa")]
    assert [study.size for study in studies(rows(alone))] == ["1.5B-h16", "0.5B-h16"]


def test_two_stages_go_before_many_points_and_one_variants_gap_does_not() -> None:
    def decoded(preset: str, *contexts: int) -> list[Record]:
        models = (made.model(a) | {"preset": preset} for a in ("mha", "gqa", "mqa"))
        return [
            samples.record(
                samples.case(
                    name=f"{preset}{context}",
                    model=model,
                    workload={"kind": "generate", "points": {"context": [context]}},
                )
            )
            for model in models
            for context in contexts
        ]

    def trained(preset: str, *attentions: str) -> list[Record]:
        models = (made.model(a) | {"preset": preset} for a in attentions)
        return [samples.record(samples.pretrain(name=preset, model=model)) for model in models]

    small = [*decoded("30M-h16", 4096), *trained("30M-h16", "mha", "gqa", "mqa")]
    large = [*decoded("0.5B-h16", 4096, 16384, 65536), *trained("0.5B-h16", "mha", "gqa")]
    assert [study.size for study in studies(rows([*small, *large]))] == ["0.5B-h16", "30M-h16"]
    only = decoded("0.5B-h16", 4096, 16384, 65536)
    assert [study.size for study in studies(rows([*small, *only]))] == ["30M-h16", "0.5B-h16"]


def test_of_several_rows_at_a_point_one_that_decides_goes_before_a_newer_one() -> None:
    """Two learning rates cost the same, and the one with three seeds is measured better."""
    seeds = [made.trained(name, i) for name in ("mha", "mla") for i in range(3)]
    later = {"started_at": "2030-01-01T00:00:00+00:00"}
    newer = [made.trained("mha", i, lr=1e-3, **later) for i in range(2)]
    (study,) = studies(rows([*seeds, *newer]))
    chosen = study.at("mha", "pretrain", "b64 c1024")
    assert chosen is not None
    assert len(chosen.views) == 3
    (study,) = studies(rows([*seeds, *newer, made.trained("mha", 2, lr=1e-3, **later)]))
    chosen = study.at("mha", "pretrain", "b64 c1024")
    assert chosen is not None
    assert chosen.record.started_at == later["started_at"]


def again(records: list[Record], **changes: Any) -> list[Record]:
    """The same trials a year later, by another version."""
    later = {"started_at": "2027-01-01T00:00:00+00:00", "env_id": "0" * 64}
    return [record.model_copy(update=later | changes) for record in records]


def test_of_one_case_its_newest_row_stands_however_few_its_trials() -> None:
    """More trials of an older version are no better."""
    seeds = [made.trained("mha", seed) for seed in range(3)]
    newer = again(seeds[:1])
    for first, second in ((seeds, newer), (newer, seeds)):
        (study,) = studies([*rows(first), *rows(second), *rows([made.trained("mla")])])
        chosen = study.at("mha", "pretrain", "b64 c1024")
        assert chosen is not None
        assert chosen.record.env_id == newer[0].env_id


def test_a_newer_row_that_failed_takes_no_older_ones_place() -> None:
    seeds = [made.trained("mha", seed) for seed in range(3)]
    failed = again(seeds[:1], outcome=r.Outcome(status="crash", reason="so"), scores=None)
    (study,) = studies(rows([*seeds, *failed, made.trained("mla")]))
    chosen = study.at("mha", "pretrain", "b64 c1024")
    assert chosen is not None
    assert (chosen.status, len(chosen.views)) == ("ok", 3)


def moved(records: list[Record], name: str = "elsewhere") -> list[Record]:
    """The same trials of another class of machines."""
    machine = samples.MACHINE.model_copy(update={"name": name, "device": name})
    return again(records, machine=machine)


def test_machines_of_two_classes_are_two_studies_that_lend_each_other_nothing() -> None:
    here = [made.trained(name, seed) for name in ("mha", "mla") for seed in range(3)]
    there = moved([made.trained("mha", bits=1.2), made.trained("gqa", bits=1.3)])
    found = {study.machine.name: trainings(study) for study in studies(rows([*here, *there]))}
    assert [tuple(own.rows) for own in found.values()] == [("mha", "mla"), ("mha", "gqa")]
    (one,) = found[samples.MACHINE.name].differences
    assert (one.seeds, one.a, one.b) == (3, "mha", "mla")


def _round(record: Record, n: int) -> r.Trial:
    return record.trial.model_copy(update={"round": n, "seed": n})


def test_of_two_rows_of_one_recipe_the_one_with_the_seeds_that_decide_stands() -> None:
    """A single seed of a newer version beside three of an older one."""
    seeds = [made.trained(name, seed) for name in ("mha", "mla") for seed in range(3)]
    newer = again([made.trained("mha", bits=1.2)])
    (study,) = studies(rows([*seeds, *newer]))
    assert [len(row.views) for row in trained(study).values()] == [3, 3]
    more = [record.model_copy(update={"env_id": "1" * 64}) for record in seeds]
    more += [record.model_copy(update={"trial": _round(record, 3)}) for record in more[::3]]
    (study,) = studies([*rows(again(seeds)), *rows(more)])
    assert {len(row.views) for row in trained(study).values()} == {3}, "four decide no more"


SMOKE = {"protocol": {"profile": "smoke", "trials": 3}}


def test_a_newer_smoke_run_takes_no_ranked_rows_place() -> None:
    """Of the same case after an upgrade, or of another one that costs the same."""
    seeds = [made.trained("mha", seed, bits=1.5) for seed in range(2)]
    same = again(seeds, **SMOKE)
    other = again([made.trained("mha", seed, lr=1e-3) for seed in range(2)], **SMOKE)
    for newer in (same, other):
        (study,) = studies(rows([*seeds, *newer, made.trained("mla")]))
        chosen = study.at("mha", "pretrain", "b64 c1024")
        assert chosen is not None
        assert chosen.ranked


def test_a_smoke_run_that_ended_well_goes_before_a_newer_row_that_failed() -> None:
    lost = r.Outcome(status="crash", reason="so")
    for lr in (1e-3, 2e-3):
        failed = again([made.trained("mha", lr=lr)], outcome=lost, scores=None)
        (study,) = studies(rows([made.trained("mha", **SMOKE), *failed, made.trained("mla")]))
        chosen = study.at("mha", "pretrain", "b64 c1024")
        assert chosen is not None
        assert chosen.status == "ok"


def test_more_trials_than_decide_are_no_reason_to_keep_an_older_row() -> None:
    five = [made.trained("mha", seed, bits=1.5) for seed in range(5)]
    three = again([made.trained("mha", seed, lr=1e-3) for seed in range(3)])
    (study,) = studies(rows([*five, *three, made.trained("mla")]))
    chosen = study.at("mha", "pretrain", "b64 c1024")
    assert chosen is not None
    assert len(chosen.views) == 3


def test_two_of_a_kind_at_one_point_are_told_apart_by_their_settings() -> None:
    def record(window: int) -> object:
        attention = {"kind": "sliding", "window": window}
        return samples.record(
            samples.case(name=f"w{window}", model=made.model() | {"attention": attention})
        )

    (study,) = studies(rows([record(256), record(512), made.generate("gqa")]))  # type: ignore[list-item]
    assert tuple(study.variants) == ("sliding window 256", "sliding window 512", "gqa")


def own(file: str, name: str, sha256: str, length: int = 1024) -> Record:
    """A training with an attention from a user's file."""
    attention = {"kind": "custom", "file": file, "name": name, "sha256": sha256 * 64}
    return samples.record(
        samples.pretrain(
            name=f"{file}-{length}",
            model=made.model() | {"attention": attention},
            workload={"kind": "pretrain", "sequence_length": length, "batch": 4},
        )
    )


def test_an_attention_of_ones_own_is_called_by_its_class() -> None:
    one, plain = own("v1.py", "WindowAttention", "a"), made.pretrain("gqa", 4096)
    (study,) = studies(rows([one, plain]))
    assert tuple(study.variants) == ("WindowAttention", "gqa")
    assert variant(Case.model_validate(one.case)) == "WindowAttention"


def test_two_classes_of_one_name_are_told_apart_by_their_files_digests() -> None:
    lengths = {"v1.py": ("a", 1024), "v2.py": ("b", 2048)}
    records = [own(file, "Mine", *what) for file, what in lengths.items()]
    (study,) = studies(rows([*records, made.pretrain("gqa", 4096)]))
    assert tuple(study.variants) == ("Mine aaaaaaaa", "Mine bbbbbbbb", "gqa")
    (study,) = studies(rows([own("v1.py", "gqa", "c"), made.pretrain("gqa", 4096)]))
    assert tuple(study.variants) == ("gqa cccccccc", "gqa")


def test_one_variant_and_published_shapes_are_no_study() -> None:
    shape = samples.case(model={"kind": "shape", "name": "Llama-3.1-8B"})
    assert studies(rows([made.generate("gqa"), samples.record(shape)])) == []
    assert variant(shape) == ""


@pytest.mark.parametrize(
    ("attention", "position", "name"),
    [("gqa", "rope", "gqa"), ("mla", "rope", "mla"), ("gqa", "alibi", "gqa+alibi")],
)
def test_a_case_is_called_by_its_studied_parts(attention: str, position: str, name: str) -> None:
    assert variant(samples.case(model=made.model(attention, position))) == name


def test_a_point_is_answered_by_what_did_the_same_work_and_ended_well() -> None:
    (study,) = studies(rows(made.attention_suite(1)))
    base = study.at("mha", "generate", "b1 c4096")
    assert base is not None
    found = study.at("mla", "generate", "b1 c4096", base)
    assert found is not None
    assert (found.name, found.point) == ("decode-mla", "b1 c4096")
    assert study.at("mla", "generate", "b7 c1") is None


def test_beside_the_baseline_stands_what_did_the_same_work_though_it_is_older() -> None:
    """Shorter answers are other work at the same point."""

    def decoded(attention: str, new_tokens: int, **changes: Any) -> Record:
        points = {"context": [4096]}
        workload = {"kind": "generate", "points": points, "new_tokens": new_tokens}
        of = samples.case(name=attention, model=made.model(attention), workload=workload)
        return samples.record(of, **changes)

    later = {"started_at": "2030-01-01T00:00:00+00:00"}
    (study,) = studies(
        rows([decoded("mha", 128), decoded("mla", 128), decoded("mla", 64, **later)])
    )
    for found, expected in (
        (study.at("mla", "generate", "b1 c4096"), 64),
        (study.like_baseline("mla", "generate", "b1 c4096"), 128),
    ):
        assert found is not None
        assert isinstance(found.case.workload, Generate)
        assert found.case.workload.new_tokens == expected


def test_trainings_are_of_one_recipe_each_at_its_best_rate() -> None:
    records = [
        *made.learning_suite(1, ("mha", "mla")),
        made.trained("mla", lr=4e-3, bits=1.40),
        made.trained("mla", lr=8e-3, bits=1.60),
    ]
    (study,) = studies(rows(records))
    found = trained(study)
    assert {name: learning_rate(row) for name, row in found.items()} == {"mha": 2e-3, "mla": 4e-3}
    (only,) = trainings(study).differences
    assert (only.verdict, only.why) == ("undecided", "one seed")
    (cost,) = studies(rows(made.attention_suite(1)))
    assert trainings(cost).rows == {}
    assert trainings(cost).size == ""


@pytest.mark.parametrize(
    ("suite", "expected"),
    [
        ("attention", [("attention", s, made.VARIANTS) for s in SIZES]),
        ("position", [("position", s, POSITIONS) for s in SIZES]),
        (
            "attention-small",
            [("attention", "30M-h16", made.VARIANTS), ("position", "30M-h16", POSITIONS)],
        ),
    ],
)
def test_the_suites_that_come_along_are_such_studies(
    suite: str, expected: list[tuple[str, str, tuple[str, ...]]]
) -> None:
    table = rows([samples.record(case, points=()) for case in load_suite(suite).cases])
    found = [(study.axis, study.size, tuple(study.variants)) for study in studies(table)]
    assert sorted(found) == sorted(expected)
