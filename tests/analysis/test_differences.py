"""Differences between trainings: paired by seed, corrected for their number, or undecided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from efficientllm.analysis.compare import compare
from efficientllm.analysis.differences import (
    Difference,
    Trainings,
    differences,
    holm,
    surely_better,
    t_test,
)
from efficientllm.analysis.table import Row, rows
from tests.report import architecture_samples as made


def row(name: str, bits: Sequence[float], **changes: Any) -> Row:
    (found,) = rows([made.trained(name, seed, bits=b, **changes) for seed, b in enumerate(bits)])
    return found


def only(found: list[Difference]) -> Difference:
    (one,) = found
    return one


def test_the_difference_is_paired_by_seed_with_students_interval() -> None:
    # seeds differ by 0.1 each, the variants by 0.010, 0.011 and 0.012
    one = only(
        differences({"mha": row("mha", (1.5, 1.6, 1.4)), "mqa": row("mqa", (1.51, 1.611, 1.412))})
    )
    half = 4.302653 * 0.001 / 3**0.5  # t with 2 degrees of freedom at 97.5 %
    assert one.difference == pytest.approx(0.011)
    assert one.low == pytest.approx(0.011 - half, rel=1e-5)
    assert one.high == pytest.approx(0.011 + half, rel=1e-5)
    assert (one.seeds, one.verdict, one.why) == (3, "worse", "")
    # t = 0.011 / (0.001 / sqrt 3) = 19.05 with 2 degrees: p = 1 - t / sqrt(t^2 + 2)
    t = 0.011 / (0.001 / 3**0.5)
    assert one.p == pytest.approx(1 - t / (t**2 + 2) ** 0.5, rel=1e-6)


def test_one_seed_is_undecided_however_large_the_difference() -> None:
    one = only(differences({"a": row("mha", (1.0,)), "b": row("gqa", (2.0,))}))
    assert (one.verdict, one.why, one.low, one.p) == ("undecided", "one seed", None, None)
    assert one.difference == pytest.approx(1.0)
    two = only(differences({"a": row("mha", (1.0, 1.0)), "b": row("gqa", (2.0, 2.0))}))
    assert (two.verdict, two.why) == ("undecided", "2 seeds; three are needed")


def test_compare_says_the_same_of_one_seed() -> None:
    found = compare(row("mha", (1.0,)), row("gqa", (2.0,)))
    (line,) = [x for x in found.lines if x.metric.key == "bits_per_byte"]
    assert (line.verdict, line.why) == ("ambiguous", "one seed")


def test_compare_decides_as_the_table_of_a_pair_does() -> None:
    # 1 % apart, inside the band of times; paired by seed the scatter is a tenth of that
    a, b = row("mha", (1.5, 1.6, 1.4)), row("gqa", (1.485, 1.583, 1.386))
    one = only(differences({"a": a, "b": b}))
    (line,) = [x for x in compare(a, b).lines if x.metric.key == "bits_per_byte"]
    assert (line.verdict, line.why, one.verdict) == ("better", "paired over seeds", "better")
    told = [(x - 1) * line.a for x in (line.low, line.ratio, line.high) if x is not None]
    assert told == pytest.approx([one.low, one.difference, one.high])
    noisy = row("gqa", (1.40, 1.75, 1.38))
    (line,) = [x for x in compare(a, noisy).lines if x.metric.key == "bits_per_byte"]
    assert (line.verdict, line.why) == ("ambiguous", "the interval holds 0")


def trained_by(name: str, bits: Sequence[float], **workload: Any) -> Row:
    """A row with another recipe; its records say the same otherwise."""
    found = []
    for record in row(name, bits).views:
        case = record.case
        settings = case.workload.model_dump(mode="json") | workload
        of = case.model_validate(case.model_dump(mode="json") | {"workload": settings})
        trial = record.record.trial.model_copy(update={"case_id": of.case_id})
        changes = {"case": of.model_dump(mode="json"), "trial": trial}
        found.append(record.record.model_copy(update=changes))
    (made_row,) = rows(found)
    return made_row


def test_two_models_by_two_recipes_are_undecided_and_one_model_is_not() -> None:
    base, bits = row("mha", (1.5, 1.6, 1.4)), (1.40, 1.50, 1.31)
    constant = {"kind": "adamw", "lr": 2e-3, "schedule": "constant"}
    other = only(differences({"a": base, "b": trained_by("gqa", bits, optimizer=constant)}))
    assert other.verdict == "undecided"
    assert other.why == ("trained by different recipes: optimizer.schedule: cosine -> constant")
    (line,) = [
        x
        for x in compare(base, trained_by("gqa", bits, precision={"compute": "float32"})).lines
        if x.metric.key == "bits_per_byte"
    ]
    assert line.verdict == "ambiguous"
    assert "training precision: bf16 on float32 weights -> float32" in line.why
    rate = {"kind": "adamw", "lr": 4e-3}
    same = only(differences({"a": base, "b": trained_by("gqa", bits, optimizer=rate)}))
    assert same.verdict == "better", "every variant has a rate of its own"
    recipe = only(differences({"a": base, "b": trained_by("mha", bits, optimizer=constant)}))
    assert recipe.verdict == "better", "of one model the recipe is what is compared"


def test_holms_correction_takes_back_what_many_pairs_find_by_luck() -> None:
    a, b = (1.5, 1.6, 1.4), (1.51, 1.618, 1.412)  # t = 4.16 a pair: p = 0.042 alone
    alone = only(differences({"a": row("mha", a), "b": row("gqa", b)}))
    assert alone.verdict == "worse"
    many = differences({"a": row("mha", a), "b": row("gqa", b), "c": row("mla", a)})
    (same,) = [x for x in many if (x.a, x.b) == ("a", "b")]
    assert (same.verdict, same.why) == ("undecided", "not after correcting for 3 pairs")
    (none,) = [x for x in many if (x.a, x.b) == ("a", "c")]
    assert (none.difference, none.verdict, none.why) == (0.0, "undecided", "the interval holds 0")


def test_holms_values_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_equal_variants_are_falsely_told_apart_in_at_most_five_tables_of_a_hundred() -> None:
    generator = np.random.default_rng(0)
    false = 0
    for _ in range(1000):
        bits = generator.normal(1.5, 0.01, size=(4, 3))
        pairs = [(i, j) for i in range(4) for j in range(i)]
        p = [t_test(list(bits[i] - bits[j])) for i, j in pairs]
        false += min(holm(p)) < 0.05
    assert false / 1000 <= 0.06


def test_no_scatter_is_certain_and_no_difference_is_none() -> None:
    assert t_test([0.5, 0.5, 0.5]) == 0.0
    assert t_test([0.0, 0.0, 0.0]) == 1.0


def test_other_text_other_work_and_smoke_decide_nothing() -> None:
    base = row("mha", (1.0, 1.1, 1.2))
    other = made.scores(2.0).model_copy(update={"text_sha256": "b" * 64})
    text = only(differences({"a": base, "b": row("gqa", (2.0, 2.1, 2.2), scores=other)}))
    assert (text.verdict, text.why, text.difference) == (
        "undecided",
        "scored on different text",
        None,
    )
    resolved = {"text_sha256": "c" * 64}
    work = only(differences({"a": base, "b": row("gqa", (2.0, 2.1, 2.2), resolved=resolved)}))
    assert work.why.startswith("unequal work: text None against")
    smoke = {"profile": "smoke", "trials": 3}
    never = only(differences({"a": base, "b": row("gqa", (2.0, 2.1, 2.2), protocol=smoke)}))
    assert (never.verdict, never.why[:26]) == ("undecided", "one side is never ranked (")


def test_only_seeds_in_common_pair() -> None:
    three = row("mha", (1.0, 1.1, 1.2))
    late = [made.trained("gqa", seed, bits=1.5) for seed in (1, 2)]
    one = only(differences({"a": three, "b": rows(late)[0]}))
    assert (one.seeds, one.difference) == (2, pytest.approx(0.35))


def test_a_difference_can_be_asked_from_either_side() -> None:
    table = {"gqa": row("gqa", (1.5, 1.6, 1.4)), "mha": row("mha", (1.49, 1.589, 1.388))}
    found = Trainings("30M", table, tuple(differences(table)))
    turned, straight = found.against("mha", "gqa"), found.against("gqa", "mha")
    assert turned is not None
    assert straight is not None
    assert (turned.verdict, straight.verdict) == ("worse", "better")
    assert turned.difference == pytest.approx(0.011)
    assert (turned.low, turned.high) == (-(straight.high or 0), -(straight.low or 0))
    assert found.against("mha", "nsa") is None
    assert surely_better(list(found.differences)) == {("mha", "gqa")}
    assert found.told.startswith("30M, 0.4")
