"""Every shape of the catalog, built without memory: the counts are those of real models."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from efficientllm.catalog.shape import presets, shape_from_config, shapes
from efficientllm.models.decoder import Decoder
from efficientllm.models.huggingface import config_of

BALANCE = "e_score_correction_bias"
"""DeepSeek-V3 keeps what balances its experts in buffers; its published count has them."""


def count(model: torch.nn.Module) -> int:
    buffers = (b.numel() for name, b in model.named_buffers() if name.endswith(BALANCE))
    return sum(p.numel() for p in model.parameters()) + sum(buffers)


@pytest.mark.parametrize("name", sorted(shapes()))
def test_a_built_shape_has_the_published_count(name: str) -> None:
    shape = shapes()[name]
    config = config_of(shape)
    with torch.device("meta"):
        built = [AutoModelForCausalLM.from_config(config)]
        built += [Decoder.from_shape(shape)] if shape.gated_decoder else []
    assert {count(model) for model in built} == {shape.parameters}


@pytest.mark.parametrize("name", sorted(presets()))
@pytest.mark.parametrize("kv_heads", [1, None])
def test_a_backbone_saved_as_a_published_family_keeps_its_count(
    name: str, kv_heads: int | None
) -> None:
    preset = presets()[name]
    shape = preset.model_copy(update={"kv_heads": kv_heads or preset.heads})
    config = config_of(shape)
    with torch.device("meta"):
        ours = Decoder.from_shape(shape)
        theirs = AutoModelForCausalLM.from_config(config)
    assert count(ours) == count(theirs)


@pytest.mark.parametrize("name", sorted(shapes()))
def test_a_saved_configuration_is_read_back_as_the_same_shape(name: str) -> None:
    shape = shapes()[name]
    read = shape_from_config(config_of(shape).to_dict(), name)
    if shape.arch not in ("dense", "moe") or shape.rotary_share != 1.0 or shape.family == "Phi":
        assert read is None
        return
    assert read is not None
    facts = {"family", "sources", "note", "parameters", "active_parameters", "norm_eps", "ffn"}
    assert read.model_dump(exclude=facts) == shape.model_dump(exclude=facts)
