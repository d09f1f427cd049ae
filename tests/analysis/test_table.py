"""Rows: what counts as a repeat of what, and where a value's interval comes from."""

from __future__ import annotations

import math
from typing import Any

import pytest

from efficientllm import record as r
from efficientllm.analysis.compare import barred
from efficientllm.analysis.precision import precise
from efficientllm.analysis.stats import over_documents
from efficientllm.analysis.table import Row, cells_of, rows
from efficientllm.metrics import Ceiling
from efficientllm.spec.protocol import Protocol
from tests import samples


def trial(round_: int, unit_s: float = 0.1, **changes: Any) -> r.Record:
    """One trial of the sample pretrain case with steps of so many seconds."""
    window = samples.training_window(unit_s=unit_s)
    return samples.record(samples.pretrain(), windows=[window], round_=round_, **changes)


def only(records: list[r.Record]) -> Row:
    (row,) = rows(records)
    return row


def test_rounds_of_one_case_are_one_row_in_their_order() -> None:
    row = only([trial(2), trial(0), trial(1)])
    assert [view.record.trial.round for view in row.views] == [0, 1, 2]
    assert row.record.trial.round == 2
    assert (row.name, row.point, row.status) == ("pretrain-gqa", "b4 c1024", "ok")


def test_another_environment_or_another_case_is_another_row() -> None:
    assert len(rows([trial(0), trial(1, env_id="other")])) == 2
    assert len(rows([trial(0), samples.record(round_=1)])) == 2


def test_each_point_is_a_row() -> None:
    workload = {"kind": "generate", "points": {"batch": [1, 8], "context": [1024]}}
    case = samples.case(workload=workload)
    points = tuple(
        r.PointResult(
            point_id=case.point_id(point),
            batch=point.batch,
            context=point.context,
            windows=tuple(samples.generate_windows(*point)),
        )
        for point in case.points
    )
    made = rows([samples.record(case, points=points)])
    assert [row.point for row in made] == ["b1 c1024", "b8 c1024"]


def test_of_several_attempts_at_a_round_the_last_counts() -> None:
    crashed = r.Outcome(status="crash", reason="once")
    first = trial(0, outcome=crashed)
    second = trial(0, attempt=1)
    row = only([second, first])
    assert row.status == "ok"
    assert [view.record.trial.attempt for view in row.views] == [1]


def test_a_trial_that_never_reached_a_point_is_a_row_for_each_point_it_should_have_had() -> None:
    workload = {"kind": "generate", "points": {"batch": [1, 8], "context": [1024, 2048]}}
    case = samples.case(workload=workload)
    outcome = r.Outcome(status="out_of_memory", reason="while loading")
    made = rows([samples.record(case, outcome=outcome)])
    assert [row.point for row in made] == ["b1 c1024", "b8 c1024", "b1 c2048", "b8 c2048"]
    assert {(row.status, row.reason) for row in made} == {("out_of_memory", "while loading")}
    assert made[0].cell("tpot_s").reason == "out_of_memory: while loading"


def test_an_old_failure_gives_way_to_a_later_success_elsewhere_it_stays() -> None:
    failed = trial(0, outcome=r.Outcome(status="crash", reason="old driver"), env_id="old")
    assert only([failed, trial(0)]).status == "ok"
    assert only([failed]).status == "crash"


def test_a_failure_that_came_later_stands_beside_what_went_well_before() -> None:
    """An upgrade that breaks a case leaves a trace."""
    later = {"env_id": "new", "started_at": "2030-01-01T00:00:00+00:00"}
    failed = trial(0, outcome=r.Outcome(status="crash", reason="new driver"), **later)
    assert [row.status for row in rows([trial(0), failed])] == ["ok", "crash"]
    mended = trial(0, env_id="newer", started_at="2031-01-01T00:00:00+00:00")
    assert [row.status for row in rows([trial(0), failed, mended])] == ["ok", "ok"]


def test_a_run_that_was_stopped_later_is_no_failure() -> None:
    later = {"env_id": "new", "started_at": "2030-01-01T00:00:00+00:00"}
    stopped = trial(0, outcome=r.Outcome(status="interrupted", reason="stopped by SIGINT"), **later)
    assert only([trial(0), stopped]).status == "ok"
    assert only([stopped]).status == "interrupted"


def test_a_row_with_one_smoke_trial_is_not_ranked() -> None:
    glance = trial(0, protocol={"profile": "smoke"})
    mixed = only([glance, trial(1), trial(2)])
    assert mixed.record.protocol["profile"] == "standard"
    assert not mixed.ranked
    assert barred(only([trial(i) for i in range(3)]), mixed).endswith("which is never ranked")


