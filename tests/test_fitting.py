"""`micro_batch: fit`: one micro-batch for all variants, that of the hungriest."""

from __future__ import annotations

from efficientllm import predict
from efficientllm.fitting import micro_batches
from efficientllm.spec.suite import load_suite

GIB = 2**30


def test_the_hungriest_variant_decides_for_all_of_its_size_and_length() -> None:
    suite = load_suite("attention", ("model.preset=1.5B-h16",)).only("train-*")
    found = micro_batches(suite, 80 * GIB)
    at = {case.name: found[case.case_id] for case in suite.cases}
    short = {size for name, size in at.items() if name.startswith("train-4096")}
    assert len(short) == 1, at
    (size,) = short
    for case in suite.only("train-4096-*").cases:
        shape = predict.shape_of(case)
        assert shape is not None

        def needed(rows: int, case=case, shape=shape) -> float:  # type: ignore[no-untyped-def]
            return predict.memory(predict.with_micro_batch(case, rows), shape, case.points[0]).total

        assert predict.fit(needed(size), 80 * GIB) == "fits"
    hungry = suite.only("train-4096-8-mla").cases[0]
    shape = predict.shape_of(hungry)
    assert shape is not None
    larger = predict.with_micro_batch(hungry, 2 * size)
    assert predict.fit(predict.memory(larger, shape, hungry.points[0]).total, 80 * GIB) != "fits"


def test_where_nothing_fits_one_sequence_is_tried() -> None:
    suite = load_suite("attention", ("model.preset=3B-h16",)).only("train-*")
    assert set(micro_batches(suite, 8 * GIB).values()) == {1}


def test_cases_that_say_themselves_are_left_alone() -> None:
    assert micro_batches(load_suite("attention-small"), 80 * GIB) == {}
