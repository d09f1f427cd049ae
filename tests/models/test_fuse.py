"""Fusing changes how products are issued and nothing that can be seen from outside."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from efficientllm.catalog.shape import Sparse
from efficientllm.models.checkpoint import save_checkpoint
from efficientllm.models.decoder import Decoder
from efficientllm.models.fuse import fuse
from efficientllm.spec.technique import Int8WeightOnly, Lora
from efficientllm.techniques import apply
from tests import tiny


def gradients(model: Decoder) -> dict[str, torch.Tensor]:
    """Gradients of a scalar, under the unfused names."""
    hidden = model.hidden(tiny.tokens(2, 12))
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    return dict(model.state_dict())


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
def test_outputs_and_gradients_are_those_of_the_separate_layers(bias: bool) -> None:
    # In float64, where nothing but a mistake can differ by more than 1e-10.
    apart, fused = (tiny.decoder(tiny.shape(qkv_bias=bias)).double() for _ in range(2))
    assert fuse(fused) == 4  # two layers, q-k-v and gate-up in each
    tokens = tiny.tokens(2, 12)
    torch.testing.assert_close(fused(tokens).logits, apart(tokens).logits, rtol=0, atol=1e-10)
    expected, found = gradients(apart), gradients(fused)
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-10)


@torch.inference_mode()
def stepped(model: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of the last token, decoded after the others."""
    cache, before = model.new_cache(len(tokens), 64), tokens.shape[1] - 1
    model.prefill(tokens[:, :before], cache)
    return model.decode(tokens[:, before:], torch.tensor([before]), cache)


def test_decode_steps_of_a_fused_model_are_unchanged() -> None:
    apart, fused = tiny.decoder(), tiny.decoder()
    fuse(fused)
    tokens = tiny.tokens(2, 9)
    torch.testing.assert_close(stepped(apart, tokens), stepped(fused, tokens), rtol=0, atol=1e-5)


def test_the_state_dict_keeps_its_names_and_values() -> None:
    apart, fused = tiny.decoder(), tiny.decoder()
    fuse(fused)
    expected, found = apart.state_dict(), fused.state_dict()
    assert list(found.keys() - expected.keys()) == []
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any("qkv_proj" in name for name, _ in fused.named_parameters())


def test_weights_load_into_a_fused_model_under_the_unfused_names() -> None:
    source, target = tiny.decoder(seed=1), tiny.decoder(seed=2)
    fuse(target)
    target.load_state_dict(source.state_dict(), strict=True)
    tokens = tiny.tokens(1, 8)
    torch.testing.assert_close(target(tokens).logits, source(tokens).logits, rtol=0, atol=1e-5)


def test_a_fused_model_saves_the_same_bytes_as_an_unfused_one(tmp_path: Path) -> None:
    apart, fused = tiny.decoder(), tiny.decoder()
    fuse(fused)
    assert save_checkpoint(apart, tmp_path / "apart") == save_checkpoint(fused, tmp_path / "fused")


SPARSE = {"heads": 16, "kv_heads": 1, "sparse": Sparse(block=4, selected=3, window=6)}


def test_parts_without_biases_are_fused_with_others_where_nothing_is_trained() -> None:
    """Gates with queries, keys and values; their biases are zeros that no file has."""
    apart, fused, trained = (tiny.decoder(tiny.shape(**SPARSE)) for _ in range(3))
    for gates in (layer.self_attn.g_proj for layer in apart.model.layers):
        assert gates.bias is None
    fused.requires_grad_(False)
    assert fuse(fused) == fuse(trained) == 4
    assert isinstance(fused.model.layers[0].self_attn.qkvg_proj, nn.Linear)
    assert not hasattr(fused.model.layers[0].self_attn, "g_proj")
    assert isinstance(trained.model.layers[0].self_attn.g_proj, nn.Linear)
    tokens = tiny.tokens(2, 19)
    torch.testing.assert_close(stepped(apart, tokens), stepped(fused, tokens), rtol=0, atol=1e-5)

    expected, kept = apart.state_dict(), fused.state_dict()
    assert expected.keys() == kept.keys()
    assert all(torch.equal(kept[name], expected[name]) for name in expected)
    other = tiny.decoder(tiny.shape(**SPARSE), seed=2)
    fused.load_state_dict(other.state_dict(), strict=True)
    torch.testing.assert_close(fused(tokens).logits, other(tokens).logits, rtol=0, atol=1e-5)
    lacking = {n: t for n, t in other.state_dict().items() if "layers.1.self_attn.k_proj" not in n}
    with pytest.raises(RuntimeError, match=r"Missing key.*layers\.1\.self_attn\.qkvg_proj"):
        fused.load_state_dict(lacking, strict=True)


def test_a_part_that_would_leave_the_others_unaligned_stays_alone() -> None:
    model = tiny.decoder(tiny.shape(**SPARSE | {"heads": 8}))  # 24 gates beside 160 rows
    model.requires_grad_(False)
    assert fuse(model) == 4
    attention = model.model.layers[0].self_attn
    assert isinstance(attention.g_proj, nn.Linear)
    assert isinstance(attention.qkv_proj, nn.Linear)


def test_fusing_twice_finds_nothing_left() -> None:
    model = tiny.decoder()
    assert fuse(model) == 4
    assert fuse(model) == 0


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_adapted_layers_are_left_alone_and_the_others_are_fused() -> None:
    build = tiny.build()
    apply(build, Lora(targets=("q_proj", "up_proj")))
    assert fuse(build.model) == 0
    build = tiny.build()
    apply(build, Lora(targets=("o_proj", "down_proj")))
    assert fuse(build.model) == 4


def test_quantized_layers_are_left_alone() -> None:
    build = tiny.build()
    apply(build, Int8WeightOnly())
    assert fuse(build.model) == 0


def test_a_group_of_which_only_part_learns_is_left_alone() -> None:
    model = tiny.decoder()
    model.requires_grad_(False)
    attention = model.model.layers[0].self_attn
    assert isinstance(attention, nn.Module)
    attention.q_proj.requires_grad_(True)
    assert fuse(model) == 3
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_proj.bias",
    ]


def test_frozen_groups_stay_frozen_and_trained_ones_trained() -> None:
    model = tiny.decoder()
    model.requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    assert fuse(model) == 4
    trained = {n.split(".")[2] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"1"}
