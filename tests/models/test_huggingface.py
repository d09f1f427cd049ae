"""Shapes built on the meta device compute what transformers' own construction computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from efficientllm.catalog.shape import Experts, Latent, RopeScaling, State
from efficientllm.models import checkpoint, huggingface
from efficientllm.models.decoder import Decoder
from efficientllm.record import Unsupported
from efficientllm.spec.model import CatalogShape
from tests import tiny

LLAMA3 = RopeScaling(factor=8.0, original_max_positions=16)
MIXTURE = Experts(count=4, per_token=2, ffn=32)
LATENT = Latent(q_rank=24, kv_rank=16, qk_nope_dim=8, qk_rope_dim=8, v_dim=16)
MAMBA1 = State(inner=128, state=8, conv=4, dt_rank=4)
MAMBA2 = State(inner=128, state=16, conv=4, groups=1)

SHAPES: dict[str, dict[str, Any]] = {
    "llama3": {"qkv_bias": False, "rope_scaling": LLAMA3, "rope_theta": 5e5},
    "qwen2": {},
    "qwen3": {"qkv_bias": False, "qk_norm": True, "head_dim": 32},
    "phi": {"family": "Phi", "qkv_bias": False, "rotary_share": 0.5, "tied": False},
    "mistral": {"family": "mistral", "qkv_bias": False, "sliding_window": 8, "tied": False},
    "mixtral": {"arch": "moe", "qkv_bias": False, "experts": MIXTURE, "tied": False},
    "qwen3 moe": {"arch": "moe", "qkv_bias": False, "qk_norm": True, "experts": MIXTURE},
    "deepseek": {
        "arch": "moe-mla",
        "qkv_bias": False,
        "kv_heads": 4,
        "latent": LATENT,
        "experts": Experts(count=16, per_token=2, ffn=32, shared=1, first_dense_layers=1),
    },
    "gpt-neox": {"arch": "gpt-neox", "kv_heads": 4, "rotary_share": 0.25, "tied": False},
    "mamba1": {"arch": "mamba1", "heads": 0, "kv_heads": 0, "head_dim": 0, "state": MAMBA1},
    "mamba2": {"arch": "mamba2", "heads": 8, "kv_heads": 0, "head_dim": 16, "state": MAMBA2},
}


@pytest.mark.parametrize("parts", SHAPES.values(), ids=SHAPES.keys())
def test_a_shape_filled_on_the_device_computes_what_its_family_computes(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = tiny.shape(**parts)
    monkeypatch.setattr(checkpoint, "shape_named", lambda name: shape)
    spec = CatalogShape(name="tiny", implementation="transformers")
    built, _ = checkpoint.build_model(spec, tiny.CPU.torch, torch.float32, 0, "")

    theirs = AutoModelForCausalLM.from_config(huggingface.config_of(shape))
    theirs.load_state_dict(built.state_dict())
    tokens = tiny.tokens(1, 24)
    with torch.inference_mode():
        found = built.eval()(input_ids=tokens).logits
        expected = theirs.eval()(input_ids=tokens).logits
    assert torch.isfinite(found).all()
    assert expected.std() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama3", "qwen2", "qwen3"])
def test_both_arms_of_a_shape_are_one_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = tiny.shape(**SHAPES[name])
    monkeypatch.setattr(checkpoint, "shape_named", lambda _: shape)
    ours, theirs = (
        checkpoint.build_model(
            CatalogShape(name="tiny", implementation=arm), tiny.CPU.torch, torch.float32, 0, ""
        )[0]
        for arm in ("decoder", "transformers")
    )
    assert type(ours) is Decoder
    theirs.load_state_dict(ours.state_dict())
    tokens = tiny.tokens(2, 24)
    with torch.inference_mode():
        found, expected = ours.eval()(tokens).logits, theirs.eval()(input_ids=tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parts", SHAPES.values(), ids=SHAPES.keys())
def test_half_precision_leaves_rotary_frequencies_in_float32(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = tiny.shape(**parts)
    monkeypatch.setattr(checkpoint, "shape_named", lambda _: shape)
    spec = CatalogShape(name="tiny", implementation="auto")
    model, _ = checkpoint.build_model(spec, tiny.CPU.torch, torch.bfloat16, 0, "")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    buffers = dict(model.named_buffers())
    angles = {n: b for n, b in buffers.items() if "inv_freq" in n or "frequencies" in n}
    assert bool(angles) == (shape.state is None)
    assert all(b.dtype == torch.float32 for b in angles.values())


def test_our_decoder_refuses_a_family_that_it_cannot_build(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "shape_named", lambda _: tiny.shape(**SHAPES["mixtral"]))
    spec = CatalogShape(name="tiny", implementation="decoder")
    with pytest.raises(Unsupported, match="use implementation: auto"):
        checkpoint.build_model(spec, tiny.CPU.torch, torch.float32, 0, "")


def test_auto_takes_our_decoder_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {}
    for name, parts in SHAPES.items():
        shape = tiny.shape(**parts)
        monkeypatch.setattr(checkpoint, "shape_named", lambda _, shape=shape: shape)
        model, _ = checkpoint.build_model(
            CatalogShape(name="tiny"), tiny.CPU.torch, torch.float32, 0, ""
        )
        kinds[name] = type(model) is Decoder
    assert {name for name, ours in kinds.items() if ours} == {"llama3", "qwen2", "qwen3"}
