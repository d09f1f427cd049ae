"""Validity flags: each on a record that deserves it, at its level, and not on a sound one."""

from __future__ import annotations

from typing import Any

import pytest

from efficientllm.analysis.checks import Flag, flags
from efficientllm.analysis.table import rows
from efficientllm.metrics import BY_KEY, Unmeasured, View
from efficientllm.record import Examined, Finding, Outcome, Phase, Reach, Reading, Record, Window
from tests import samples
from tests.samples import SECOND, START_NS

EDGE = START_NS + 10 * SECOND
"""Where the training window of `samples` begins; it lasts ten seconds."""


def found(record: Record) -> dict[str, Flag]:
    return {flag.code: flag for flag in flags(View(record, record.points[0]))}


def level(record: Record, code: str) -> str:
    flag = found(record).get(code)
    return flag.level if flag else ""


def training(**changes: Any) -> Record:
    return samples.record(samples.pretrain(), **changes)


def window(**changes: Any) -> Window:
    return samples.training_window().model_copy(update=changes)


def clocks(
    *,
    sm_mhz: float = 1980,
    temperature_c: float = 50,
    reasons: int = 0,
    share: float = 1.0,
) -> Reading:
    """Five readings a second over the window; the last `share` of them as given."""
    count = 50
    odd = [i >= count * (1 - share) for i in range(count)]
    return Reading(
        meter="clocks",
        device="gpu",
        scope="device",
        t_ns=tuple(EDGE + i * SECOND // 5 for i in range(count)),
        columns={
            "sm_mhz": tuple(sm_mhz if x else 1980.0 for x in odd),
            "temperature_c": tuple(float(temperature_c) if x else 50.0 for x in odd),
            "reasons": tuple(float(reasons) if x else 0.0 for x in odd),
            "busy_share": (1.0,) * count,
        },
    )


def metered(*readings: Reading, **changes: Any) -> Record:
    """A training record with the given readings instead of a constant 500 W."""
    return training(readings=readings, **changes)


def test_a_sound_record_has_no_flag_that_doubts_it() -> None:
    for record in (training(), samples.record(), metered(samples.counter(), clocks())):
        assert [flag for flag in found(record).values() if flag.level != "info"] == []


# Windows


def test_a_window_shorter_than_its_profile_asks_is_flagged() -> None:
    units = window(unit_s=(0.1,) * 29)
    seconds = window(end_ns=EDGE + round(9.7 * SECOND), unit_s=(0.097,) * 100)
    assert level(training(windows=[units]), "WINDOW_SHORT") == "warn"
    assert level(training(windows=[seconds]), "WINDOW_SHORT") == "warn"
    smoke = {"profile": "smoke", "trials": None}
    assert level(training(windows=[units], protocol=smoke), "WINDOW_SHORT") == ""


def test_energy_over_less_than_ten_seconds_is_short() -> None:
    short = window(end_ns=EDGE + 5 * SECOND, unit_s=(0.05,) * 100)
    quick = {"profile": "quick", "trials": None}
    assert level(training(windows=[short], protocol=quick), "ENERGY_SHORT") == "warn"
    assert level(training(), "ENERGY_SHORT") == ""
    publish = {"profile": "publish", "trials": None}
    assert level(training(protocol=publish), "ENERGY_SHORT") == "warn", "it asks for 30 s"


def test_a_window_that_began_before_things_were_steady_is_flagged() -> None:
    record = training(windows=[window(converged=False)])
    assert level(record, "WARMUP_NOT_CONVERGED") == "warn"
    assert "step" in found(record)["WARMUP_NOT_CONVERGED"].text


def test_a_recompilation_inside_a_window_makes_everything_invalid() -> None:
    flag = found(training(windows=[window(recompiles=1)]))["RECOMPILE"]
    assert (flag.level, flag.about) == ("invalid", "all")


def test_graph_breaks_are_flagged() -> None:
    record = training()
    for breaks, expected in ((0, ""), (2, "warn")):
        compilation = {"graphs": 3, "graph_breaks": breaks}
        points = (record.points[0].model_copy(update={"compilation": compilation}),)
        assert level(record.model_copy(update={"points": points}), "COMPILE_PARTIAL") == expected


@pytest.mark.parametrize(("unit_s", "flagged"), [(0.094, True), (0.096, False), (0.106, True)])
def test_clocks_of_host_and_device_that_differ_by_over_five_percent_are_flagged(
    unit_s: float, flagged: bool
) -> None:
    record = training(windows=[window(unit_s=(unit_s,) * 100)])
    assert (level(record, "HOST_BOUND") == "warn") is flagged


def test_a_request_that_is_not_the_sum_of_its_parts_is_flagged() -> None:
    windows = samples.generate_windows()
    assert level(samples.record(windows=windows), "REQUEST_MISMATCH") == ""
    slow = windows[2].model_copy(update={"unit_s": (1.55,) * 5})
    record = samples.record(windows=[*windows[:2], slow])
    assert level(record, "REQUEST_MISMATCH") == "warn"
    # every tenth step is twice as slow: a request has its share of those, or is spared them
    units = (0.009,) * 9 + (0.019,)
    skewed = windows[1].model_copy(update={"unit_s": units * (windows[1].units // 10)})
    record = samples.record(windows=[windows[0], skewed, windows[2]])
    assert level(record, "REQUEST_MISMATCH") == ""


def test_units_that_resemble_their_neighbours_are_named() -> None:
    drifting = tuple(0.095 + 0.0001 * i for i in range(100))
    assert level(training(windows=[window(unit_s=drifting)]), "AUTOCORRELATED") == "info"


def test_more_work_than_the_datasheet_allows_is_impossible() -> None:
    fast = window(end_ns=EDGE + SECOND // 1000, unit_s=(1e-5,) * 100)
    wide = fast.model_copy(update={"counts": {k: v * 1e4 for k, v in fast.counts.items()}})
    flag = found(training(windows=[wide]))["IMPOSSIBLE"]
    assert (flag.level, flag.about) == ("invalid", "all")


# Energy


@pytest.mark.parametrize(
    ("watts", "expected"), [(500, ""), (524, ""), (530, "warn"), (440, "warn"), (580, "invalid")]
)
def test_counter_and_power_may_differ_by_five_percent_and_not_by_fifteen(
    watts: float, expected: str
) -> None:
    record = metered(samples.counter(500.0), samples.power(watts))
    assert level(record, "ENERGY_DISAGREE") == expected


def test_integrated_power_is_named_as_such() -> None:
    assert level(metered(samples.power()), "ENERGY_INTEGRATED") == "warn"
    assert level(metered(samples.counter(), samples.power()), "ENERGY_INTEGRATED") == ""


def test_a_counter_that_is_stuck_or_goes_backwards_is_invalid() -> None:
    sound = samples.counter()
    joules = sound.columns["energy_j"]
    reset = (*joules[:150], *(value - 1e6 for value in joules[150:]))
    backwards = samples.counter(columns={"energy_j": reset})
    stuck = samples.counter(t_ns=sound.t_ns[:1], columns={"energy_j": joules[:1]})
    for reading in (backwards, stuck):
        flag = found(metered(reading, samples.power()))["ENERGY_COUNTER"]
        assert (flag.level, flag.about) == ("invalid", "energy")


@pytest.mark.parametrize(
    ("watts", "expected"), [(700, ""), (734, ""), (740, "warn"), (769, "warn"), (775, "invalid")]
)
def test_mean_power_above_the_limit_is_doubted_and_then_refused(
    watts: float, expected: str
) -> None:
    assert level(metered(samples.counter(watts)), "POWER_RANGE") == expected


def test_one_reading_far_above_the_limit_is_refused() -> None:
    power = samples.power()
    spike = (*power.columns["power_w"][:300], 1200.0, *power.columns["power_w"][301:])
    before = (1200.0, *power.columns["power_w"][1:])
    for watts, expected in ((spike, "invalid"), (before, "")):
        reading = power.model_copy(update={"columns": {"power_w": watts}})
        assert level(metered(samples.counter(), reading), "POWER_RANGE") == expected


def test_mean_power_below_idle_is_refused() -> None:
    for idle, expected in ((540.0, ""), (560.0, "invalid")):
        record = metered(samples.counter(500.0), resolved={"idle_power_w": idle})
        assert level(record, "POWER_RANGE") == expected


@pytest.mark.parametrize(
    ("idle", "expected"),
    [(100.0, ""), (109.0, ""), (88.0, "warn"), (115.0, "warn"), (160.0, "invalid")],
)
def test_idle_power_that_drifted_since_the_run_began_is_flagged(idle: float, expected: str) -> None:
    """100 W before this trial; tolerated are 10 % of what it was, and 30 % as a doubt."""
    power = samples.power()
    watts = tuple(100.0 if t < START_NS + 5 * SECOND else 500.0 for t in power.t_ns)
    phase = Phase(name="idle", start_ns=START_NS + SECOND, end_ns=START_NS + 3 * SECOND)
    record = metered(
        samples.counter(),
        power.model_copy(update={"columns": {"power_w": watts}}),
        phases=(phase,),
        resolved={"idle_power_w": idle},
    )
    assert level(record, "IDLE_DRIFT") == expected


# The sampler


@pytest.mark.parametrize(
    ("gap_s", "expected"), [(0.4, ""), (0.6, "warn"), (2.9, "warn"), (3.2, "invalid")]
)
@pytest.mark.parametrize("at_s", [0.0, 4.0])
def test_a_gap_in_the_readings_is_flagged_inside_the_window_and_at_its_edge(
    gap_s: float, expected: str, at_s: float
) -> None:
    power = samples.power()
    start = EDGE + round(at_s * SECOND)
    kept = [t for t in power.t_ns if not start <= t < start + gap_s * SECOND]
    columns: dict[str, tuple[float | None, ...]] = {"power_w": (500.0,) * len(kept)}
    reading = power.model_copy(update={"t_ns": tuple(kept), "columns": columns})
    assert level(metered(samples.counter(), reading), "SAMPLE_GAP") == expected


def test_a_gap_in_the_counter_counts_where_power_was_not_sampled() -> None:
    sound = samples.counter()
    kept = [i for i, t in enumerate(sound.t_ns) if not EDGE < t < EDGE + SECOND]
    joules = sound.columns["energy_j"]
    holey = samples.counter(
        t_ns=tuple(sound.t_ns[i] for i in kept),
        columns={"energy_j": tuple(joules[i] for i in kept)},
    )
    assert level(metered(holey), "SAMPLE_GAP") == "warn"
    assert level(metered(sound), "SAMPLE_GAP") == ""


def test_a_sampler_that_died_is_flagged() -> None:
    flag = found(training(notes={"sampler": "it ended early"}))["SAMPLER_DIED"]
    assert (flag.level, flag.about, flag.text) == ("warn", "energy", "it ended early")


# The card


@pytest.mark.parametrize(
    ("reasons", "share", "code", "expected"),
    [
        (0x08, 1.0, "THROTTLE_HW", "invalid"),
        (0x40, 0.02, "THROTTLE_HW", "invalid"),
        (0x80, 0.0, "THROTTLE_HW", ""),
        (0x20, 0.04, "THROTTLE_HEAT", "warn"),
        (0x20, 0.2, "THROTTLE_HEAT", "invalid"),
        (0x04, 0.04, "POWER_CAPPED", ""),
        (0x04, 1.0, "POWER_CAPPED", "info"),
        (0x01, 1.0, "THROTTLE_HW", ""),
    ],
)
def test_reasons_for_a_lowered_clock_are_read_bit_by_bit(
    reasons: int, share: float, code: str, expected: str
) -> None:
    """Also at a full clock: the bit is what is asked, the clock is asked apart."""
    record = metered(samples.counter(), clocks(reasons=reasons, share=share))
    assert level(record, code) == expected


@pytest.mark.parametrize(("mhz", "expected"), [(1500, ""), (1400, "warn")])
def test_a_clock_that_falls_without_any_reason_bit_is_seen(mhz: float, expected: str) -> None:
    record = metered(samples.counter(), clocks(sm_mhz=mhz, share=0.5))
    assert level(record, "CLOCK_UNSTEADY") == expected
    assert level(record, "THROTTLE_HW") == ""


@pytest.mark.parametrize(
    ("celsius", "share", "expected"),
    [
        (85, 1.0, ""),
        (90, 0.02, "warn"),
        (96, 0.04, "warn"),
        (96, 0.06, "invalid"),
        (5, 1.0, "invalid"),
    ],
)
def test_heat_is_doubted_and_what_no_sound_card_shows_is_refused(
    celsius: float, share: float, expected: str
) -> None:
    record = metered(samples.counter(), clocks(temperature_c=celsius, share=share))
    assert level(record, "HOT") == expected


def test_what_the_card_did_outside_the_window_does_not_count() -> None:
    hot = clocks(temperature_c=96, reasons=0x08)
    later = hot.model_copy(update={"t_ns": tuple(t + 15 * SECOND for t in hot.t_ns)})
    assert not {"HOT", "THROTTLE_HW"} & found(metered(samples.counter(), later)).keys()


def test_a_card_that_is_shared_is_a_doubt_and_a_crowded_one_is_refused() -> None:
    assert level(training(notes={"shared_device": "0.30 GiB"}), "SHARED_DEVICE") == "warn"
    assert level(training(notes={"crowded_device": "9.00 GiB"}), "SHARED_DEVICE") == "invalid"


def test_an_allocator_that_had_to_try_again_is_flagged() -> None:
    record = training()
    for retries, expected in ((0, ""), (2, "warn")):
        point = record.points[0]
        memory = point.memory | {"alloc_retries": retries}
        points = (point.model_copy(update={"memory": memory}),)
        assert level(record.model_copy(update={"points": points}), "OOM_RETRY") == expected


# The work and its conditions


@pytest.mark.parametrize(("share", "expected"), [(0.4, "warn"), (0.6, "")])
def test_quantization_that_reached_little_is_flagged(share: float, expected: str) -> None:
    total = samples.build().total_params
    reach = Reach(
        technique="int4",
        parameters=round(total * share),
        by_kind={},
        bytes_before=2 * total,
        bytes_after=total,
    )
    record = samples.record(build=samples.build(reach=(reach,)))
    assert level(record, "REACH_LOW") == expected


def test_a_cache_of_another_size_than_the_formula_gives_is_flagged() -> None:
    record = samples.record()
    assert level(record, "CACHE_SIZE") == ""
    point = record.points[0]
    twice = {name: 2 * size for name, size in point.holdings.items()}
    points = (point.model_copy(update={"holdings": twice}),)
    assert level(record.model_copy(update={"points": points}), "CACHE_SIZE") == "warn"


def test_a_window_that_was_left_out_is_flagged_and_its_metrics_are_null_with_the_reason() -> None:
    record = samples.record()
    (point,) = record.points
    reason = "one unit takes 15 s: three do not fit under the cap of 60 s a point"
    left = tuple(window for window in point.windows if window.name == "decode")
    changed = point.model_copy(update={"windows": left, "left_out": {"prefill": reason}})
    record = record.model_copy(update={"points": (changed,)})
    assert level(record, "WINDOW_LEFT_OUT") == "warn"
    view = View(record, changed)
    assert BY_KEY["ttft_s"](view) == Unmeasured(reason)
    assert isinstance(BY_KEY["tpot_s"](view), float)


@pytest.mark.parametrize(
    ("changes", "code", "expected"),
    [
        ({"protocol": {"profile": "smoke", "trials": None}}, "SMOKE", "warn"),
        ({"software": samples.SOFTWARE | {"commit": "abc-dirty"}}, "UNCOMMITTED", "info"),
        ({"software": samples.SOFTWARE | {"commit": "abc"}}, "UNCOMMITTED", ""),
        ({"notes": {"quality": "NOT_TRAINED: no steps"}}, "NOT_TRAINED", "info"),
        ({"notes": {"quality": "not asked for"}}, "NOT_TRAINED", ""),
        ({"notes": {"resumed": "from step 4 of 10"}}, "RESUMED", "warn"),
        ({}, "RESUMED", ""),
    ],
)
def test_conditions_are_named(changes: dict[str, Any], code: str, expected: str) -> None:
    assert level(training(**changes), code) == expected


def test_random_weights_are_cost_only_where_quality_would_follow_from_them() -> None:
    random = samples.build("random")
    assert level(samples.record(build=random), "COST_ONLY") == "info"
    assert level(training(build=random), "COST_ONLY") == "", "pretraining starts from nothing else"


def test_a_training_whose_scoring_failed_is_told_and_is_no_random_model() -> None:
    steps = {"kind": "pretrain", "sequence_length": 1024, "batch": 4, "steps": 60}
    of = samples.pretrain(workload=steps, quality={})
    notes = {"quality": "crash: UnicodeEncodeError: surrogates not allowed"}
    failed = samples.record(of, scores=None, notes=notes)
    assert level(failed, "NOT_SCORED") == "warn"
    assert not rows([failed])[0].cost_only
    assert level(samples.record(of), "NOT_SCORED") == ""
    without = training(scores=None, notes={"quality": "NOT_TRAINED: no steps or tokens"})
    assert level(without, "NOT_SCORED") == ""
    assert rows([without])[0].cost_only


@pytest.mark.parametrize(
    ("epochs", "expected"), [("less than one", ""), (4.0, ""), (4.1, "warn"), (300.0, "warn")]
)
def test_text_that_is_read_again_and_again_is_named(epochs: Any, expected: str) -> None:
    assert level(training(resolved={"epochs": epochs}), "REPEATED_TEXT") == expected
    assert level(samples.record(resolved={"epochs": epochs}), "REPEATED_TEXT") == ""


@pytest.mark.parametrize(
    ("kind", "per_param", "expected"),
    [("pretrain", 19.9, "warn"), ("pretrain", 20.0, ""), ("finetune", 0.1, "")],
)
def test_fewer_than_twenty_tokens_a_parameter_are_named_where_a_model_begins(
    kind: str, per_param: float, expected: str
) -> None:
    """The window's own steps are a hundred; the case declares as many as the ratio needs."""
    steps = 100
    workload = {"kind": kind, "sequence_length": 1024, "batch": 4, "steps": steps}
    technique = "full" if kind == "finetune" else ""
    of = samples.pretrain(workload=workload, technique=technique)
    build = samples.build(total_params=round(steps * 4096 / per_param))
    record = samples.record(of, build=build)
    assert level(record, "UNDERTRAINED") == expected
    if expected:
        assert found(record)["UNDERTRAINED"].about == "quality"
    assert level(training(build=build), "UNDERTRAINED") == "", "nothing was declared"
    unseen = samples.record(of, build=build, windows=[])
    assert level(unseen, "UNDERTRAINED") == expected, "too short to have a window"
    lost = Outcome(status="out_of_memory")
    point = unseen.points[0].model_copy(update={"outcome": lost})
    failed = unseen.model_copy(update={"outcome": lost, "points": (point,)})
    assert level(failed, "UNDERTRAINED") == "", "it was not trained at all"


def test_code_that_came_with_a_checkpoint_is_named() -> None:
    source = f"somebody/model@{'a' * 40}"
    for allowed, expected in ((False, ""), (True, "warn")):
        model = {"kind": "checkpoint", "source": source, "allow_code": allowed}
        assert level(samples.record(samples.case(model=model)), "REMOTE_CODE") == expected


def test_flags_about_a_point_that_failed_do_not_fail_themselves() -> None:
    record = training()
    empty = record.points[0].model_copy(update={"windows": (), "memory": {}, "holdings": {}})
    assert flags(View(record, empty)) == []


@pytest.mark.parametrize(
    ("kind", "others", "expected"),
    [("cpu", 0.5, ""), ("cpu", 1.0, "warn"), ("cuda", 1.0, ""), ("cuda", 9.0, "warn")],
)
def test_busy_neighbours_are_flagged_sooner_on_a_cpu(
    kind: str, others: float, expected: str
) -> None:
    """16 processors: 5 % of them are 0.8, half are 8."""
    record = training()
    machine = record.machine.model_copy(update={"device_kind": kind})
    times = tuple(EDGE + i * SECOND // 2 for i in range(20))
    load = Reading(
        meter="host_load",
        device="host",
        scope="machine",
        t_ns=times,
        columns={"others_cpus": (others,) * 20},
    )
    changed = record.model_copy(update={"machine": machine, "readings": (*record.readings, load)})
    assert level(changed, "SHARED_HOST") == expected


def examined(*verdicts: str) -> Record:
    """A trial with an attention from a file, with findings of these verdicts."""
    model = {"kind": "backbone", "preset": "tiny", "attention": "custom:mine.py:Mine"}
    found = tuple(Finding(name=f"check {i}", verdict=v, seen="x") for i, v in enumerate(verdicts))
    build = samples.build(attention=Examined(name="Mine", source="...", findings=found))
    return samples.record(samples.case(model=model), build=build)


@pytest.mark.parametrize(
    ("verdicts", "code", "ranked"),
    [
        ((), "CUSTOM_UNCHECKED", False),
        (("passed", "failed"), "CUSTOM_CHECK_FAILED", False),
        (("passed", "told"), "CUSTOM_ATTENTION", True),
        (("passed", "unused"), "POSITION_UNUSED", False),
    ],
)
def test_an_attention_of_ones_own_is_ranked_when_it_passed(
    verdicts: tuple[str, ...], code: str, ranked: bool
) -> None:
    record = examined(*verdicts)
    assert code in found(record)
    assert "Mine" in found(record)[code].text
    (row,) = rows([record])
    assert row.ranked is ranked


def test_nobody_examines_a_technique_of_ones_own() -> None:
    of = samples.case(technique="custom:prune.py:apply")
    assert level(samples.record(of), "CUSTOM_CODE") == "warn"
    assert not rows([samples.record(of)])[0].ranked


def test_the_cache_of_an_attention_of_ones_own_has_no_formula() -> None:
    assert "CACHE_SIZE" not in found(examined("passed"))


@pytest.mark.parametrize(("left", "expected"), [(-0.021, "info"), (0.009, ""), (None, "")])
def test_a_match_that_does_not_hold_at_the_length_of_the_row_says_so(
    left: float | None, expected: str
) -> None:
    case = samples.pretrain()
    model = case.model.model_copy(update={"match": "flops"})
    record = samples.record(
        case.model_copy(update={"model": model}), resolved={"match_residual": left}
    )
    assert level(record, "MATCH_RESIDUAL") == expected
    if expected:
        assert found(record)["MATCH_RESIDUAL"].text.startswith("match: flops left -2.1% over")
