"""Shapes: the catalog agrees with its own counts, checkpoints are read as what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from efficientllm.catalog.backbone import backbone_shape
from efficientllm.catalog.shape import (
    Shape,
    presets,
    read_config,
    shape_from_config,
    shape_named,
    shapes,
)
from efficientllm.parameters import parameters
from efficientllm.spec.document import SpecError
from efficientllm.spec.model import Backbone

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 100,
}


@pytest.mark.parametrize("name", sorted(shapes()))
def test_parameter_counts_are_equal_to_the_last_digit(name: str) -> None:
    shape = shapes()[name]
    counts = parameters(shape)
    assert counts.total == shape.parameters
    assert counts.active == (shape.active_parameters or shape.parameters)


def test_every_shape_names_its_sources() -> None:
    assert [name for name, shape in shapes().items() if not shape.sources] == []


def test_presets_never_change_since_no_id_would_tell() -> None:
    totals = {name: parameters(shape).total for name, shape in presets().items()}
    assert totals == {
        "tiny": 1_050_752,
        "small": 26_753_536,
        "0.5B": 494_032_768,  # Qwen2.5-0.5B
        "1.5B": 1_543_714_304,  # Qwen2.5-1.5B
        "3B": 3_085_938_688,  # Qwen2.5-3B
        "30M-h16": 26_753_536,
        "0.5B-h16": 505_052_032,
        "1.5B-h16": 1_609_803_264,
        "3B-h16": 3_123_705_856,
    }
    for size in ("0.5B", "1.5B", "3B"):
        published = shape_named(f"Qwen2.5-{size}").model_dump()
        ours = presets()[size].model_dump()
        own = ("name", "family", "parameters", "sources", "note")
        differs = [key for key, value in ours.items() if key not in own and value != published[key]]
        assert set(differs) <= {"max_positions"}


def test_our_decoder_builds_what_it_has_the_parts_for() -> None:
    ours = {name for name, shape in shapes().items() if shape.gated_decoder}
    assert {"Llama-3.1-8B", "Qwen2.5-7B", "Qwen3-8B", "phi-4", "Mistral-7B-v0.3"} <= ours
    others = {"Phi-4-mini-instruct", "Mistral-7B-v0.1", "Mixtral-8x7B-v0.1", "DeepSeek-V3"}
    assert not ours & others


def test_a_shape_is_found_in_any_case_and_a_typo_names_the_nearest() -> None:
    assert shape_named("llama-3.1-8b").name == "Llama-3.1-8B"
    with pytest.raises(SpecError, match=r"no shape .*8C'; did you mean Llama-3\.1-8B"):
        shape_named("Llama-3.1-8C")
    with pytest.raises(SpecError, match=r"preset '0\.6B'; did you mean 0\.5B"):
        backbone_shape(Backbone(preset="0.6B"))


@pytest.mark.parametrize(("attention", "kv_heads"), [("mha", 14), ("gqa", 2), ("mqa", 1)])
def test_attention_kinds_differ_in_key_heads_only(attention: str, kv_heads: int) -> None:
    shape = backbone_shape(Backbone.model_validate({"attention": attention}))
    assert shape.kv_heads == kv_heads
    assert shape == presets()["0.5B"].model_copy(update={"kv_heads": kv_heads})


def test_single_sizes_replace_a_presets() -> None:
    spec = {
        "preset": "tiny",
        "layers": 2,
        "vocab": 512,
        "attention": {"kind": "gqa", "kv_heads": 4},
    }
    shape = backbone_shape(Backbone.model_validate(spec))
    assert (shape.layers, shape.vocab, shape.kv_heads) == (2, 512, 4)
    assert shape.hidden == presets()["tiny"].hidden


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attention": {"kind": "gqa", "kv_heads": 3}}, "4 query heads do not divide into 3"),
        ({"attention": {"kind": "gqa", "kv_heads": 8}}, "do not divide"),
        ({"heads": 5}, "5 query heads do not divide into 2"),
        ({"head_dim": 31}, "head_dim 31 must be even"),
        ({"attention": {"kind": "mla", "qk_rope_dim": 7}}, "qk_rope_dim 7 must be even"),
        ({"attention": "mla", "head_dim": 30}, "qk_rope_dim 15 must be even"),
    ],
)
def test_sizes_that_fit_no_attention_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        backbone_shape(Backbone.model_validate({"preset": "tiny"} | changes))


def test_a_config_gives_its_shape() -> None:
    shape = shape_from_config(LLAMA, "x")
    assert shape == Shape(
        name="x",
        family="llama",
        arch="dense",
        hidden=64,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=16,
        ffn=96,
        vocab=100,
        tied=False,
    )


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"head_dim": 32}, "head_dim", 32),
        ({"num_key_value_heads": None}, "kv_heads", 4),
        ({"tie_word_embeddings": True}, "tied", True),
        ({"attention_bias": True}, "qkv_bias", True),
        ({"model_type": "qwen2"}, "qkv_bias", True),
        ({"model_type": "qwen3"}, "qk_norm", True),
        ({"rope_theta": 5e5}, "rope_theta", 5e5),
        ({"rope_parameters": {"rope_theta": 1e6}}, "rope_theta", 1e6),
        ({"model_type": "mistral", "sliding_window": 8}, "sliding_window", 8),
        ({"model_type": "mistral", "sliding_window": None}, "sliding_window", None),
        # Qwen2's configurations carry a window that nothing uses.
        (
            {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": False},
            "sliding_window",
            None,
        ),
        ({"rms_norm_eps": 1e-5}, "norm_eps", 1e-5),
    ],
)
def test_every_part_of_a_config_is_read(changes: dict[str, Any], field: str, expected: Any) -> None:
    shape = shape_from_config(LLAMA | changes, "x")
    assert shape is not None
    assert getattr(shape, field) == expected


def test_llamas_stretched_positions_are_read() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    shape = shape_from_config(LLAMA | {"rope_scaling": scaling}, "x")
    assert shape is not None
    assert shape.rope_scaling == shape_named("Llama-3.1-8B").rope_scaling


def test_a_mixtures_config_counts_its_experts() -> None:
    mixtral = LLAMA | {
        "model_type": "mixtral",
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
    shape = shape_from_config(mixtral, "x")
    assert shape is not None
    # attention 64*(64+64+32+32), 8 experts of 3*64*96, router 64*8, two norms
    layer = 64 * 192 + 8 * 3 * 64 * 96 + 64 * 8 + 2 * 64
    assert parameters(shape).total == 2 * layer + 2 * 100 * 64 + 64
    assert parameters(shape).total - parameters(shape).active == 2 * 6 * 3 * 64 * 96


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "gpt2"},
        {"model_type": None},
        {"model_type": "qwen3_moe", "mlp_only_layers": [0]},
        {"model_type": "qwen3_moe", "decoder_sparse_step": 2},
    ],
)
def test_a_family_without_formulas_has_no_shape(changes: dict[str, Any]) -> None:
    assert shape_from_config(LLAMA | changes, "x") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 0},
        {"hidden_size": "big"},
        {"hidden_size": None},
        {"model_type": "mixtral"},
    ],
)
def test_a_broken_config_is_named_instead_of_a_crash(changes: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"model: x: its config\.json is not a"):
        shape_from_config(LLAMA | changes, "x")
    with pytest.raises(SpecError, match=r"not a llama model's \(num_attention_heads\)"):
        shape_from_config({"model_type": "llama"}, "x")


def test_a_folder_without_a_readable_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no checkpoint there"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SpecError, match="not JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(SpecError, match="not a model configuration"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert read_config(tmp_path) == LLAMA
