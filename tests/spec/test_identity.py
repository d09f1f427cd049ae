"""Ids: equal for equal work, different for different work, the same in every release."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from efficientllm.spec.canonical import Spec, canonical, digest
from efficientllm.spec.case import Case
from efficientllm.spec.protocol import Limits, Protocol
from efficientllm.spec.technique import Lora

GOLDEN = Path(__file__).parents[1] / "golden" / "case_ids.json"
"""Cases as a user writes them, with their ids and the ids of their points.

An entry is never edited: whoever has records of it would lose them. When a kind's meaning
changes, raise its `rev`, and add new entries with `write_golden`.
"""

COMMIT, SHA = "1234567890" * 4, "a" * 64


def ids_of(case: dict[str, Any]) -> dict[str, Any]:
    found = Case.model_validate(case)
    points = {str(point): found.point_id(point) for point in found.points}
    return {"case_id": found.case_id, "points": points}


def write_golden(name: str, case: dict[str, Any]) -> None:
    """Add one entry (`python -c 'from tests.spec.test_identity import ...'`)."""
    table = json.loads(GOLDEN.read_text("utf-8")) if GOLDEN.exists() else {}
    assert name not in table
    table[name] = {"case": case, **ids_of(case)}
    GOLDEN.write_text(json.dumps(table, indent=1) + "\n", "utf-8")


def identity(case: dict[str, Any]) -> str:
    return Case.model_validate(case).case_id


@pytest.mark.parametrize("name", sorted(json.loads(GOLDEN.read_text("utf-8"))))
def test_a_released_id_never_changes(name: str) -> None:
    entry = json.loads(GOLDEN.read_text("utf-8"))[name]
    assert ids_of(entry["case"]) == {key: entry[key] for key in ("case_id", "points")}


def test_the_golden_table_holds_every_kind() -> None:
    text = GOLDEN.read_text("utf-8")
    cases = [Case.model_validate(entry["case"]) for entry in json.loads(text).values()]
    shown = json.dumps([case.model_dump(mode="json") for case in cases])
    for kind in _kinds():
        assert f'"kind": "{kind}"' in shown, kind


def _kinds() -> set[str]:
    kinds: set[str] = set()
    for definition in Case.model_json_schema()["$defs"].values():
        kind = definition.get("properties", {}).get("kind", {})
        kinds.update(kind.get("enum", [kind["const"]] if "const" in kind else []))
    return kinds


GENERATE: dict[str, Any] = {
    "name": "g",
    "model": {"kind": "backbone", "preset": "tiny"},
    "technique": [{"kind": "int4"}],
    "workload": {"kind": "generate", "points": {"batch": [1, 32], "context": [128]}},
    "quality": {"max_bytes": 1000},
}
FINETUNE: dict[str, Any] = {
    "model": {"kind": "shape", "name": "Llama-3.2-1B"},
    "technique": [{"kind": "lora"}],
    "workload": {"kind": "finetune", "data": {"kind": "files", "path": "a"}},
}
PRETRAIN: dict[str, Any] = {
    "model": {"kind": "backbone", "attention": {"kind": "gqa"}},
    "workload": {
        "kind": "pretrain",
        "data": {"kind": "stdlib"},
        "optimizer": {"kind": "adamw"},
        "precision": {},
    },
}
STEPS = PRETRAIN | {"workload": {"kind": "pretrain", "steps": 10}, "quality": {}}
PAIR = {"prompt_field": "p", "response_field": "r"}
PAIRED = FINETUNE | {
    "workload": {"kind": "finetune", "data": {"kind": "files", "path": "a"} | PAIR}
}
FINETUNE_STEPS = FINETUNE | {"workload": {"kind": "finetune", "steps": 10}}
WSD = PRETRAIN | {"workload": {"kind": "pretrain", "optimizer": {"schedule": "wsd"}}}
CHECKPOINT = GENERATE | {"model": {"kind": "checkpoint", "source": "a/b", "commit": COMMIT}}
PRODUCT = GENERATE | {"model": {"kind": "product", "of": "x", "parent": SHA}}
FREEZE = FINETUNE | {"technique": [{"kind": "freeze"}]}
CAST = GENERATE | {"technique": [{"kind": "bf16"}]}
CUSTOM = GENERATE | {
    "technique": [{"kind": "custom", "file": "a.py", "function": "apply", "sha256": SHA}]
}
SLIDING = PRETRAIN | {"model": {"kind": "backbone", "attention": {"kind": "sliding"}}}
LATENT = PRETRAIN | {"model": {"kind": "backbone", "attention": {"kind": "mla"}}}
SPARSE = PRETRAIN | {"model": {"kind": "backbone", "attention": {"kind": "nsa"}}}
OWN_ATTENTION = PRETRAIN | {
    "model": {
        "kind": "backbone",
        "attention": {"kind": "custom", "file": "a.py", "name": "Mine", "sha256": SHA},
    }
}
LEARNED = PRETRAIN | {"model": {"kind": "backbone", "position": {"kind": "learned"}}}
RELATIVE = PRETRAIN | {"model": {"kind": "backbone", "position": {"kind": "t5"}}}
MATCHED = PRETRAIN | {"model": {"kind": "backbone", "attention": "mqa", "match": "flops"}}
HUB = PRETRAIN | {"workload": {"kind": "pretrain", "data": {"kind": "hub", "source": "a/b"}}}
HUB_PAIRED = PRETRAIN | {
    "workload": {"kind": "pretrain", "data": {"kind": "hub", "source": "a/b"} | PAIR}
}
PROBE = {"model": "none", "workload": {"kind": "probe"}}

CHANGES: list[tuple[dict[str, Any], str, Any]] = [
    (GENERATE, "model", "backbone-small"),
    (GENERATE, "technique", "int8"),
    (GENERATE, "technique", "int8-dynamic"),
    (GENERATE, "workload", "generate"),
    (GENERATE, "quality", None),
    (GENERATE, "quality.data", "stdlib:code"),
    (GENERATE, "quality.max_bytes", 1001),
    (GENERATE, "quality.sequence_length", 64),
    (STEPS, "quality.curve", 5),
    (GENERATE, "model.preset", "small"),
    (GENERATE, "model.attention", "mqa"),
    (GENERATE, "model.layers", 3),
    (GENERATE, "model.hidden", 64),
    (GENERATE, "model.heads", 2),
    (GENERATE, "model.head_dim", 64),
    (GENERATE, "model.ffn", 64),
    (GENERATE, "model.vocab", 512),
    (GENERATE, "model.tokenizer_sha256", SHA),
    (GENERATE, "technique.0.backend", "tinygemm"),
    (GENERATE, "technique.0.group_size", 64),
    (GENERATE, "workload.points", {"batch": 1, "context": 128}),
    (GENERATE, "workload.points.batch", [1]),
    (GENERATE, "workload.points.context", [64]),
    (GENERATE, "workload.new_tokens", 64),
    (GENERATE, "workload.data", "stdlib:code"),
    (GENERATE, "workload.attention", "math"),
    (GENERATE, "workload.compile", "none"),
    (GENERATE, "workload.cuda_graph", "none"),
    (FINETUNE, "model.name", "Llama-3.2-3B"),
    (FINETUNE, "model.implementation", "transformers"),
    (FINETUNE, "model.tokenizer_sha256", SHA),
    (FINETUNE, "technique.0.r", 8),
    (FINETUNE, "technique.0.alpha", 16),
    (FINETUNE, "technique.0.dropout", 0.1),
    (FINETUNE, "technique.0.targets", ["q_proj"]),
    (FINETUNE, "technique", "full"),
    (FINETUNE, "workload.sequence_length", 128),
    (FINETUNE, "workload.batch", 16),
    (FINETUNE, "workload.micro_batch", 4),
    (FINETUNE, "workload.steps", 10),
    (FINETUNE, "workload.tokens", 10),
    (FINETUNE, "workload.optimizer", {"lr": 1e-5}),
    (FINETUNE, "workload.precision", {"compute": "float32"}),
    (FINETUNE, "workload.loss", "chunked"),
    (FINETUNE, "workload.attention", "flash"),
    (FINETUNE, "workload.compile", "model"),
    (FINETUNE, "workload.data", "stdlib"),
    (FINETUNE, "workload.data.sha256", SHA),
    (FINETUNE, "workload.data.text_field", "body"),
    (PAIRED, "workload.data.prompt_field", "q"),
    (PAIRED, "workload.data.response_field", "a"),
    (FREEZE, "technique.0.last_layers", 3),
    (PRETRAIN, "model.attention.kv_heads", 2),
    (PRETRAIN, "model.attention", "mha"),
    (PRETRAIN, "model.position", "alibi"),
    (PRETRAIN, "model.match", "params"),
    (MATCHED, "model.match_context", 16384),
    (SLIDING, "model.attention.window", 64),
    (SLIDING, "model.attention.kv_heads", 1),
    (LATENT, "model.attention.kv_rank", 64),
    (LATENT, "model.attention.q_rank", 64),
    (LATENT, "model.attention.qk_nope_dim", 32),
    (LATENT, "model.attention.qk_rope_dim", 16),
    (LATENT, "model.attention.v_dim", 32),
    (SPARSE, "model.attention.kv_heads", 2),
    (SPARSE, "model.attention.block", 32),
    (SPARSE, "model.attention.selected", 8),
    (SPARSE, "model.attention.window", 256),
    (OWN_ATTENTION, "model.attention.name", "Other"),
    (OWN_ATTENTION, "model.attention.sha256", "b" * 64),
    (LEARNED, "model.position.max_positions", 4096),
    (RELATIVE, "model.position.buckets", 16),
    (RELATIVE, "model.position.max_distance", 64),
    (PRETRAIN, "workload.sequence_length", 128),
    (PRETRAIN, "workload.batch", 16),
    (PRETRAIN, "workload.micro_batch", 4),
    (PRETRAIN, "workload.steps", 10),
    (PRETRAIN, "workload.tokens", 10),
    (PRETRAIN, "workload.data", "stdlib:code"),
    (PRETRAIN, "workload.data.part", "code"),
    (PRETRAIN, "workload.data.filter", {"min_chars": 10}),
    (PRETRAIN, "workload.data.dedup", "near"),
    (PRETRAIN, "workload.data.order", "easy_first"),
    (FINETUNE, "workload.data.filter", {"min_chars": 10}),
    (FINETUNE, "workload.data.filter.min_chars", 10),
    (FINETUNE, "workload.data.filter.max_chars", 10),
    (FINETUNE, "workload.data.filter.max_symbol_share", 0.1),
    (FINETUNE, "workload.data.filter.min_letter_share", 0.8),
    (FINETUNE, "workload.data.filter.max_repeated_lines", 0.3),
    (FINETUNE, "workload.data.dedup", "exact"),
    (FINETUNE, "workload.data.order", "short_first"),
    (HUB, "workload.data.commit", COMMIT),
    (HUB, "workload.data.files", "train/*.parquet"),
    (HUB, "workload.data.max_bytes", 1000),
    (HUB, "workload.data.text_field", "body"),
    (HUB_PAIRED, "workload.data.prompt_field", "q"),
    (HUB_PAIRED, "workload.data.response_field", "a"),
    (HUB, "workload.data.filter", {"min_chars": 10}),
    (HUB, "workload.data.dedup", "near"),
    (HUB, "workload.data.order", "as_read"),
    (PRETRAIN, "workload.optimizer", {"clip": None}),
    (PRETRAIN, "workload.optimizer.lr", 1e-5),
    (PRETRAIN, "workload.optimizer.beta1", 0.8),
    (PRETRAIN, "workload.optimizer.beta2", 0.999),
    (PRETRAIN, "workload.optimizer.weight_decay", 0.0),
    (PRETRAIN, "workload.optimizer.clip", None),
    (PRETRAIN, "workload.optimizer.warmup_share", 0.0),
    (PRETRAIN, "workload.optimizer.schedule", "constant"),
    (PRETRAIN, "workload.optimizer.schedule", "wsd"),
    (WSD, "workload.optimizer.decay_share", 0.1),
    (
        PRETRAIN,
        "workload.precision",
        {"params": "bf16", "optimizer_state": "bf16"},
    ),
    (PRETRAIN, "workload.precision.compute", "float32"),
    (PRETRAIN, "workload.loss", "plain"),
    (PRETRAIN, "workload.attention", "math"),
    (PRETRAIN, "workload.compile", "none"),
    (PRETRAIN, "workload.cuda_graph", "none"),
    (CHECKPOINT, "model.commit", "2" * 40),
    (CHECKPOINT, "model.sha256", SHA),
    (CHECKPOINT, "model.implementation", "decoder"),
    (CHECKPOINT, "model.allow_code", True),
    (PRODUCT, "model.seed", 1),
    (PRODUCT, "model.parent", "b" * 64),
    (CAST, "technique.0.kind", "fp16"),
    (PROBE, "workload.check", "copy"),
    (CUSTOM, "technique.0.function", "other"),
    (CUSTOM, "technique.0.sha256", "b" * 64),
]
LOCAL: list[tuple[dict[str, Any], str, Any]] = [
    (GENERATE, "name", "another"),
    (GENERATE, "model.tokenizer", "./t"),
    (FINETUNE, "model.tokenizer", "./t"),
    (FINETUNE, "workload.data.path", "b"),
    (CHECKPOINT, "model.source", "mirror/b"),
    (HUB, "workload.data.source", "mirror/b"),
    (CUSTOM, "technique.0.file", "b.py"),
    (OWN_ATTENTION, "model.attention.file", "b.py"),
    (PRODUCT, "model.of", "y"),
    (STEPS, "workload.checkpoint_every", 50),
    (FINETUNE_STEPS, "workload.checkpoint_every", 50),
]
TOGETHER = {("Precision", "params"), ("Precision", "optimizer_state")}
"""Changed only together, which the whole `precision` above does."""


def changed(case: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    copy = json.loads(json.dumps(case))
    *parents, last = path.split(".")
    target: Any = copy
    for part in parents:
        target = target[int(part)] if part.isdigit() else target.setdefault(part, {})
    target[last] = value
    return copy


@pytest.mark.parametrize(("case", "path", "value"), CHANGES, ids=[p for _, p, _ in CHANGES])
def test_every_field_of_the_work_changes_the_id(
    case: dict[str, Any], path: str, value: Any
) -> None:
    assert identity(changed(case, path, value)) != identity(case)


@pytest.mark.parametrize(("case", "path", "value"), LOCAL, ids=[p for _, p, _ in LOCAL])
def test_names_and_paths_change_no_id(case: dict[str, Any], path: str, value: Any) -> None:
    other = changed(case, path, value)
    assert Case.model_validate(other) != Case.model_validate(case)
    assert identity(other) == identity(case)


def test_no_field_of_any_spec_is_missing_from_these_tables() -> None:
    tested = {_owner(case, path) for case, path, _ in [*CHANGES, *LOCAL]} | TOGETHER
    every = {
        (spec.__name__, name)
        for spec in _specs(Spec)
        if spec not in (Protocol, Limits) and spec.__module__.startswith("efficientllm.")
        for name in spec.model_fields
        if name != "kind" and spec.__name__ not in ("Training", "Selected", "Rows")
    }
    assert every - tested == set()


def _specs(root: type[Spec]) -> set[type[Spec]]:
    found = set(root.__subclasses__())
    return found.union(*(_specs(spec) for spec in found)) if found else found


def _owner(case: dict[str, Any], path: str) -> tuple[str, str]:
    node: Any = Case.model_validate(case)
    *parents, last = path.split(".")
    for part in parents:
        node = node[int(part)] if part.isdigit() else getattr(node, part)
    return type(node).__name__, last


def test_the_order_of_keys_and_spelled_out_defaults_change_no_id() -> None:
    full = Case.model_validate(GENERATE).model_dump(mode="json")
    turned = json.loads(json.dumps(full), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    assert identity(full) == identity(turned) == identity(GENERATE)


def test_short_and_long_forms_of_one_case_have_one_id() -> None:
    short = {"model": "backbone-tiny", "technique": "int4+lora", "workload": "finetune"}
    long = {
        "model": {"kind": "backbone", "preset": "tiny"},
        "technique": [{"kind": "int4", "backend": "auto"}, {"kind": "lora", "r": 16}],
        "workload": {"kind": "finetune", "data": {"kind": "stdlib", "part": "code"}},
    }
    assert identity(short) == identity(long)


@pytest.mark.parametrize(
    ("path", "a", "b"),
    [
        ("workload.optimizer.lr", 1, 1.0),
        ("workload.optimizer.clip", 2, 2.0),
        ("workload.optimizer.weight_decay", 0.0, -0.0),
        ("workload.optimizer.lr", 1e-4, 0.0001),
    ],
)
def test_spellings_of_one_number_have_one_id(path: str, a: float, b: float) -> None:
    assert identity(changed(PRETRAIN, path, a)) == identity(changed(PRETRAIN, path, b))


def test_ids_do_not_depend_on_locale_or_hash_seed() -> None:
    code = (
        "import sys, json; from efficientllm.spec.case import Case;"
        "print(Case.model_validate(json.loads(sys.argv[1])).case_id)"
    )
    case = GENERATE | {"quality": {"data": {"kind": "files", "text_field": "größe"}}}
    found = {
        subprocess.run(
            [sys.executable, "-c", code, json.dumps(case)],
            env=os.environ | {"PYTHONHASHSEED": seed, "LC_ALL": locale},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed, locale in (("1", "C"), ("2", "C.UTF-8"))
    }
    assert found == {identity(case)}


def test_raising_the_rev_of_a_kind_changes_only_ids_with_that_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = identity(FINETUNE), identity(GENERATE)
    monkeypatch.setattr(Lora, "rev", 2)
    assert identity(FINETUNE) != before[0]
    assert identity(GENERATE) == before[1]


def test_the_order_of_techniques_is_part_of_the_work() -> None:
    one = FINETUNE | {"technique": "int4+lora"}
    assert identity(one) != identity(FINETUNE | {"technique": "lora+int4"})


def test_the_protocol_is_no_part_of_a_case() -> None:
    assert "protocol" not in Case.model_fields


def test_equal_points_of_different_grids_have_one_id() -> None:
    grids = [[1, 32], [32], [32, 64]]
    cases = [
        Case.model_validate(changed(GENERATE, "workload.points.batch", batches))
        for batches in grids
    ]
    found = {case.point_id(point) for case in cases for point in case.points if point.batch == 32}
    assert len(found) == 1
    assert len({case.case_id for case in cases}) == 3


def test_points_differ_by_batch_context_and_all_that_is_not_the_grid() -> None:
    case = Case.model_validate(
        changed(GENERATE, "workload.points", {"batch": [1, 2], "context": [64, 128]})
    )
    other = Case.model_validate(changed(GENERATE, "workload.new_tokens", 64))
    found = {case.point_id(point) for point in case.points} | {other.point_id(case.points[2])}
    assert len(found) == 5


def test_what_is_hashed_is_plain_and_leaves_defaults_out() -> None:
    case = Case.model_validate(GENERATE)
    assert canonical(case.model) == {"kind": "backbone", "rev": 1, "preset": "tiny"}
    assert canonical(case.technique) == [{"kind": "int4", "rev": 1}]
    assert canonical(case.quality) == {"max_bytes": 1000}


def test_values_that_json_cannot_hold_have_no_id() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"lr": float("nan")})


def test_a_copy_with_other_content_can_take_a_fresh_id() -> None:
    case = Case.model_validate(GENERATE)
    first = case.case_id
    copy = case.model_copy(update={"quality": None})
    assert Case.model_validate(copy.model_dump()).case_id != first