def test_a_shorter_protocol_replaces_nothing_that_a_longer_one_measured() -> None:
    later = {"started_at": "2030-01-01T00:00:00+00:00", "protocol": {"profile": "quick"}}
    row = only([trial(0), trial(1), trial(2), trial(0, 0.2, **later)])
    assert (
        row.cell("step_p50_s").interval
        == only([trial(i) for i in range(3)]).cell("step_p50_s").interval
    )
    lost = trial(0, outcome=r.Outcome(status="crash", reason="so"))
    assert only([lost, trial(0, **later)]).status == "ok", "but a failure gives way"
    longer = {"started_at": "2031-01-01T00:00:00+00:00", "protocol": {"profile": "publish"}}
    assert only([trial(0), trial(0, **longer)]).record.protocol["profile"] == "publish"


def test_trials_of_several_versions_of_this_tool_are_one_row_that_says_so() -> None:
    newer = trial(1, software=samples.SOFTWARE | {"source": "b" * 64})
    found = {flag.code: flag for flag in only([trial(0), newer, trial(2)]).flags}
    assert found["MIXED_CODE"].level == "info"
    assert "by 2 versions" in found["MIXED_CODE"].text
    assert "MIXED_CODE" not in {flag.code for flag in only([trial(0), trial(1)]).flags}


def test_probes_are_no_rows() -> None:
    case = samples.case(name="probe", technique=None, workload={"kind": "probe"})
    assert rows([samples.record(case, windows=[samples.window("sleep")])]) == []


def test_three_trials_give_an_interval_over_trials() -> None:
    cell = only([trial(0, 0.100), trial(1, 0.110), trial(2, 0.121)]).cell("step_p50_s")
    assert cell.interval is not None
    assert cell.interval.value == pytest.approx(0.11)
    assert (cell.interval.n, cell.interval.basis) == (3, "trials")
    assert cell.interval.low is not None
    assert cell.interval.low < 0.09  # Student's t of three, paid for looking


def test_a_stated_number_of_trials_pays_nothing_for_looking() -> None:
    def half_width(trials: int | None) -> float:
        protocol = {"profile": "standard", "trials": trials}
        made = [trial(i, s, protocol=protocol) for i, s in enumerate((0.10, 0.11, 0.12))]
        interval = only(made).cell("step_p50_s").interval
        assert interval is not None
        assert interval.half_width is not None
        return interval.half_width

    assert half_width(3) < half_width(None)


