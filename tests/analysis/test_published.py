"""Our rows beside the paper's: which belong there, what may be divided, who ranks alike."""

from __future__ import annotations

from typing import Any

import pytest

from efficientllm import record as r
from efficientllm.analysis.beside import Line
from efficientllm.analysis.published import Published, beside_the_paper
from efficientllm.analysis.table import rows
from tests import samples
from tests.report.published_samples import attention, trial


def beside(*records: r.Record) -> list[Published]:
    return beside_the_paper(rows(records))


def only(*records: r.Record) -> Published:
    (found,) = beside(*records)
    return found


def line(found: Published, key: str) -> Line:
    return next(x for x in found.lines if x.metric.key == key)


def test_ratios_by_hand_with_the_paper_s_number_and_rank() -> None:
    found = only(*attention((0.3, 0.3849, 0.5, 0.6)))
    assert (found.table.table, found.size, found.preset) == (3, "1.5B", "1.5B")
    seconds = line(found, "al_s").cells
    assert list(seconds) == ["mqa", "gqa", "mla", "nsa"]
    assert seconds["gqa"].ratio == pytest.approx(3.0)  # 0.3849 / 0.1283
    assert (str(seconds["gqa"].theirs), str(seconds["gqa"].rank)) == ("0.1283 A", "2 S")
    assert line(found, "amu_gib").cells["gqa"].ratio == pytest.approx(40 / 44.87)
    assert line(found, "peak_allocated_gib").cells["gqa"].ratio == pytest.approx(2 / 44.87)
    assert line(found, "aec_w").cells["nsa"].ratio == pytest.approx(500 / 598, rel=1e-3)


def test_orders_by_hand_and_the_pairs_that_disagree() -> None:
    """Published seconds: GQA < MQA < MLA < NSA. Here MQA < GQA < NSA < MLA."""
    agreement = line(only(*attention((0.30, 0.32, 0.60, 0.50))), "al_s").agreement
    assert agreement is not None
    assert agreement.tau == pytest.approx((4 - 2) / 6)
    # |S| >= 2 in all orders but the six with S = 0
    assert agreement.p == pytest.approx(18 / 24)
    assert (agreement.n, agreement.estimated) == (4, 0)
    named = {(pair.smaller_here, pair.larger_here): pair.close for pair in agreement.against}
    assert named == {("mqa", "gqa"): (), ("nsa", "mla"): ()}


def test_full_agreement_of_four_is_p_one_in_twelve() -> None:
    agreement = line(only(*attention((0.32, 0.30, 0.50, 0.60))), "al_s").agreement
    assert agreement is not None
    assert (agreement.tau, agreement.p) == (1.0, pytest.approx(1 / 12))
    assert agreement.against == ()


def test_a_disagreement_of_estimates_that_the_figure_tells_apart_stands() -> None:
    """GQA's 44.5 GB and NSA's 43.9 are 0.70 and 0.74 in the figure, which reads to 0.01."""
    step: dict[str, Any] = {"preset": "0.5B", "step": (4, 8192)}
    found = only(trial("gqa", gib=40.0, **step), trial("nsa", gib=50.0, **step))
    agreement = line(found, "amu_gib").agreement
    assert agreement is not None
    assert (agreement.tau, agreement.estimated) == (-1.0, 2)
    (pair,) = agreement.against
    assert (pair.smaller_here, pair.larger_here, pair.close) == ("gqa", "nsa", ())


def test_a_disagreement_that_our_own_values_do_not_carry_says_so() -> None:
    found = only(trial("mla", gib=50.0), trial("nsa", gib=50.5))
    agreement = line(found, "amu_gib").agreement
    assert agreement is not None
    (pair,) = agreement.against
    assert pair.close == ("ours are within 2%, or their intervals meet",)


def test_estimates_that_the_figure_cannot_tell_apart_are_named() -> None:
    """MLA's perplexity and NSA's, which is an estimate, are drawn at 0.78 and 0.76."""

    def scored(kind: str, bits: float) -> r.Record:
        case = trial(kind, workload={"steps": 100})
        return case.model_copy(update={"scores": samples.scores(bits), "notes": {}})

    found = only(scored("mla", 1.2), scored("nsa", 1.0))
    quality = line(found, "perplexity")
    assert quality.agreement is not None
    (pair,) = quality.agreement.against
    assert pair.close == ("the paper's values lie within their error",)
    assert quality.cells["mla"].ratio == pytest.approx(2 ** (1.2 * 4) / 7.79)


def test_equal_values_are_ties_and_no_disagreement() -> None:
    tied = line(only(*attention((0.30, 0.30, 0.50, 0.60))), "al_s").agreement
    assert tied is not None
    assert tied.tau == pytest.approx(5 / 30**0.5)  # 5 of 5 pairs told apart, of 6
    assert tied.against == ()
    half = only(
        trial("mqa", preset="0.5B", step=(4, 8192), seconds=0.1),
        trial("gqa", preset="0.5B", step=(4, 8192), seconds=0.2),
    )
    assert line(half, "al_s").unranked == "all are equal on one side", "~0.13 and ~0.13"


