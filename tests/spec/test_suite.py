"""Suites: what `base:` and `grid:` expand to, and what is said when they cannot."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from efficientllm.spec.case import Point
from efficientllm.spec.document import SpecError
from efficientllm.spec.model import Product
from efficientllm.spec.protocol import Protocol
from efficientllm.spec.suite import (
    MAX_CASES,
    Suite,
    builtin_names,
    load_suite,
    one_line_suite,
)
from efficientllm.spec.technique import Cast, Int4WeightOnly, Int8WeightOnly, Lora

GENERATE = """\
base:
  model: backbone-tiny
  workload: {kind: generate}
"""
LINEAGE = """\
base:
  name: pretrain
  model: {kind: backbone, preset: tiny}
  workload: {kind: pretrain, steps: 10, sequence_length: 128}
grid:
  - model.attention: [mha, gqa]
---
base:
  name: finetune
  model: {kind: product, of: pretrain-gqa}
  workload: {kind: finetune, steps: 5, sequence_length: 128}
grid:
  - technique: [full, lora]
---
base:
  name: generate
  model: {kind: product, of: finetune-lora}
  workload: generate
  technique: bf16
"""


@pytest.fixture
def suite(tmp_path: Path) -> Any:
    """A function that loads YAML text as study.yaml."""

    def load(text: str, *overrides: str) -> Suite:
        path = tmp_path / "study.yaml"
        path.write_text(text, "utf-8")
        return load_suite(str(path), overrides)

    return load


@pytest.fixture
def refusal(suite: Any, tmp_path: Path) -> Any:
    """A function that loads YAML text and returns the error, without the folder."""

    def load(text: str, *overrides: str) -> str:
        start = time.process_time()
        with pytest.raises(SpecError) as caught:
            suite(text, *overrides)
        assert time.process_time() - start < 3.0
        return str(caught.value).replace(f"{tmp_path}/", "")

    return load


def names(suite: Suite) -> list[str]:
    return [case.name for case in suite.cases]


def test_an_axis_of_one_key_makes_one_case_for_each_value(suite: Any) -> None:
    found = suite(GENERATE + "grid:\n  - technique: [bf16, int8]\n")
    assert names(found) == ["generate-bf16", "generate-int8"]
    assert [case.technique for case in found.cases] == [(Cast(kind="bf16"),), (Int8WeightOnly(),)]


def test_an_axis_of_mappings_sets_keys_together(suite: Any) -> None:
    found = suite(
        "base: {model: backbone-0.5B, workload: {kind: pretrain}}\n"
        "grid:\n"
        "  - - {model.preset: 0.5B, workload.batch: 8}\n"
        "    - {model.preset: 1.5B, workload.batch: 4}\n"
    )
    sizes = [(c.model.preset, c.workload.batch) for c in found.cases]
    assert sizes == [("0.5B", 8), ("1.5B", 4)]


def test_cases_are_the_product_of_all_axes_in_the_order_written(suite: Any) -> None:
    found = suite(
        GENERATE + "grid:\n  - technique: [bf16, int8]\n  - workload.new_tokens: [8, 16, 32]\n"
    )
    assert names(found) == [f"generate-{t}-{n}" for t in ("bf16", "int8") for n in (8, 16, 32)]


def test_a_whole_is_set_before_its_parts_whatever_the_order_of_axes(suite: Any) -> None:
    found = suite(
        "base: {model: backbone-0.5B, workload: {kind: pretrain}}\n"
        "grid:\n  - model.attention: [mqa]\n  - model: [backbone-tiny]\n"
    )
    (case,) = found.cases
    assert (case.model.preset, case.model.attention.kind) == ("tiny", "mqa")


def test_without_a_grid_there_is_the_base_alone(suite: Any) -> None:
    assert names(suite(GENERATE)) == ["generate"]


def test_the_header_names_the_suite_and_its_protocol(suite: Any) -> None:
    found = suite("suite: s\nquestion: Why?\nprotocol: {profile: standard, trials: 5}\n" + GENERATE)
    assert (found.name, found.question) == ("s", "Why?")
    assert found.protocol == Protocol(profile="standard", trials=5)
    assert suite(GENERATE).name == "study"


def test_techniques_compose_in_one_string(suite: Any) -> None:
    found = suite(
        "base: {model: backbone-tiny, workload: {kind: finetune}}\n"
        "grid:\n"
        "  - technique: [int4+lora, 'int4:tinygemm+lora', {kind: lora, r: 8}, [int8, lora]]\n"
    )
    assert [case.technique for case in found.cases] == [
        (Int4WeightOnly(), Lora()),
        (Int4WeightOnly(backend="tinygemm"), Lora()),
        (Lora(r=8),),
        (Int8WeightOnly(), Lora()),
    ]
    assert [case.technique_label for case in found.cases] == [
        "int4+lora",
        "int4:tinygemm+lora",
        "lora",
        "int8+lora",
    ]
    assert names(found)[2] == "finetune-lora-r8"


def test_points_are_the_product_of_batches_and_contexts(suite: Any) -> None:
    found = suite(
        "base:\n  model: backbone-tiny\n"
        "  workload: {kind: generate, points: {batch: [1, 32], context: [128, 1024]}}\n"
    )
    assert found.cases[0].points == (
        Point(1, 128),
        Point(32, 128),
        Point(1, 1024),
        Point(32, 1024),
    )


def test_a_product_carries_its_parents_id(suite: Any) -> None:
    found = suite(LINEAGE)
    parents = {
        case.name: case.model.parent for case in found.cases if isinstance(case.model, Product)
    }
    assert parents == {
        "finetune-full": found.case("pretrain-gqa").case_id,
        "finetune-lora": found.case("pretrain-gqa").case_id,
        "generate": found.case("finetune-lora").case_id,
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("steps: 10", "steps: 11"),
        ("preset: tiny", "preset: small"),
        ("steps: 5", "steps: 6"),
        ("[full, lora]", "[full, {kind: lora, r: 8}]"),
    ],
)
def test_a_change_anywhere_in_the_ancestry_changes_the_childs_id(
    suite: Any, old: str, new: str
) -> None:
    changed = LINEAGE.replace(old, new).replace("of: finetune-lora", "of: finetune-{}")
    last = "lora-r8" if "r: 8" in new else "lora"
    before = suite(LINEAGE).case("generate")
    after = suite(changed.replace("finetune-{}", f"finetune-{last}")).case("generate")
    assert after.case_id != before.case_id


def test_renaming_ancestors_changes_no_id(suite: Any) -> None:
    renamed = LINEAGE.replace("name: pretrain", "name: start").replace("pretrain-gqa", "start-gqa")
    before, after = suite(LINEAGE), suite(renamed)
    assert [c.case_id for c in before.cases] == [c.case_id for c in after.cases]


def test_the_seed_of_a_product_is_part_of_it(suite: Any) -> None:
    other = LINEAGE.replace("{kind: product, of: finetune-lora}", "{kind: product, of: F, seed: 1}")
    after = suite(other.replace("of: F", "of: finetune-lora")).case("generate")
    assert after.case_id != suite(LINEAGE).case("generate").case_id


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            GENERATE
            + "---\nbase: {name: g, model: {kind: product, of: pretrian}, workload: probe}",
            "study.yaml:5: model.of: no case called 'pretrian' stands before this one",
        ),
        (
            "base:\n  name: p\n  model: backbone-tiny\n  workload: {kind: pretrain, steps: 1}\n"
            "---\nbase:\n  model:\n    kind: product\n    of: q\n  workload: generate\n",
            "study.yaml:9: model.of: no case called 'q' stands before this one; there is p",
        ),
        (
            "base: {name: p, model: backbone-tiny, workload: {kind: pretrain}}\n"
            "---\nbase:\n  model: {kind: product, of: p}\n  workload: generate\n",
            "study.yaml:4: model.of: 'p' declares no steps, so it makes no product",
        ),
    ],
)
def test_a_product_of_nothing_is_refused(refusal: Any, text: str, says: str) -> None:
    assert refusal(text) == says


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GENERATE + "  modle: x\n", "study.yaml:4: modle: no such key; did you mean model?"),
        (
            "base:\n  model: backbone-tiny\n  workload:\n    kind: generate\n    newtokens: 3\n",
            "study.yaml:5: workload.newtokens: no such key; did you mean new_tokens?",
        ),
        (
            "base:\n  model: backbone-tiny\n  workload: genrate\n",
            "study.yaml:3: workload: no kind is called 'genrate'; did you mean generate?",
        ),
        (
            GENERATE + "  technique: int4+lroa\n",
            "study.yaml:4: technique: no kind is called 'lroa'; did you mean lora?",
        ),
        (
            GENERATE + "  technique:\n    - bf16\n    - {kind: int4, groupsize: 64}\n",
            "study.yaml:6: technique.1.groupsize: no such key; did you mean group_size?",
        ),
        (
            GENERATE.replace("backbone-tiny", "{kind: backbone, attention: gqq}"),
            "study.yaml:2: model.attention: no kind is called 'gqq'; did you mean gqa?",
        ),
        (
            GENERATE.replace("backbone-tiny", "{kind: backbone, attention: {kind: gqa, kv: 2}}"),
            "study.yaml:2: model.attention.kv: no such key; there is kind, kv_heads",
        ),
        (
            GENERATE.replace("backbone-tiny", "{preset: tiny}"),
            "study.yaml:2: model: needs a `kind:`",
        ),
        (
            "protocol: standrd\n" + GENERATE,
            "study.yaml:1: protocol.profile: input should be 'smoke', 'quick', 'standard' or"
            " 'publish' (got 'standrd')",
        ),
        (
            "protocol: {profile: quick, trial: 3}\n" + GENERATE,
            "study.yaml:1: protocol.trial: no such key; did you mean trials?",
        ),
        ("protcol: quick\n" + GENERATE, "study.yaml:1: protcol: no such key; did you mean"),
        (
            GENERATE + "---\nsuite: two\n" + GENERATE,
            "study.yaml:5: suite: no such key; there is base, grid",
        ),
        ("base:\n  model: backbone-tiny\n", "study.yaml:1: workload: is missing"),
        ("base: 3\n", "study.yaml:1: base: needs a mapping"),
        ("", "study.yaml: empty"),
        ("just words", "study.yaml:1: a suite is a mapping"),
        (GENERATE + "grid: {a: [1]}\n", "study.yaml:4: grid: needs a list of axes"),
        (GENERATE + "grid:\n  - technique: bf16\n", "study.yaml:5: an axis is one `key: [values]`"),
        (GENERATE + "grid:\n  - technique: []\n", "study.yaml:5: an axis is one `key: [values]`"),
        (GENERATE + "grid:\n  - {a: [1], b: [2]}\n", "study.yaml:5: an axis is one"),
        (GENERATE + "grid:\n  - model..x: [1]\n", "study.yaml:5: 'model..x' is no key"),
        (GENERATE + "---\n" + GENERATE, "study.yaml:5: two cases are called generate"),
        (
            GENERATE + "  technique: bf16+fp16\n",
            "study.yaml:4: technique: bf16 and fp16 exclude each other",
        ),
        (
            GENERATE + "grid:\n  - technique: [int4,\n     bf16, int4]\n",
            "study.yaml:5: technique: 'int4' stands there twice",
        ),
        (
            GENERATE.replace("backbone-tiny", "backbone-tinny"),
            "study.yaml:2: model: no model is called 'backbone-tinny'; did you mean backbone-tiny?",
        ),
        (
            GENERATE.replace("backbone-tiny", "Llama-3.1-8"),
            "study.yaml:2: model: no model is called 'Llama-3.1-8'; did you mean Llama-3.1-8B?",
        ),
        (
            GENERATE.replace("backbone-tiny", "\n    kind: backbone\n    preset: smal"),
            "study.yaml:4: model.preset: no backbone preset 'smal'; did you mean small?",
        ),
        (
            GENERATE.replace("backbone-tiny", "\n    kind: shape\n    name: Llama-3.1-8"),
            "study.yaml:4: model.name: the catalog has no shape 'Llama-3.1-8'; did you mean",
        ),
        (
            GENERATE.replace("backbone-tiny", "{kind: backbone, preset: tiny, heads: 5}"),
            "study.yaml:2: model: 5 query heads do not divide into 2 groups",
        ),
        ("suite: [a]\n" + GENERATE, "study.yaml: suite: needs a line of text"),
        ('question: "a\\eb"\n' + GENERATE, "study.yaml: question: needs a line of text"),
    ],
)
def test_errors_name_file_line_key_and_the_nearest_valid_name(
    refusal: Any, text: str, says: str
) -> None:
    assert refusal(text).startswith(says)


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        (
            "  - technique:\n    - bf16\n    - int5\n",
            "study.yaml:8 (base on line 4): technique: no kind is called 'int5'; did you mean",
        ),
        (
            "  - workload.new_tokens: [8,\n     1]\n",
            "study.yaml:7 (base on line 3): workload.new_tokens: input should be greater",
        ),
        (
            "  - - {technique: bf16, workload.new_tokens: 8}\n"
            "    - {technique: bf16,\n       workload.newtokens: 8}\n",
            "study.yaml:8 (base on line 3): workload.newtokens: no such key",
        ),
        (
            "  - workload: [generate, {kind: generate, new_tokens: 1}]\n",
            "study.yaml:6 (base on line 3): workload.new_tokens: input should be greater",
        ),
        (
            "  - model.preset: [tiny, smal]\n",
            "study.yaml:6 (base on line 2): model.preset: no backbone preset 'smal'; did you mean",
        ),
        (
            "  - technique.kind: [int5]\n",
            "study.yaml:6 (base on line 4): technique: no kind is called 'int5'",
        ),
    ],
)
def test_an_error_in_an_expanded_case_names_both_lines(refusal: Any, grid: str, says: str) -> None:
    assert refusal(GENERATE + "  technique: fp16\ngrid:\n" + grid).startswith(says)


def test_several_problems_of_a_case_are_told_at_once(refusal: Any) -> None:
    text = "base:\n  modle: backbone-tiny\n  workload:\n    kind: generate\n    new_tokens: 1\n"
    assert [line.split(": ")[1] for line in refusal(text).splitlines()] == [
        "model",
        "workload.new_tokens",
        "modle",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch", "1000000000"),
        ("batch", "0"),
        ("batch", "1e9"),
        ("batch", "8.0"),
        ("batch", "no"),
        ("batch", "12:30"),
        ("batch", "true"),
        ("batch", "null"),
        ("sequence_length", "-1"),
        ("sequence_length", "1"),
        ("steps", "0"),
        ("tokens", "-5"),
        ("optimizer.lr", "inf"),
        ("optimizer.lr", "1e999"),
        ("optimizer.lr", "-1e-3"),
        ("optimizer.lr", "no"),
        ("optimizer.lr", "1e-400"),
    ],
)
def test_absurd_values_are_refused_with_their_key(refusal: Any, key: str, value: str) -> None:
    text = (
        "base:\n  model: backbone-tiny\n  workload: {kind: pretrain}\n"
        f"grid:\n  - workload.{key}: [{value}]\n"
    )
    assert refusal(text).startswith(f"study.yaml:5 (base on line 3): workload.{key}: ")


def test_a_float_written_with_an_exponent_is_a_float(suite: Any) -> None:
    text = "base: {model: backbone-tiny, workload: {kind: pretrain, optimizer: {lr: 1e-5}}}\n"
    assert suite(text).cases[0].workload.optimizer.lr == 1e-5


def test_a_grid_of_a_million_cases_is_refused_with_its_size(refusal: Any) -> None:
    axis = f"  - quality.max_bytes: [{', '.join(map(str, range(1, 101)))}]\n"
    assert refusal(GENERATE + "grid:\n" + 3 * axis) == (
        f"study.yaml: 1000000 cases or more; a suite has at most {MAX_CASES}"
    )


def test_small_blocks_cannot_add_up_past_the_limit(refusal: Any) -> None:
    axis = f"  - quality.max_bytes: [{', '.join(map(str, range(1, 72)))}]\n"
    block = GENERATE + "grid:\n" + 2 * axis
    assert "10082 cases or more" in refusal(block + "---\n" + block)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("x" * 300, "at most 200 characters"),
        ('"a\\0b"', "cannot be printed"),
        ('"a\\nb"', "cannot be printed"),
        ('"a\\e[31mb"', "cannot be printed"),
        ('"a\\u202Eb"', "cannot be printed"),
        ("[a]", "valid string"),
    ],
)
def test_names_that_could_harm_a_terminal_are_refused(refusal: Any, name: str, says: str) -> None:
    told = refusal(f"base:\n  name: {name}\n  model: backbone-tiny\n  workload: generate\n")
    assert told.startswith("study.yaml:2: name: ")
    assert says in told
    assert told.isprintable()


def test_a_name_with_path_separators_stays_a_label(suite: Any) -> None:
    text = "base: {name: ../../x, model: backbone-tiny, workload: generate}\n"
    (case,) = suite(text).cases
    assert case.name == "../../x"
    assert set(case.case_id) <= set("0123456789abcdef")  # what files are called


def test_values_become_names_without_anything_odd(suite: Any) -> None:
    found = suite(GENERATE + "grid:\n  - workload.data: ['a/b c', '<script>', '../x']\n")
    assert names(found) == ["generate-b_c", "generate-_script_", "generate-x"]


def test_a_text_in_short_form_takes_settings_of_its_own(suite: Any) -> None:
    base = "base: {model: backbone-tiny, workload: {kind: pretrain, data: ./texts}}\n"
    found = suite(base + "grid:\n  - workload.data.dedup: [none, near]\n")
    assert [case.workload.data.dedup for case in found.cases] == ["none", "near"]
    assert {case.workload.data.path for case in found.cases} == {"texts"}
    words = ("model=backbone-tiny", "data=hub:a/b@v1", "data.files=x/*.parquet", "data.max_bytes=9")
    (case,) = one_line_suite("pretrain", words).cases
    data = case.workload.data
    assert (data.kind, data.source, data.files, data.max_bytes) == (
        "hub",
        "a/b@v1",
        "x/*.parquet",
        9,
    )


def test_a_value_too_long_for_a_name_is_refused(refusal: Any) -> None:
    assert "more than 200" in refusal(GENERATE + f"grid:\n  - workload.data: [{'x' * 300}]\n")


def test_a_technique_repeated_without_end_is_refused(refusal: Any) -> None:
    told = refusal(GENERATE + f"  technique: {'+'.join(['bf16'] * 40_000)}\n")
    assert told.startswith("study.yaml:4: technique: ")
    assert len(told) < 200


def test_an_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(SpecError, match="'quickstrat'; did you mean quickstart"):
        load_suite("quickstrat")
    with pytest.raises(SpecError, match=r"nothing\.yaml: cannot be read"):
        load_suite("nothing.yaml")


def test_every_suite_of_the_package_loads_and_names_its_cases_once() -> None:
    for name in builtin_names():
        found = load_suite(name)
        assert found.question.endswith("?")
        assert len(set(names(found))) == len(found.cases) > 0


# The command line


def line(*overrides: str, workload: str = "generate") -> Suite:
    return one_line_suite(workload, overrides)


def line_refusal(*overrides: str, workload: str = "generate") -> str:
    with pytest.raises(SpecError) as caught:
        line(*overrides, workload=workload)
    return str(caught.value)


def test_a_comma_list_is_an_axis_and_under_points_it_makes_points() -> None:
    found = line("model=Llama-3.1-8B", "technique=bf16,int4", "points.batch=1,32")
    assert names(found) == ["generate-Llama-3.1-8B-bf16", "generate-Llama-3.1-8B-int4"]
    assert found.cases[0].points == (Point(1, 1024), Point(32, 1024))
    assert found.name == "generate"


def test_cases_of_two_commands_have_two_names() -> None:
    """One store holds the cases of many commands; a name should find one of them."""
    found = line("technique=bf16", "model=meta-llama/Llama-3.1-8B")
    assert names(found) == ["generate-Llama-3.1-8B-bf16"]
    assert names(line("model=./checkpoints/mine/")) == ["generate-mine"]


def test_one_point_and_whole_points_are_points_too() -> None:
    assert line("model=backbone-tiny", "points.batch=4").cases[0].points == (Point(4, 1024),)
    whole = line("model=backbone-tiny", "points={batch: [1, 2], context: [64]}")
    assert whole.cases[0].points == (Point(1, 64), Point(2, 64))


def test_short_keys_mean_the_workloads_and_the_suites() -> None:
    found = line("model=backbone-tiny", "steps=7", "protocol=smoke", workload="pretrain")
    assert found.cases[0].workload.steps == 7
    assert found.protocol.profile == "smoke"


def test_parts_of_the_protocol_can_be_set(suite: Any) -> None:
    assert line("model=backbone-tiny", "protocol.trials=5").protocol == Protocol(trials=5)
    found = suite("protocol: standard\n" + GENERATE, "protocol.trials=5")
    assert found.protocol == Protocol(profile="standard", trials=5)


def test_brackets_and_quotes_keep_their_commas() -> None:
    found = line("model=backbone-tiny", "technique={kind: lora, r: 8},full", workload="finetune")
    assert [c.technique_label for c in found.cases] == ["lora", "full"]
    found = line(
        "model=backbone-tiny",
        "technique=lora",
        "technique.targets=[q_proj, v_proj]",
        workload="finetune",
    )
    assert found.cases[0].technique == (Lora(targets=("q_proj", "v_proj")),)


def test_the_command_lines_word_is_the_last_over_a_base(suite: Any) -> None:
    found = suite(GENERATE + "  technique: bf16\n", "technique=int8", "new_tokens=9")
    assert found.cases[0].technique == (Int8WeightOnly(),)
    assert found.cases[0].workload.new_tokens == 9


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), ["tiny-8", "small-4"]),
        (("model.preset=0.5B",), ["8", "4"]),  # what is left of the axis still varies
        (("model.preset=0.5B", "batch=2"), [""]),
        (("model.preset=0.5B,1.5B", "batch=2"), ["0.5B", "1.5B"]),
        (("model=backbone-0.5B", "batch=2"), [""]),
    ],
)
def test_the_command_line_replaces_an_axis_it_names(
    suite: Any, overrides: tuple[str, ...], expected: list[str]
) -> None:
    found = suite(
        "base: {model: backbone-tiny, workload: {kind: pretrain}}\n"
        "grid:\n"
        "  - - {model.preset: tiny, workload.batch: 8}\n"
        "    - {model.preset: small, workload.batch: 4}\n",
        *overrides,
    )
    assert names(found) == ["-".join(["pretrain", e]).strip("-") for e in expected]
    if "model.preset=0.5B" in overrides:
        assert all(case.model.preset == "0.5B" for case in found.cases)


def test_a_setting_is_never_dropped_in_silence() -> None:
    told = line_refusal(
        "model=backbone-tiny", "technique.r=8", "technique=full,lora", workload="finetune"
    )
    assert told == "command line: technique.r: no such key; there is kind"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("modle=x",), "modle: no such setting; did you mean model?"),
        (("model=backbone-tiny", "points.bach=1"), "command line: workload.points.bach: no such"),
        (("model=backbone-tiny", "steps=1"), "command line: workload.steps: no such key"),
        (("model",), "'model': settings are written key=value"),
        (("=x",), "'=x': settings are written key=value"),
        (("model=",), "command line: model.name: string should have at least 1 character"),
        (("model.=x",), "'model.' is no key"),
        (("model=backbone-tiny", "technique=["), "'technique=[': a comma or a bracket too many"),
        (("model=backbone-tiny", "technique=bf16,"), "'technique=bf16,': a comma or a bracket"),
        (("model=backbone-tiny", "technique='bf16"), '"technique=\'bf16": a comma or a bracket'),
        (
            ("model=backbone-tiny", "protocol=quick,smoke"),
            "'protocol=quick,smoke': protocol is one",
        ),
        (("model=backbone-tiny", "suite.x=1"), "'suite.x=1': suite is one value"),
        (("model=backbone-tiny", "protocol=slow"), "command line: protocol.profile: input should"),
        (
            ("model=backbone-tiny", "technique=bf16\n---\nint4"),
            "'technique=bf16\\n---\\nint4': one",
        ),
        (("model=backbone-tiny", "batch=1000000000"), "command line: workload.batch: no such key"),
        (("model=backbone-tiny", "points.batch=1,1"), "command line: workload.points: batch needs"),
        (
            ("model=backbone-tiny", "points.batch=1,-1"),
            "command line: workload.points.batch: input",
        ),
        (("model=backbone-tiny", "points.batch=1e9"), "command line: workload.points.batch: input"),
        (("model=backbone-tiny", "technique=lora"), "command line: technique: lora trains"),
        (
            ("model=backbone-tiny", "technique=bf16,int4,bf16"),
            "'technique=bf16,int4,bf16': 'bf16' stands there twice",
        ),
        (("model=Llama-3.1-8",), "command line: model: no model is called 'Llama-3.1-8'; did you"),
        (("model=backbone-tiny,backbone-tinny",), "command line: model: no model is called"),
    ],
)
def test_errors_on_the_command_line_name_the_key(overrides: tuple[str, ...], says: str) -> None:
    assert line_refusal(*overrides).startswith(says)


def test_an_error_from_an_override_names_the_command_line_and_the_base(refusal: Any) -> None:
    assert refusal(GENERATE, "new_tokens=1").startswith(
        "command line (base on study.yaml:3): workload.new_tokens: input should be greater"
    )


def test_an_unknown_workload_names_the_nearest() -> None:
    told = line_refusal("model=backbone-tiny", workload="genrate")
    assert told == "command line: workload: no kind is called 'genrate'; did you mean generate?"


def test_a_million_cases_on_the_command_line_are_refused() -> None:
    axis = "max_bytes=" + ",".join(map(str, range(1, 101)))
    told = line_refusal("model=backbone-tiny", *[f"quality.{axis}"] * 3)
    assert told.startswith("command line: 1000000 cases or more")


@pytest.mark.parametrize(
    ("value", "kind", "field", "expected"),
    [
        ("backbone-1.5B", "backbone", "preset", "1.5B"),
        ("Llama-3.1-8B", "shape", "name", "Llama-3.1-8B"),
        ("meta-llama/Llama-3.1-8B", "checkpoint", "source", "meta-llama/Llama-3.1-8B"),
        ("./checkpoint", "checkpoint", "source", "./checkpoint"),
        ("/data/checkpoint", "checkpoint", "source", "/data/checkpoint"),
        ("~/checkpoint", "checkpoint", "source", "~/checkpoint"),
        ("a/b/c", "checkpoint", "source", "a/b/c"),
    ],
)
def test_one_string_names_any_kind_of_model(
    value: str, kind: str, field: str, expected: str
) -> None:
    model = line(f"model={value}").cases[0].model
    assert (model.kind, getattr(model, field)) == (kind, expected)


def test_only_some_cases_of_a_suite_with_what_they_continue_from() -> None:
    suite = load_suite("quickstart")
    chosen = suite.only("finetune-lora, generate-i*")
    assert [case.name for case in chosen.cases] == [
        "pretrain-gqa",
        "finetune-full",
        "finetune-lora",
        "generate-int8",
        "generate-int4",
    ]
    assert suite.only("*") == suite
    with pytest.raises(SpecError, match="matches no case of quickstart"):
        suite.only("train-*")


def test_what_an_attention_of_ones_own_has_learned_is_no_parent(suite: Any) -> None:
    text = (
        "base: {name: p, model: {kind: backbone, attention: 'custom:mine.py:Mine'},"
        " workload: {kind: pretrain, steps: 2}}\n"
        "---\nbase: {name: g, model: {kind: product, of: p}, workload: generate}\n"
    )
    with pytest.raises(SpecError, match=r"'p' has an attention of somebody's own \(Mine\).*unsup"):
        suite(text)


def test_an_attention_of_ones_own_is_called_by_its_class_in_names() -> None:
    setting = "model.attention=gqa,custom:/home/ada/mine.py:Mine"
    made = one_line_suite("pretrain", ("model=backbone-tiny", setting))
    assert [case.name.rpartition("-")[2] for case in made.cases] == ["gqa", "Mine"]


def test_classes_of_one_name_are_called_by_their_files_too() -> None:
    setting = "model.attention=gqa,custom:v1.py:A,custom:dir/v2.py:A,custom:v2.py:B"
    names = [c.name for c in one_line_suite("pretrain", ("model=backbone-tiny", setting)).cases]
    assert names == [f"pretrain-backbone-tiny-{x}" for x in ("gqa", "v1-A", "v2-A", "B")]
    techniques = ("model=backbone-tiny", "technique=custom:v1.py:f,custom:v2.py:f")
    made = one_line_suite("generate", techniques)
    assert [case.name.partition("tiny-")[2] for case in made.cases] == ["v1-f", "v2-f"]
    same = "model.attention=custom:a/v.py:A,custom:b/v.py:A"
    with pytest.raises(SpecError, match=r"two cases are called .*tiny-v-A; .* or of a file and"):
        one_line_suite("pretrain", ("model=backbone-tiny", same))


def test_a_case_under_two_names_is_a_double_of_the_first(suite: Any) -> None:
    named = (GENERATE.replace("base:", f"base:\n  name: {name}") for name in ("one", "two"))
    found = suite("---\n".join(named))
    assert found.doubles == {"two": "one"}


@pytest.mark.parametrize("name", builtin_names())
def test_no_suite_of_the_package_names_a_case_twice(name: str) -> None:
    assert load_suite(name).doubles == {}
