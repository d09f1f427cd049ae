"""Tokens per parameter: one case with the number they mean, and refused where it is unknown."""

from __future__ import annotations

from pathlib import Path

import pytest

from efficientllm.budget import with_tokens
from efficientllm.catalog.shape import presets
from efficientllm.parameters import parameters
from efficientllm.pin import pin_suite
from efficientllm.spec.case import Case
from efficientllm.spec.document import SpecError
from efficientllm.spec.suite import Suite, load_suite, one_line_suite

TINY = parameters(presets()["tiny"]).total


def pretrain(*words: str) -> Suite:
    return pin_suite(one_line_suite("pretrain", ("model=backbone-tiny", *words)))


def test_tokens_per_parameter_and_the_number_they_mean_are_one_case() -> None:
    (relative,) = pretrain("tokens=20x").cases
    (absolute,) = pretrain(f"tokens={20 * TINY}").cases
    assert relative.workload.tokens == 20 * TINY
    assert relative.case_id == absolute.case_id
    assert relative.makes_product


@pytest.mark.parametrize(("ratio", "tokens"), [("1x", TINY), ("0.5x", TINY // 2)])
def test_the_ratio_may_be_any_number(ratio: str, tokens: int) -> None:
    (case,) = pretrain(f"tokens={ratio}").cases
    assert case.workload.tokens == tokens


def test_each_model_of_an_axis_gets_its_own_number() -> None:
    suite = pin_suite(
        one_line_suite("pretrain", ("model=backbone-tiny,backbone-small", "tokens=2x"))
    )
    found = {case.name: case.workload.tokens for case in suite.cases}
    expected = {n: 2 * parameters(presets()[n]).total for n in ("tiny", "small")}
    assert sorted(found.values()) == sorted(expected.values())


def test_a_product_has_the_parameters_of_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "lineage.yaml"
    path.write_text(
        "base: {name: p, model: backbone-tiny, workload: {kind: pretrain, tokens: 2x}}\n"
        "---\nbase: {name: f, model: {kind: product, of: p}, technique: full,"
        " workload: {kind: finetune, tokens: 1x}}\n"
    )
    parent, child = pin_suite(load_suite(str(path))).cases
    assert (parent.workload.tokens, child.workload.tokens) == (2 * TINY, TINY)
    assert child.model.parent == parent.case_id, "the id with the number in it"


def test_a_model_of_unknown_size_needs_a_number(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    words = (f"model={tmp_path}", "technique=full", "tokens=1x")
    with pytest.raises(SpecError, match="1x needs a model whose parameters are known"):
        pin_suite(one_line_suite("finetune", words))


def test_more_tokens_than_a_case_may_declare_are_refused() -> None:
    with pytest.raises(SpecError, match="999999x of this model are 8030253217738752"):
        pin_suite(one_line_suite("pretrain", ("model=Llama-3.1-8B", "tokens=999999x")))


@pytest.mark.parametrize("tokens", ["0x", "x", "-1x", "20X", "1e3x", "0", "-5", "1.5", "true"])
def test_what_is_no_budget_is_refused_with_one_sentence(tokens: str) -> None:
    with pytest.raises(SpecError) as error:
        pretrain(f"tokens={tokens}")
    assert str(error.value).startswith("command line: workload.tokens: needs a number of tokens")
    assert "\n" not in str(error.value)


def test_a_case_that_was_never_pinned_has_no_steps_to_train() -> None:
    case = Case.model_validate(
        {"model": "backbone-tiny", "workload": {"kind": "pretrain", "tokens": "20x"}}
    )
    assert case.makes_product
    with pytest.raises(ValueError, match="20x is no number of tokens before it is pinned"):
        _ = case.workload.budget_steps


def test_a_budget_in_numbers_is_left_alone() -> None:
    suite = one_line_suite("pretrain", ("model=backbone-tiny", "tokens=1000"))
    assert with_tokens(suite.cases[0], suite) is suite.cases[0]
