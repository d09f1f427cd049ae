"""Sweeps of the learning rate: the best, whether it lies at the edge, and the bill."""

from __future__ import annotations

from typing import Any

import pytest

from efficientllm import record as r
from efficientllm.analysis.sweep import learning_rate, sweeps, tuned
from efficientllm.analysis.table import Row, rows
from tests import samples
from tests.report import architecture_samples as made


def swept(bits: dict[float, float], name: str = "mha", **changes: Any) -> list[Row]:
    return rows([made.trained(name, lr=lr, bits=b, **changes) for lr, b in bits.items()])


def test_the_rate_with_the_fewest_bits_is_best_and_inside_it_has_no_flag() -> None:
    (found,) = sweeps(swept({1e-3: 1.6, 2e-3: 1.5, 4e-3: 1.55}))
    assert learning_rate(found.best) == 2e-3
    assert found.tried == (1e-3, 2e-3, 4e-3)
    assert found.flags == ()


@pytest.mark.parametrize(("best", "end"), [(1e-3, "smallest"), (4e-3, "largest")])
def test_a_best_rate_at_the_edge_is_flagged(best: float, end: str) -> None:
    bits = {1e-3: 1.6, 2e-3: 1.6, 4e-3: 1.6} | {best: 1.5}
    (found,) = sweeps(swept(bits))
    (flag,) = found.flags
    assert (flag.code, flag.about) == ("EDGE_OF_SWEEP", "quality")
    assert f"{best:g}, is the {end} of 3" in flag.text


def test_a_rate_at_which_training_broke_was_tried() -> None:
    broken = made.trained("mha", lr=8e-3, outcome=r.Outcome(status="nan", reason="step 3"))
    broken = broken.model_copy(update={"scores": None, "curve": ()})
    kept = [made.trained("mha", lr=lr, bits=b) for lr, b in ((1e-3, 1.6), (4e-3, 1.5))]
    (found,) = sweeps(rows([*kept, broken]))
    assert found.tried == (1e-3, 4e-3, 8e-3)
    assert found.flags == (), "the next larger one broke, so 0.004 lies inside"
    assert found.trials == 3
    assert (found.joules, found.why_no_joules) == (None, "nan: step 3")


def test_the_bill_counts_every_trial() -> None:
    trials = [
        made.trained("mha", seed, lr=lr, bits=1.5 + lr) for lr in (1e-3, 2e-3) for seed in range(3)
    ]
    (found,) = sweeps(rows(trials))
    assert found.trials == 6
    assert found.seconds == 600.0
    # 500 W over 192 steps of 65,536 tokens at 9.256 us a token, six times
    assert found.joules == pytest.approx(6 * 500 * 192 * 65536 * 9.256e-6, rel=1e-6)


def test_one_rate_is_no_sweep_and_variants_are_swept_apart() -> None:
    assert sweeps(swept({1e-3: 1.5})) == []
    both = [*swept({1e-3: 1.6, 2e-3: 1.5}), *swept({1e-3: 1.4, 2e-3: 1.5}, "mla")]
    assert [learning_rate(sweep.best) for sweep in sweeps(both)] == [2e-3, 1e-3]


def test_rates_tried_on_two_machines_are_no_sweep() -> None:
    elsewhere = samples.MACHINE.model_copy(update={"name": "another"})
    assert sweeps([*swept({1e-3: 1.6}), *swept({2e-3: 1.5}, machine=elsewhere)]) == []


def test_tuned_keeps_the_best_of_each_sweep_and_what_was_not_swept() -> None:
    table = [*swept({1e-3: 1.6, 2e-3: 1.5}), *swept({1e-3: 1.4}, "mla")]
    assert [(row.name, learning_rate(row)) for row in tuned(table)] == [
        ("learn-mha-rope-0.002", 2e-3),
        ("learn-mla-rope-0.001", 1e-3),
    ]
    assert tuned(rows([made.pretrain("mha", 4096)])) == [], "nothing was learned there"


def test_rates_are_compared_on_the_seeds_that_they_share() -> None:
    """Seed 0 is a lucky one: alone at one rate it would beat the mean of three at the other."""
    trials = [made.trained("mha", seed, lr=2e-3, bits=1.4 + 0.1 * seed) for seed in range(3)]
    lucky = made.trained("mha", 0, lr=1e-3, bits=1.45)
    (found,) = sweeps(rows([*trials, lucky]))
    assert learning_rate(found.best) == 2e-3
    others = [made.trained("mha", seed, lr=1e-3, bits=1.45) for seed in range(3, 6)]
    (found,) = sweeps(rows([*trials, *others]))
    assert learning_rate(found.best) == 1e-3, "no seed in common: 1.45 against a mean of 1.5"


