"""Parameters are counted where they belong."""

from __future__ import annotations

import pytest
import torch

from efficientllm.techniques.build import bytes_by_kind, dtypes_of, kind_of, touched
from tests import tiny


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("gpt_neox.embed_in.weight", "embedding"),
        ("backbone.embeddings.weight", "embedding"),
        ("lm_head.weight", "head"),
        ("model.layers.0.self_attn.q_proj.weight", "attention"),
        ("model.layers.0.self_attn.qkv_proj.bias", "attention"),
        ("gpt_neox.layers.0.attention.query_key_value.weight", "attention"),
        ("model.layers.0.self_attn.q_norm.weight", "norm"),
        ("model.layers.0.post_attention_layernorm.weight", "norm"),
        ("model.norm.weight", "norm"),
        ("model.layers.0.mlp.gate_up_proj.weight", "feedforward"),
        ("model.layers.0.mlp.experts.down_proj", "feedforward"),
        ("backbone.layers.0.mixer.A_log", "mixer"),
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", "adapter"),
        ("score.bias", "other"),
    ],
)
def test_a_parameter_is_of_the_kind_of_its_module(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_a_tied_table_counts_once_and_as_embedding() -> None:
    tied, untied = (bytes_by_kind(tiny.decoder(tiny.shape(tied=tied))) for tied in (True, False))
    assert tied["embedding"] == untied["embedding"] == untied["head"] == 4 * 272 * 64
    assert "head" not in tied


def test_types_are_counted_in_parameters() -> None:
    model = tiny.decoder()
    model.model.norm.to(torch.bfloat16)
    total = sum(p.numel() for p in model.parameters())
    assert dtypes_of(model) == {"bf16": 64, "float32": total - 64}


def test_only_the_named_parameters_are_touched() -> None:
    names = ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"]
    assert touched(names, tiny.decoder()) == {"feedforward": 64 * 96, "norm": 64}