def test_one_trial_gives_an_interval_within_the_run() -> None:
    window = samples.training_window()
    uneven = tuple(0.1 + 0.001 * (i // 10) for i in range(100))
    window = window.model_copy(
        update={"unit_s": uneven, "end_ns": window.start_ns + round(sum(uneven) * 1e9)}
    )
    cell = only([samples.record(samples.pretrain(), windows=[window])]).cell("step_p50_s")
    assert cell.interval is not None
    assert cell.interval.basis == "within-run"
    assert cell.interval.n == 10
    assert cell.interval.low is not None
    assert cell.interval.low < cell.interval.value < (cell.interval.high or 0)


def test_energy_blocks_are_never_shorter_than_energy_can_be_read() -> None:
    # ten seconds are five blocks of two seconds, not ten of one
    cell = only([trial(0)]).cell("j_per_token")
    assert cell.interval is not None
    assert cell.interval.n == 5
    assert cell.interval.value == pytest.approx(500 * 10 / 409_600)


def test_quality_of_one_trial_has_an_interval_over_its_documents() -> None:
    nll = tuple(600.0 + 10 * i for i in range(20))
    scores = samples.scores().model_copy(update={"nll": nll})
    row = only([trial(0, scores=scores)])
    expected = over_documents(nll, scores.bytes)
    assert expected is not None
    bits, perplexity = row.cell("bits_per_byte").interval, row.cell("perplexity").interval
    assert bits is not None
    assert perplexity is not None
    assert bits.basis == perplexity.basis == "text"
    assert bits.low == pytest.approx(expected[0] / math.log(2))
    # 250 tokens and 1,000 bytes a document
    assert perplexity.high == pytest.approx(math.exp(4 * expected[1]))
    assert bits.low < bits.value < bits.high  # type: ignore[operator]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_counts_are_exact_from_the_first_trial_on(count: int) -> None:
    row = only([trial(i) for i in range(count)])
    for key, expected in (("weights_gib", 2 * 1_050_752 / 2**30), ("bits_per_param", 16.0)):
        interval = row.cell(key).interval
        assert interval is not None
        assert interval.value == expected
        assert (interval.low, interval.high) == (None, None)
        assert (interval.n, interval.basis) == (count, "exact")


def test_a_count_of_nothing_is_a_count() -> None:
    interval = only([trial(i) for i in range(3)]).cell("trainable_params").interval
    assert interval is not None
    assert (interval.value, interval.basis) == (0.0, "exact")


def test_counts_that_differ_between_trials_are_treated_as_measured() -> None:
    builds = [samples.build(bytes_by_kind={"other": n}) for n in (1000, 1010, 1020)]
    interval = only([trial(i, build=b) for i, b in enumerate(builds)]).cell("weights_gib").interval
    assert interval is not None
    assert interval.basis == "trials"
    assert interval.low is not None


def test_a_cell_without_a_value_keeps_the_reason() -> None:
    cell = only([trial(0, scores=None, notes={"quality": "not asked for"})]).cell("bits_per_byte")
    assert (cell.interval, cell.reason) == (None, "not asked for")


def test_an_invalid_window_makes_every_cell_invalid_and_the_row_unranked() -> None:
    window = samples.training_window().model_copy(update={"recompiles": 1})
    bad = samples.record(samples.pretrain(), windows=[window])
    row = only([bad])
    assert row.cell("step_p50_s").invalid
    assert not row.ranked
    assert only([trial(0)]).ranked
    assert not only([trial(0)]).cell("step_p50_s").invalid


def test_a_smoke_run_is_never_ranked() -> None:
    assert not only([trial(0, protocol={"profile": "smoke", "trials": None})]).ranked


def test_flags_of_all_trials_stand_on_the_row_with_the_worst_first() -> None:
    invalid = samples.training_window().model_copy(update={"recompiles": 2})
    loose = samples.training_window().model_copy(update={"converged": False})
    made = [
        samples.record(samples.pretrain(), windows=[w], round_=i)
        for i, w in enumerate((loose, invalid, samples.training_window()))
    ]
    codes = [flag.code for flag in only(made).flags]
    assert codes[0] == "RECOMPILE"
    assert "WARMUP_NOT_CONVERGED" in codes
    assert len(codes) == len(set(codes))


def test_a_compressed_row_is_compared_with_its_uncompressed_one() -> None:
    bf16 = samples.record()
    int4 = samples.record(samples.case(name="int4", technique="int4"), scores=samples.scores(1.25))
    made = {row.name: row for row in rows([int4, bf16])}
    retained = made["int4"].cell("quality_retained").interval
    assert retained is not None
    assert retained.value == pytest.approx(0.8)
    assert "no uncompressed row" in made["generate-bf16"].cell("quality_retained").reason


def test_a_row_of_another_model_or_machine_is_no_reference() -> None:
    int4 = samples.case(name="int4", technique="int4")
    other_model = samples.record(samples.case(model="backbone-small"))
    other_machine = samples.record(machine=samples.CPU_MACHINE)
    for reference in (other_model, other_machine):
        made = {row.name: row for row in rows([samples.record(int4), reference])}
        assert made["int4"].cell("quality_retained").interval is None


def test_ceilings_belong_to_their_machine() -> None:
    ceilings = {samples.MACHINE.name: Ceiling(flops=700e12, bytes_per_s=4.3e12)}
    with_, without = rows([trial(0)], ceilings)[0], rows([trial(0)], {"other": Ceiling()})[0]
    assert with_.cell("roofline_share").interval is not None
    assert "efficientllm doctor" in without.cell("roofline_share").reason


def test_the_cells_of_a_row_are_the_metrics_of_its_stage() -> None:
    keys = set(cells_of(only([trial(0)])))
    assert "train_tokens_per_s" in keys
    assert "tpot_s" not in keys


STANDARD = Protocol(profile="standard")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((0.1000, 0.1001, 0.0999), True),  # t of three, looked at: 6.2 x 0.1 % / 1.7
        ((0.100, 0.101, 0.099), False),
        ((0.100, 0.101, 0.099, 0.1, 0.1, 0.1, 0.1), True),
        ((0.1000, 0.1000), False),  # two trials have no interval
    ],
)
def test_a_case_is_measured_until_its_intervals_are_narrow(
    seconds: tuple[float, ...], expected: bool
) -> None:
    made = [trial(i, s) for i, s in enumerate(seconds)]
    assert precise(made, STANDARD) == expected


def test_energy_has_its_own_precision() -> None:
    watts = (500.0, 520.0, 480.0)  # 4 % apart while the time stands still
    made = [trial(i, readings=(samples.counter(w),)) for i, w in enumerate(watts)]
    assert not precise(made, STANDARD)
    steady = [trial(i, readings=(samples.counter(500.0),)) for i in range(3)]
    assert precise(steady, STANDARD)


def test_what_nothing_measured_asks_for_nothing() -> None:
    made = [trial(i, readings=()) for i in range(3)]
    assert precise(made, STANDARD)
    assert precise([trial(0)], Protocol(profile="quick"))
    assert precise([trial(0)], Protocol(profile="standard", trials=1))
