"""The paper's numbers: each with its mark, as the notes give them, and what cannot be true."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from efficientllm.catalog.paper import Number, Setting, Table, paper
from efficientllm.catalog.peaks import peak_of
from efficientllm.catalog.shape import presets
from efficientllm.parameters import parameters


def table(number: int) -> Table:
    return next(t for t in paper().tables if t.table == number)


def numbers() -> list[Number]:
    """Every number of the tables, the figures and the site."""
    found = []
    for t in paper().tables:
        for variants in t.sizes.values():
            for variant in variants.values():
                found += [*variant.numbers.values(), *variant.figure.values()]
        found += [rank for ranks in t.ranks.values() for rank in ranks.values()]
    return found


def test_every_number_has_a_mark_that_is_explained_and_every_gap_a_reason() -> None:
    # 12 and 5 rows of five numbers, 47 and 25 drawn values, 4 and 4 rows of five ranks
    assert len(numbers()) == 60 + 25 + 47 + 25 + 20 + 20
    for number in numbers():
        assert (number.mark is None) == (number.value is None) == bool(number.missing)
        assert number.mark is None or number.mark in paper().marks


def test_every_variant_has_every_quantity_and_figures_lie_between_a_tenth_and_one() -> None:
    for t in paper().tables:
        for variants in t.sizes.values():
            assert variants.keys() == t.names.keys()
            for variant in variants.values():
                assert variant.numbers.keys() == paper().quantities.keys()
                assert {n.mark for n in variant.numbers.values()} <= {"A", "E", None}
                for drawn in variant.figure.values():
                    assert drawn.mark == "F"
                    assert 0.1 <= (drawn.value or 0) <= 1.0
    assert {n.mark for t in paper().tables for r in t.ranks.values() for n in r.values()} == {"S"}
    assert paper().doubts.keys() == paper().quantities.keys()


@pytest.mark.parametrize(
    ("number", "size", "name", "quantity", "written"),
    [
        (3, "1.5B", "mqa", "ppl", "8.23 A"),
        (3, "1.5B", "mqa", "amu", "42.24 A"),
        (3, "1.5B", "gqa", "al", "0.1283 A"),
        (3, "1.5B", "mla", "amu", "52.93 A"),
        (3, "1.5B", "nsa", "ppl", "7.83 E"),
        (3, "1.5B", "nsa", "al", "0.5962 A"),
        (3, "0.5B", "gqa", "al", "~0.13 E"),
        (3, "0.5B", "nsa", "aec", "594 A"),
        (3, "3B", "mla", "ppl", "7.29 A"),
        (3, "3B", "mqa", "al", "-"),
        (4, "1.5B", "rope", "aec", "~652.7 A"),
        (4, "1.5B", "t5", "tt", "8.98e-2 A"),
        (4, "1.5B", "none", "ppl", "8.95 E"),
        (4, "1.5B", "learned", "tt", "-"),
    ],
)
def test_spot_values(number: int, size: str, name: str, quantity: str, written: str) -> None:
    found = {str(k): v for k, v in table(number).sizes[size][name].numbers.items()}
    assert str(found[quantity]) == written


def test_ranks_are_orders_and_positions_without_any_have_none() -> None:
    for t in paper().tables:
        for quantity in paper().quantities:
            assert sorted(r[quantity].value or 0 for r in t.ranks.values()) == [1, 2, 3, 4]
    assert "none" not in table(4).ranks


def test_the_published_tt_is_beyond_what_its_cards_can_do() -> None:
    """6 FLOPs a parameter and token: TT = tokens / (parameters x seconds)."""
    peak = peak_of(f"NVIDIA {paper().machine.device}")
    tt = table(4).sizes["1.5B"]["t5"].numbers["tt"].value
    assert peak is not None
    assert tt is not None
    flops = peak.flops("bf16")
    assert flops is not None
    count = parameters(presets()["1.5B"]).total
    needed = 6 * count**2 * tt / paper().machine.count
    assert needed / flops == pytest.approx(27, rel=0.02)
    ceiling = paper().machine.count * flops / (6 * count**2)
    assert ceiling == pytest.approx(3.3e-3, rel=0.02)
    assert paper().doubts["tt"].impossible
    assert "27 times" in paper().doubts["tt"].text


def test_the_published_al_is_beyond_one_card_at_the_stated_step() -> None:
    al = table(3).sizes["1.5B"]["gqa"].numbers["al"].value
    setting: Setting = paper().setting
    sequences, length = setting.micro_batch["1.5B"].value, setting.sequence_length.value
    assert al
    assert sequences
    assert length
    needed = 6 * parameters(presets()["1.5B"]).total * sequences * length / al
    assert needed == pytest.approx(1.2e15, rel=0.03)
    assert needed > 0.99e15


def test_what_contradicts_itself_is_really_there() -> None:
    rows, ranks = table(3).sizes["1.5B"], table(3).ranks
    mqa, gqa = rows["mqa"].numbers["al"].value, rows["gqa"].numbers["al"].value
    assert mqa is not None
    assert gqa is not None
    assert mqa > gqa, "the table has GQA faster"
    assert (ranks["mqa"]["al"].value, ranks["gqa"]["al"].value) == (1, 2), "the site MQA"
    positions = table(4).sizes["1.5B"]
    for quantity in ("amu", "al", "aec"):
        values = {
            k: {str(q): n.value or 0 for q, n in v.numbers.items()} for k, v in positions.items()
        }
        assert max(values, key=lambda name: values[name][quantity]) == "none"


@pytest.mark.parametrize(
    "value",
    [
        {"written": "8.23"},
        {"mark": "A"},
        {"written": "8.23", "mark": "A", "missing": "hidden"},
        {},
        {"missing": "hidden", "mark": "A"},
    ],
)
def test_a_number_without_a_mark_or_a_gap_without_a_reason_is_refused(
    value: dict[str, str],
) -> None:
    with pytest.raises(ValidationError, match="needs its mark"):
        Number.model_validate(value)


def test_a_bare_number_in_the_file_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"as in `8\.23 A`"):
        Setting.model_validate({"sequence_length": "8192", "micro_batch": {}})
