"""Records: sealed, closed, finite, and readable by every later version."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from efficientllm.record import DONE, SCHEMA, Outcome, Reading, Record, Window
from efficientllm.seal import CorruptRecord, from_bytes, to_bytes
from efficientllm.spec.case import Case
from tests import samples

GOLDEN = Path(__file__).parent / "golden"
SMALL = samples.record(windows=[samples.window("decode", units=5)], readings=())


def write_golden() -> None:
    """Write the golden record of the present schema, once, when the schema is new.

    The file then stays as it is for good: it stands for what users have on their disks.
    """
    readings = (samples.counter(seconds=2.0, period_s=0.5), samples.power(seconds=1.0))
    record = samples.record(
        windows=[samples.window("decode", units=20)], readings=readings, notes={"x": "why"}
    )
    path = GOLDEN / f"record-schema-{SCHEMA}.json"
    assert not path.exists()
    path.write_bytes(to_bytes(record))


def sealed(body: dict[str, Any]) -> bytes:
    """A file as a foreign program could write it, with a right digest."""
    text = json.dumps(body, separators=(",", ":")).encode()[:-1]
    return text + b',"sha256":"' + hashlib.sha256(text).hexdigest().encode() + b'"}\n'


def plain(record: Record = SMALL) -> dict[str, Any]:
    return dict(json.loads(record.model_dump_json()))


def test_a_record_survives_its_file() -> None:
    record = samples.record()
    assert from_bytes(to_bytes(record)) == record


def test_the_file_is_one_json_object_that_ends_with_its_digest() -> None:
    content = to_bytes(SMALL)
    value = json.loads(content)
    assert list(value)[-1] == "sha256"
    body = content[: content.rindex(b',"sha256":')]
    assert value["sha256"] == hashlib.sha256(body).hexdigest()
    assert content.count(b"\n") == 1


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("record-schema-*.json")), ids=lambda p: p.stem)
def test_a_record_of_every_schema_keeps_loading(path: Path) -> None:
    record = from_bytes(path.read_bytes())
    assert record.trial.case_id == Case.model_validate(record.case).case_id
    assert record.outcome.status == "ok"
    window = record.points[0].window("decode")
    assert window is not None
    assert window.unit_s == (0.1,) * 20
    assert record.readings[0].columns["energy_j"][-1] == 1e6 + 500.0 * 2
    assert record.machine.card == "0123456789ab"
    assert record.notes == {"x": "why"}


def test_there_is_a_golden_record_of_the_present_schema() -> None:
    assert (GOLDEN / f"record-schema-{SCHEMA}.json").exists()


def test_a_file_cut_short_at_any_byte_does_not_load() -> None:
    content = to_bytes(SMALL)
    for length in range(len(content)):
        with pytest.raises(CorruptRecord, match="cut short or changed"):
            from_bytes(content[:length])


def test_a_file_with_any_changed_byte_does_not_load() -> None:
    content, chance = to_bytes(SMALL), random.Random(0)
    for position in chance.sample(range(len(content)), 200):
        changed = bytearray(content)
        changed[position] ^= chance.randrange(1, 256)
        with pytest.raises(CorruptRecord):
            from_bytes(bytes(changed))


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"{}", b"\x00" * 4096, b'{"sha256":"' + b"0" * 64 + b'"}\n', b"[" * 100_000],
    ids=["empty", "newline", "object", "zeros", "seal", "deep"],
)
def test_what_is_no_record_does_not_load(content: bytes) -> None:
    with pytest.raises(CorruptRecord):
        from_bytes(content)


def test_something_after_the_end_does_not_load() -> None:
    with pytest.raises(CorruptRecord):
        from_bytes(to_bytes(SMALL) + b"\n")
    with pytest.raises(CorruptRecord):
        from_bytes(to_bytes(SMALL) * 2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schema_version": 2}, r"not a record of schema 1: schema_version"),
        ({"later": 1}, r"later"),
        ({"seconds": None}, r"seconds"),
        ({"outcome": {"status": "fine"}}, r"outcome\.status"),
    ],
)
def test_a_sealed_file_of_another_schema_says_what_differs(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(CorruptRecord, match=says):
        from_bytes(sealed(plain() | changes))
    assert from_bytes(sealed(plain())) == SMALL


def test_a_missing_measurement_is_null_and_never_zero() -> None:
    assert json.loads(to_bytes(SMALL))["machine"]["power_limit_w"] == 700.0
    cpu = samples.record(machine=samples.CPU_MACHINE, windows=[])
    assert json.loads(to_bytes(cpu))["machine"]["power_limit_w"] is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_never_enter_a_record(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        samples.record(seconds=value)
    with pytest.raises(ValidationError, match="finite"):
        samples.window("decode", units=2, unit_s=0.1, warmup_s=value)
    with pytest.raises(ValidationError, match="finite"):
        Reading(meter="power", device="gpu", t_ns=(1,), columns={"power_w": (value,)})


def test_a_record_is_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SMALL.outcome = Outcome(status="crash")


def test_hostile_text_survives_a_record_unchanged() -> None:
    reason = '"><img onerror=1>\n","sha256":"{{7*7}}\u202e=cmd()\x00'
    record = samples.record(outcome=Outcome(status="crash", reason=reason), windows=[])
    again = from_bytes(to_bytes(record))
    assert again.outcome.reason == reason


def test_a_window_counts_its_units_and_seconds() -> None:
    window = samples.window("step", units=4, unit_s=0.25)
    assert (window.units, window.seconds) == (4, 1.0)
    assert SMALL.points[0].window("decode") is not None
    assert SMALL.points[0].window("prefill") is None


def test_a_rerun_would_only_repeat_these_outcomes() -> None:
    assert sorted(DONE) == ["nan", "ok", "out_of_memory", "unsupported"]


def test_the_key_is_short_and_names_round_and_attempt() -> None:
    record = samples.record(round_=2, attempt=1, windows=[])
    assert record.key == f"{samples.case().case_id[:8]}/2-1"


def test_every_part_of_a_window_is_required_to_judge_it() -> None:
    with pytest.raises(ValidationError) as caught:
        Window.model_validate({"name": "x"})
    missing = {str(error["loc"][0]) for error in caught.value.errors()}
    assert missing == set(Window.model_fields) - {"name", "recompiles"}