def test_an_impossible_value_is_shown_with_its_reason_and_never_divided_or_ranked() -> None:
    found = only(trial(), trial(position="t5"))
    throughput = line(found, "tt_tokens_per_param_s")
    cell = throughput.cells["t5"]
    assert str(cell.theirs) == "8.98e-2 A"
    assert cell.ours.interval is not None
    assert (cell.ratio, cell.reason) == (None, "the paper's value is impossible")
    assert throughput.agreement is None
    assert "impossible" in throughput.unranked
    missing = throughput.cells["rope"]
    assert (missing.ratio, missing.reason) == (None, "in the paper no raw value was found")
    assert str(missing.figure) == "0.84 F"


def test_a_failed_variant_keeps_its_place_with_its_reason() -> None:
    reason = "its kernel needs 16 query heads"
    lost = trial("nsa", outcome=r.Outcome(status="unsupported", reason=reason))
    found = only(trial("mqa", seconds=0.1), trial("gqa", seconds=0.2), lost)
    seconds = line(found, "al_s")
    assert seconds.cells["nsa"].reason == f"unsupported: {reason}"
    assert seconds.agreement is not None
    assert seconds.agreement.n == 2
    assert beside(trial("mqa"), lost) == [], "one finished variant is no comparison"


def test_what_the_paper_could_not_be_read_for_is_left_out_of_the_order() -> None:
    step = {"preset": "3B", "step": (1, 8192)}
    found = only(*(trial(k, **step) for k in ("mqa", "gqa", "mla")))
    seconds = line(found, "al_s")
    assert "hidden" in seconds.cells["mqa"].reason
    assert seconds.unranked == "all are equal on one side"
    assert line(found, "perplexity").unranked == "0 of the two variants that an order takes"
    assert line(found, "perplexity").cells["gqa"].reason == "NOT_TRAINED: no budget"


def test_other_work_is_ranked_and_not_divided() -> None:
    found = only(*attention((0.3, 0.2, 0.5, 0.6), preset="1.5B-h16", step=(8, 4096)))
    seconds = line(found, "al_s")
    assert seconds.cells["gqa"].ratio is None
    assert seconds.cells["gqa"].reason == "a step of 8 x 4,096 tokens here, 2 x 8,192 there"
    assert seconds.agreement is not None
    assert seconds.agreement.tau == 1.0
    assert line(found, "aec_w").cells["gqa"].ratio == pytest.approx(500 / 652.7, rel=1e-3)
    assert found.conditions == (
        "machine: 1 x NVIDIA H200 here, 48 x GH200 96GB there",
        "a step of 8 x 4,096 tokens here, 2 x 8,192 there",
        "shape: 1.5B-h16 here, with 16 query heads; 1.5B of Qwen2.5 there",
    )


def test_another_machine_or_another_length_is_another_table_and_the_paper_s_own_first() -> None:
    other = {"machine": samples.CPU_MACHINE, "readings": ()}
    here = [trial("mqa"), trial("gqa")]
    longer = [trial(k, step=(2, 16384)) for k in ("mqa", "gqa")]
    heads = [trial(k, preset="1.5B-h16") for k in ("mqa", "gqa")]
    found = beside(*heads, *longer, *here, trial("mqa", **other), trial("gqa", **other))
    told = [(p.preset, p.first.point, p.first.record.machine.device_kind) for p in found]
    assert set(told[:2]) == {("1.5B", "b2 c8192", "cuda"), ("1.5B", "b2 c8192", "cpu")}
    assert told[2:] == [("1.5B", "b2 c16384", "cuda"), ("1.5B-h16", "b2 c8192", "cuda")]


def test_one_row_stands_in_both_tables() -> None:
    found = beside(trial(), trial("mla"), trial(position="none"))
    assert [(p.table.table, list(p.rows)) for p in found] == [
        (3, ["gqa", "mla"]),
        (4, ["rope", "none"]),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "mha"},
        {"attention": "sliding"},
        {"position": "alibi"},
        {"attention": "mqa", "position": "none"},
        {"attention": {"kind": "gqa", "kv_heads": 4}},
        {"attention": "mqa", "model": {"layers": 2}},
        {"attention": "mqa", "model": {"match": "params"}},
        {"attention": "mqa", "preset": "small"},
    ],
)
def test_what_is_not_the_paper_s_variant_stays_out(changes: dict[str, Any]) -> None:
    assert beside(trial(), trial(**changes)) == []


def test_of_two_rows_of_a_variant_the_newest_that_ran_counts() -> None:
    old = trial("mqa", seconds=0.2, env_id="a" * 64)
    new = trial("mqa", seconds=0.4, env_id="b" * 64, started_at="2026-03-01T00:00:00+00:00")
    found = only(new, old, trial())
    interval = line(found, "al_s").cells["mqa"].ours.interval
    assert interval is not None
    assert interval.value == pytest.approx(0.4)


def test_a_smoke_run_is_shown_and_neither_divided_nor_ranked() -> None:
    smoke = {"protocol": {"profile": "smoke"}}
    seconds = line(only(trial("mqa", **smoke), trial(**smoke)), "al_s")
    assert "protocol" in seconds.cells["mqa"].reason
    assert seconds.agreement is None


def test_a_split_step_is_a_condition() -> None:
    split = {"resolved": {"device": "cuda", "activations": "bf16", "micro_batch": 1}}
    found = only(trial("mqa", **split), trial(**split))
    assert found.conditions[-1] == "micro-batch: 1 sequences here"
