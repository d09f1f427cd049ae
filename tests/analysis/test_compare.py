"""Faster, slower or neither: paired, with an interval, and only where the work was equal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from efficientllm import record as r
from efficientllm.analysis.compare import (
    Comparison,
    Line,
    Unequal,
    compare,
    ratio_interval,
)
from efficientllm.analysis.condition import check_condition
from efficientllm.analysis.pairs import apart, paired
from efficientllm.analysis.table import Row
from efficientllm.analysis.work import unequal_work
from efficientllm.metrics import BY_KEY, View
from efficientllm.spec.case import Case
from tests import samples

BF16 = samples.case()
INT8 = samples.case(name="generate-int8", technique="int8")


CODE, OTHER_CODE = (samples.SOFTWARE | {"source": source} for source in "12")


def row(case: Case, tpots: Sequence[float], rounds: Sequence[int] = (), **changes: Any) -> Row:
    """A row whose trials decode at so many seconds a token."""
    views = []
    for i, tpot in zip(rounds or range(len(tpots)), tpots, strict=True):
        windows = samples.generate_windows(tpot=tpot)
        record = samples.record(case, windows=windows, round_=i, readings=(), **changes)
        views.append(View(record, record.points[0]))
    return Row(tuple(views))


def training(
    steps_s: Sequence[float], *, resolved: dict[str, Any] | None = None, **workload: Any
) -> Row:
    fields = {"kind": "pretrain", "sequence_length": 1024, "batch": 4} | workload
    case = samples.pretrain(workload=fields)
    views = []
    for i, unit_s in enumerate(steps_s):
        window = samples.training_window(*case.points[0], unit_s=unit_s)
        extra = {"device": "cuda"} | (resolved or {})
        record = samples.record(case, windows=[window], round_=i, readings=(), resolved=extra)
        views.append(View(record, record.points[0]))
    return Row(tuple(views))


def captured(of: Row, windows: tuple[str, ...]) -> Row:
    """The same row, these windows of which were replays of a graph."""
    points = (view.point.model_copy(update={"captured": windows}) for view in of.views)
    return Row(tuple(View(view.record, p) for view, p in zip(of.views, points, strict=True)))


def line(found: Comparison, key: str) -> Line:
    (one,) = [x for x in found.lines if x.metric.key == key]
    return one


def test_the_ratio_is_the_geometric_mean_of_pairs_with_students_interval() -> None:
    # ratios 0.5 x (1, 1.02, 1.0404): logarithms a step d apart
    d = math.log(1.02)
    found = line(
        compare(row(BF16, (0.01, 0.01, 0.01)), row(INT8, (0.005, 0.0051, 0.005202))), "tpot_s"
    )
    half = 6.205347 * d / math.sqrt(3)  # t with 2 degrees of freedom at 97.5 %: it was looked at
    assert found.ratio == pytest.approx(0.51)
    assert found.low == pytest.approx(0.51 * math.exp(-half), rel=1e-4)
    assert found.high == pytest.approx(0.51 * math.exp(half), rel=1e-4)
    assert (found.pairs, found.verdict, found.word) == (3, "better", "faster")


def test_nothing_is_decided_by_an_attention_that_failed_a_check() -> None:
    """It reads what it must not, say, and is faster for it."""
    model = {"kind": "backbone", "preset": "tiny"}
    own = samples.case(model=model | {"attention": "custom:mine.py:Mine"})
    for verdict, expected in (("failed", "ambiguous"), ("passed", "better")):
        finding = r.Finding(name="causality", verdict=verdict, seen="sees later tokens")
        build = samples.build(attention=r.Examined(name="Mine", findings=(finding,)))
        sides = (
            row(samples.case(model=model), (0.01,) * 3, build=build),
            row(own, (0.005, 0.0051, 0.005), build=build),
        )
        found = compare(*sides)
        assert line(found, "tpot_s").verdict == expected
        if verdict == "failed":
            for found in (compare(*sides), compare(*sides[::-1])):
                assert {x.verdict for x in found.lines} == {"ambiguous"}
                assert "sees later tokens" in line(found, "tpot_s").why
                assert line(found, "tpot_s").least_change is None, "nothing that a build fails for"
                assert check_condition(found, "slower>500%").status == "undecided"


def test_pairs_cancel_what_a_round_does_to_both() -> None:
    drift = (0.010, 0.013, 0.008, 0.011, 0.012)
    found = compare(row(BF16, drift), row(INT8, [0.9 * t for t in drift]))
    one = line(found, "tpot_s")
    assert one.ratio == pytest.approx(0.9)
    assert one.low == pytest.approx(0.9)
    assert one.verdict == "better"


@pytest.mark.parametrize(
    ("factor", "spread", "verdict"),
    [
        (1.10, 0.001, "worse"),
        (0.90, 0.001, "better"),
        (1.005, 0.001, "no difference"),
        (1.02, 0.001, "ambiguous"),  # it touches the band
        (1.10, 0.10, "ambiguous"),  # too noisy to say
        (1.00, 0.05, "ambiguous"),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side_of_the_band(
    factor: float, spread: float, verdict: str
) -> None:
    base = [0.01] * 4
    other = [0.01 * factor * math.exp(e) for e in (-spread, spread, -spread / 2, spread / 2)]
    assert line(compare(row(BF16, base), row(INT8, other)), "tpot_s").verdict == verdict


def test_two_pairs_are_ambiguous_however_far_apart() -> None:
    one = line(compare(row(BF16, (0.01, 0.01)), row(INT8, (0.001, 0.001))), "tpot_s")
    assert one.verdict == "ambiguous"
    assert (one.low, one.high) == (None, None)
    assert one.why.startswith("2 ")
    assert "three" in one.why


def test_higher_is_better_for_rates_and_lower_for_times() -> None:
    found = compare(row(BF16, (0.01,) * 3), row(INT8, (0.008,) * 3))
    assert line(found, "tpot_s").word == "faster"
    rate = line(found, "it_tokens_per_s")
    assert (rate.ratio, rate.word) == (pytest.approx(1.25), "faster")
    back = compare(row(INT8, (0.008,) * 3), row(BF16, (0.01,) * 3))
    assert line(back, "tpot_s").word == line(back, "it_tokens_per_s").word == "slower"


def test_the_change_is_how_much_worse_the_second_is() -> None:
    found = compare(row(BF16, (0.010,) * 3), row(INT8, (0.012,) * 3))
    assert line(found, "tpot_s").change == pytest.approx(0.2)
    assert line(found, "it_tokens_per_s").change == pytest.approx(0.2)


def test_trials_pair_by_round() -> None:
    a, b = row(BF16, (0.01, 0.02, 0.04), (0, 1, 3)), row(INT8, (0.02, 0.04, 9.0), (1, 3, 4))
    pairs, same_card = paired(a, b)
    assert [(x.record.trial.round, y.record.trial.round) for x, y in pairs] == [(1, 1), (3, 3)]
    assert same_card
    assert line(compare(a, b), "tpot_s").ratio == pytest.approx(1.0)


def test_pairs_on_one_card_are_preferred_and_others_are_told() -> None:
    other = samples.MACHINE.model_copy(update={"card": "another card"})
    a = row(BF16, (0.01, 0.01, 0.01))
    moved = row(INT8, (0.01, 0.01, 0.01), machine=other)
    assert not compare(a, moved).same_card
    mixed = Row((*row(INT8, (0.01, 0.01)).views, *row(INT8, (0.02,), (2,), machine=other).views))
    pairs, same_card = paired(a, mixed)
    assert same_card
    assert len(pairs) == 2


def test_cards_and_code_are_told_apart_pair_by_pair() -> None:
    def on(case: Case, cards: str, sources: Sequence[str]) -> Row:
        views = (
            row(
                case,
                (0.01,),
                (round_,),
                machine=samples.MACHINE.model_copy(update={"card": card}),
                software=samples.SOFTWARE | {"source": source},
            ).views
            for round_, (card, source) in enumerate(zip(cards, sources, strict=True))
        )
        return Row(tuple(view for found in views for view in found))

    a = on(BF16, "abc", "111")
    assert apart(a, on(INT8, "abc", "111")) == []
    # Every card and every version is on both sides, and no pair has one of them in common.
    crosswise = on(INT8, "bca", "111")
    assert apart(a, crosswise) == ["card"]
    told = compare(a, crosswise)
    assert not told.same_card  # which is said by that, and once
    assert not [x for x in told.conditions if x.startswith("another")]
    newer = on(INT8, "abc", "112")
    assert apart(a, newer) == ["version of this tool's code"]
    assert "another version of this tool's code" in compare(a, newer).conditions
    assert apart(a, on(INT8, "abc", ("1", "1", ""))) == []  # older records do not know
    never_met = row(INT8, (0.01,), (7,), software=OTHER_CODE)
    assert apart(row(BF16, (0.01,), software=CODE), never_met) == ["version of this tool's code"]


def test_rounds_that_never_meet_compare_counts_only() -> None:
    found = compare(row(BF16, (0.01,) * 3, (0, 1, 2)), row(INT8, (0.01,) * 3, (3, 4, 5)))
    assert {x.metric.kind for x in found.lines} == {"exact"}


def test_one_trial_a_side_decides_what_is_counted() -> None:
    small = samples.build(bytes_by_kind={"other": 2 * 1_050_752 // 4})
    found = line(compare(row(BF16, (0.01,)), row(INT8, (0.01,), build=small)), "weights_gib")
    assert (found.ratio, found.low, found.high) == (0.25, 0.25, 0.25)
    assert (found.verdict, found.word, found.why) == ("better", "smaller", "counted")
    same = line(compare(row(BF16, (0.01,)), row(INT8, (0.01,))), "weights_gib")
    assert (same.ratio, same.verdict) == (1.0, "no difference")
    larger = samples.build(bytes_by_kind={"other": 2 * 1_050_752 + 2})
    barely = line(compare(row(BF16, (0.01,)), row(INT8, (0.01,), build=larger)), "weights_gib")
    assert (barely.verdict, barely.word) == ("worse", "larger")  # no band for what is counted


def test_an_invalid_side_decides_nothing_not_even_counts() -> None:
    bad = row(INT8, (0.001,) * 3)
    views = tuple(
        View(
            v.record,
            v.point.model_copy(
                update={
                    "windows": tuple(
                        w.model_copy(update={"recompiles": 1}) for w in v.point.windows
                    )
                }
            ),
        )
        for v in bad.views
    )
    found = compare(row(BF16, (0.01,) * 3), Row(views))
    assert {(x.verdict, x.why) for x in found.lines if x.metric.kind != "quality"} == {
        ("ambiguous", "one side is invalid")
    }


def test_a_smoke_run_and_one_that_failed_decide_nothing() -> None:
    good = row(BF16, (0.01,) * 3)
    glance = row(INT8, (0.005,) * 3, protocol={"profile": "smoke", "trials": 3})
    lost = row(INT8, (0.005,) * 3)
    ended = lost.views[0].point.model_copy(update={"outcome": r.Outcome(status="out_of_memory")})
    lost = Row((View(lost.views[0].record, ended), *lost.views[1:]))
    for other, why in ((glance, "is a smoke run"), (lost, "ended with out_of_memory")):
        for found in (compare(good, other), compare(other, good)):
            assert {(x.verdict, x.low) for x in found.lines} == {("ambiguous", None)}
            assert why in found.lines[0].why
            assert check_condition(found, "slower>5%").status == "undecided"
            assert why in check_condition(found, "slower>5%").text


@pytest.mark.parametrize(
    ("workload", "named"),
    [
        ({"batch": 8}, "batch 4 against 8"),
        ({"sequence_length": 2048}, "context 1024 against 2048"),
        ({"steps": 100}, "steps None against 100"),
    ],
)
def test_unequal_training_is_refused_with_the_difference_named(
    workload: dict[str, Any], named: str
) -> None:
    with pytest.raises(Unequal, match=named):
        compare(training((0.1,)), training((0.1,), **workload))


def test_unequal_text_and_layout_are_refused() -> None:
    a = training((0.1,), resolved={"text_sha256": "a", "layout": "stream"})
    b = training((0.1,), resolved={"text_sha256": "b", "layout": "packed documents"})
    assert unequal_work(a, b) == [
        "layout stream against packed documents",
        "text a against b",
    ]


def test_unequal_generation_and_unequal_stages_are_refused() -> None:
    longer = samples.case(
        workload={"kind": "generate", "points": {"context": [1024]}, "new_tokens": 64}
    )
    with pytest.raises(Unequal, match="new_tokens 128 against 64"):
        compare(row(BF16, (0.01,)), row(longer, (0.01,)))
    with pytest.raises(Unequal, match="generate against pretrain"):
        compare(row(BF16, (0.01,)), training((0.1,)))


def test_a_prompt_in_one_graph_beside_one_without_is_stated() -> None:
    found = {}
    for names in ((), ("prefill",), ("prefill", "decode")):
        rows = [captured(row(BF16, (0.01,) * 3), windows) for windows in (names, ("decode",))]
        found[names] = compare(*rows).conditions
    stated = ("a prefill in one CUDA graph: True -> False",)
    assert found == {(): (), ("prefill",): stated, ("prefill", "decode"): stated}


def test_micro_batches_and_machines_may_differ_and_are_stated() -> None:
    a = training((0.1,) * 3, resolved={"micro_batch": 4, "attention": "cudnn"})
    other = {"micro_batch": 1, "attention": "flash", "graph": True}
    b = training((0.1,) * 3, resolved=other, micro_batch=1)
    assert compare(a, b).conditions == (
        "micro-batch: 4 -> 1",
        "a step in one CUDA graph: False -> True",
        "attention kernel: cudnn -> flash",
    )
    software = samples.SOFTWARE | {"torch": "2.13.0", "commit": "abc"}
    elsewhere = row(INT8, (0.01,) * 3, machine=samples.CPU_MACHINE, software=software)
    found = compare(row(BF16, (0.01,) * 3), elsewhere).conditions
    assert f"machine: {samples.MACHINE.name} -> {samples.CPU_MACHINE.name}" in found
    assert "torch 2.11.0 -> 2.13.0" in found
    assert not any("commit" in condition for condition in found)


def test_what_is_trained_on_may_be_selected_and_is_stated() -> None:
    same = {"text_sha256": "a" * 64}
    told = {"kept": {"documents": 1200, "bytes": 1}}
    plain = training((0.1,) * 3, resolved=same)
    rules = {"kind": "files", "dedup": "near", "filter": {"min_chars": 9}}
    chosen = training((0.1,) * 3, resolved=same | {"selection": told}, data=rules)
    assert compare(plain, chosen).conditions == (
        "data selection: none -> min_chars 9, dedup near, order shuffled (1,200 documents)",
    )


def scores(*bits: float, text: str = "a" * 64) -> r.Scores:
    """Held-out documents of 1,000 bytes at so many bits a byte each."""
    return r.Scores(
        nll=tuple(b * math.log(2) * 1000 for b in bits),
        tokens=(250,) * len(bits),
        bytes=(1000,) * len(bits),
        text_sha256=text,
        source="sample",
    )


def quality(a: r.Scores, b: r.Scores) -> Line:
    one, two = row(BF16, (0.01,), scores=a), row(INT8, (0.01,), scores=b)
    return line(compare(one, two), "bits_per_byte")


def test_quality_of_the_same_weights_is_paired_over_documents() -> None:
    # documents differ by a factor of four; every one of them gets one percent worse
    base = [0.5 + 0.1 * i for i in range(16)]
    worse = quality(scores(*base), scores(*(b * 1.01 for b in base)))
    assert (worse.verdict, worse.why) == ("worse", "paired over documents")
    better = quality(scores(*base), scores(*(b * 0.99 for b in base)))
    assert better.verdict == "better"
    slight = quality(scores(*base), scores(*(b * 1.001 for b in base)))
    assert (slight.verdict, slight.low) == ("no difference", pytest.approx(1.001))
    wide = quality(scores(*base), scores(*(b * (1 + 0.1 * (-1) ** i) for i, b in enumerate(base))))
    assert (wide.verdict, wide.why) == ("ambiguous", "the interval touches the band of 0.5 %")
    mixed = [b * (1 + 0.002 * (-1) ** i) for i, b in enumerate(base)]
    assert quality(scores(*base), scores(*mixed)).verdict == "no difference"
    assert quality(scores(*base), scores(*base)).verdict == "no difference"


def test_quality_on_other_text_or_on_few_documents_decides_nothing() -> None:
    other = quality(scores(*[1.0] * 10), scores(*[2.0] * 10, text="b" * 64))
    assert (other.verdict, other.why) == ("ambiguous", "scored on different text")
    shorter = scores(*[1.0] * 10).model_copy(update={"bytes": (7,) * 10})
    cut = quality(scores(*[1.0] * 10), shorter)
    assert (cut.verdict, cut.why) == ("ambiguous", "scored on different text")
    few = quality(scores(*[1.0] * 7), scores(*[2.0] * 7))
    assert (few.verdict, few.why) == ("ambiguous", "7 documents; 8 are needed")


def test_generating_with_two_models_says_nothing_about_how_they_were_trained() -> None:
    other = samples.case(
        name="generate-mqa",
        model={"kind": "backbone", "preset": "tiny", "attention": "mqa"},
    )
    one = row(BF16, (0.01,), scores=scores(*[1.0] * 16))
    two = row(other, (0.01,), scores=scores(*[1.2] * 16))
    found = line(compare(one, two), "bits_per_byte")
    assert (found.verdict, found.low) == ("ambiguous", None)
    assert found.why.startswith("separately trained")


def test_joules_of_different_scopes_never_compare() -> None:
    def of(scope: str) -> Row:
        record = samples.record(BF16)
        readings = tuple(x.model_copy(update={"scope": scope}) for x in record.readings)
        record = record.model_copy(update={"readings": readings})
        return Row((View(record, record.points[0]),))

    same = compare(of("board"), of("board"))
    assert line(same, "j_per_token").ratio == pytest.approx(1.0)
    found = compare(of("board"), of("package"))
    assert not [x for x in found.lines if x.metric.key == "j_per_token"]
    assert "energy: board -> package, which never compare" in found.conditions


def test_quality_of_separately_trained_models_needs_three_seeds() -> None:
    def trained(*bits: float) -> Row:
        base = training((0.1,) * len(bits), steps=100)
        views = []
        for view, b in zip(base.views, bits, strict=True):
            record = view.record.model_copy(update={"scores": scores(*[b] * 20)})
            views.append(View(record, view.point))
        return Row(tuple(views))

    two = line(compare(trained(1.0, 1.0), trained(2.0, 2.0)), "bits_per_byte")
    assert two.verdict == "ambiguous"
    three = line(compare(trained(1.0, 1.0, 1.0), trained(1.5, 1.51, 1.49)), "bits_per_byte")
    assert three.verdict == "worse"


def test_conditions_of_training_are_stated() -> None:
    a = training((0.1,), resolved={"loss": "plain"})
    b = training(
        (0.1,),
        resolved={"loss": "chunked"},
        precision={"params": "bf16", "optimizer_state": "bf16"},
        optimizer={"lr": 1e-2, "schedule": "wsd", "decay_share": 0.3},
    )
    assert list(compare(a, b).conditions) == [
        "training precision: bf16 on float32 weights -> bf16",
        "optimizer.schedule: cosine -> wsd",
        "optimizer.decay_share: 0.2 -> 0.3",
        "optimizer.lr: 0.0001 -> 0.01",
        "loss: plain -> chunked",
    ]
    assert compare(a, a).conditions == ()


def test_equal_machines_show_no_difference_and_never_a_false_one() -> None:
    """200 pairs of rows of five trials each, which differ by 1 % noise and nothing else."""
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        a, b = 0.01 * generator.lognormal(0, 0.01, size=(2, 5))
        verdict = _decode_verdict(a, b)
        wrong += verdict in ("better", "worse")
    assert wrong / 200 <= 0.05


@pytest.mark.parametrize(("n", "noise"), [(5, 0.007), (7, 0.01)])
def test_a_slowdown_of_five_percent_is_found(n: int, noise: float) -> None:
    """Paired ratios scatter by 1.4 times the noise of a trial: 1 % at n = 5, 1.4 % at 7."""
    generator = np.random.default_rng(1)
    found = 0
    for _ in range(200):
        a, b = 0.01 * generator.lognormal(0, noise, size=(2, n))
        found += _decode_verdict(a, 1.05 * b) == "worse"
    assert found / 200 >= 0.95


PLAIN = row(BF16, (0.01,) * 7)


def _decode_verdict(a: np.ndarray, b: np.ndarray) -> str:
    return line(compare(_timed(a), _timed(b)), "tpot_s").verdict


def _timed(tpots: np.ndarray) -> Row:
    """The sample row with other decode times; nothing is validated again."""
    views = []
    for view, tpot in zip(PLAIN.views[: len(tpots)], tpots, strict=True):
        decode = view.point.windows[1].model_copy(update={"unit_s": (float(tpot),) * 3})
        point = view.point.model_copy(update={"windows": (decode,)})
        views.append(View(view.record, point))
    return Row(tuple(views))


def test_the_interval_of_ratios_covers_the_truth_as_often_as_stated() -> None:
    generator = np.random.default_rng(2)
    for n in (3, 5, 10):
        covered = 0
        for ratios in 1.3 * generator.lognormal(0, 0.02, size=(3000, n)):
            low, high = ratio_interval(list(ratios), looked=False)
            assert low is not None
            assert high is not None
            covered += low <= 1.3 <= high
        assert 0.93 <= covered / 3000 <= 0.97
    assert ratio_interval([1.0, 1.1], looked=False) == (None, None)


@pytest.mark.parametrize(
    ("key", "verdict", "word"),
    [
        ("tpot_s", "better", "faster"),
        ("train_tokens_per_s", "worse", "slower"),
        ("peak_allocated_gib", "better", "smaller"),
        ("weights_gib", "worse", "larger"),
        ("j_per_token", "better", "less energy"),
        ("aec_w", "worse", "more power"),
        ("bits_per_byte", "worse", "worse"),
        ("tpot_s", "ambiguous", "ambiguous"),
        ("tpot_s", "no difference", "no difference"),
    ],
)
def test_verdicts_are_said_in_the_metrics_own_words(key: str, verdict: Any, word: str) -> None:
    assert Line(BY_KEY[key], 1.0, 2.0, 2.0, 1.9, 2.1, 5, verdict).word == word