def test_a_rate_with_fewer_seeds_is_told_and_not_chosen() -> None:
    """Two seeds of a sweep would undo what three had decided."""
    trials = [made.trained("mha", seed, lr=2e-3, bits=1.5) for seed in range(3)]
    better = [made.trained("mha", seed, lr=1e-3, bits=1.4) for seed in range(2)]
    (found,) = sweeps(rows([*trials, *better]))
    assert (learning_rate(found.best), found.among) == (2e-3, 1)
    assert found.tried == (1e-3, 2e-3)
    assert [flag.code for flag in found.flags] == ["EDGE_OF_SWEEP", "SWEEP_UNFINISHED"]
    assert "0.001 is better on what seeds it has (2)" in found.flags[1].text
    (found,) = sweeps(rows([*trials, *better, made.trained("mha", 2, lr=1e-3, bits=1.4)]))
    assert (learning_rate(found.best), found.among) == (1e-3, 2)
    assert [flag.code for flag in found.flags] == ["EDGE_OF_SWEEP"]


def test_a_rate_that_two_versions_of_a_library_tried_counts_once() -> None:
    seeds = [made.trained("mha", s, lr=lr) for lr in (1e-3, 2e-3) for s in range(3)]
    again = [record.model_copy(update={"env_id": "0" * 64}) for record in seeds]
    (found,) = sweeps(rows([*seeds, *again]))
    assert (found.among, found.tried) == (2, (1e-3, 2e-3))


def invalid(lr: float, bits: float) -> r.Record:
    """A training of which nothing counts: it was compiled again inside the window."""
    window = samples.training_window(64, 1024).model_copy(update={"recompiles": 1})
    return made.trained("mha", lr=lr, bits=bits, windows=[window])


def test_of_several_unfinished_rates_the_best_is_told_unless_it_is_invalid() -> None:
    trials = [made.trained("mha", seed, lr=2e-3, bits=1.5) for seed in range(3)]
    few = {1e-3: 1.45, 4e-3: 1.4, 8e-3: 1.6}
    trials += [made.trained("mha", lr=lr, bits=bits) for lr, bits in few.items()]
    (found,) = sweeps(rows([*trials, invalid(5e-4, 1.3)]))
    (flag,) = found.flags
    assert flag.code == "SWEEP_UNFINISHED"
    assert flag.text == (
        "a learning rate of 0.004 is better on what seeds it has (1), and is not chosen before"
        " it has 3"
    )


def test_an_invalid_quality_is_never_the_best() -> None:
    kept = [made.trained("mha", lr=lr, bits=bits) for lr, bits in ((1e-3, 1.6), (2e-3, 1.5))]
    (found,) = sweeps(rows([*kept, invalid(4e-3, 1.4)]))
    assert (learning_rate(found.best), found.among) == (2e-3, 2)
    assert found.tried == (1e-3, 2e-3, 4e-3)


def test_a_rate_with_enough_seeds_is_never_called_unfinished() -> None:
    """The third rate has one seed, the lucky one of the second: what all share proves nothing."""
    bits = {2e-3: (1.5, 1.5, 1.5), 1e-3: (1.4, 1.6, 1.7), 4e-3: (1.9,)}
    trials = [
        made.trained("mha", seed, lr=lr, bits=b)
        for lr, found in bits.items()
        for seed, b in enumerate(found)
    ]
    (found,) = sweeps(rows(trials))
    assert learning_rate(found.best) == 2e-3
    assert found.flags == ()


@pytest.mark.parametrize("status", ["interrupted", "out_of_memory", "unsupported"])
def test_what_says_nothing_about_a_rate_was_not_tried(status: Any) -> None:
    ended = made.trained("mha", lr=1e-3, outcome=r.Outcome(status=status, reason="so"))
    ended = ended.model_copy(update={"scores": None, "curve": ()})
    kept = [made.trained("mha", lr=lr, bits=b) for lr, b in ((2e-3, 1.5), (4e-3, 1.6))]
    (found,) = sweeps(rows([ended, *kept]))
    assert found.tried == (2e-3, 4e-3)
    assert [flag.code for flag in found.flags] == ["EDGE_OF_SWEEP"]
