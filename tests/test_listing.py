"""Lists: everything there is, by the names that a command takes."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from efficientllm.catalog.peaks import machine_named, peaks
from efficientllm.catalog.shape import presets, shape_named, shapes
from efficientllm.listing import print_listing
from efficientllm.metrics import METRICS
from efficientllm.spec.case import Case
from efficientllm.spec.document import SpecError
from efficientllm.spec.suite import builtin_names, load_suite


def listed(what: str = "", width: int = 400) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_listing(console, what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def first_words(what: str) -> list[str]:
    return [line.split()[0] for line in listed(what).splitlines()[1:]]


def test_every_model_that_is_listed_can_be_named() -> None:
    names = first_words("models")
    assert len(names) == len(presets()) + len(shapes())
    for name in names:
        case = Case.model_validate({"model": name, "workload": "generate"})
        preset = getattr(case.model, "preset", None)
        assert preset in presets() if preset else shape_named(name)


def test_counts_are_readable_and_right() -> None:
    row = next(line for line in listed("models").splitlines() if line.startswith("Llama-3.1-8B "))
    assert "8,030,261,248" in row
    assert "our decoder" in row


def test_every_technique_that_is_listed_can_be_written() -> None:
    names = " ".join(line.split("  ")[0] for line in listed("techniques").splitlines()[1:])
    found = {name.strip(",") for name in names.split()}
    assert {"full", "freeze", "lora", "bf16", "fp16", "int8", "int8-dynamic", "int4"} <= found
    for name in found:
        tuning = name in ("full", "freeze", "lora")
        parts: dict[str, Any] = {"workload": "finetune" if tuning else "generate"}
        assert Case.model_validate({"model": "backbone-tiny", "technique": name} | parts)


def test_every_machine_and_suite_that_is_listed_can_be_named() -> None:
    assert [machine_named(name).id for name in first_words("machines")] == [p.id for p in peaks()]
    assert first_words("suites") == builtin_names()
    for name in builtin_names():
        assert str(len(load_suite(name).cases)) in listed("suites")


def test_every_metric_is_listed_under_its_key() -> None:
    assert first_words("metrics") == [metric.key for metric in METRICS]


def test_the_overview_names_the_lists_beyond_it() -> None:
    text = listed()
    for words in ("efficientllm list models", "list machines", "list metrics", "backbone-tiny"):
        assert words in text


def test_an_unknown_list_names_the_nearest() -> None:
    with pytest.raises(SpecError, match="no list of 'model'; did you mean models"):
        listed("model")
