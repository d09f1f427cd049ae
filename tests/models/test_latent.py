"""Latent attention against transformers' DeepSeek-V3 layer, and its absorbed form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RotaryEmbedding,
)

from efficientllm.catalog.shape import Latent
from efficientllm.models import vector
from efficientllm.models.encoding import Rotary
from efficientllm.models.fuse import fuse
from efficientllm.models.latent import LatentAttention
from efficientllm.models.position import Positions
from tests import tiny

HIDDEN, HEADS, ROPE = 64, 4, 8


def sizes(q_rank: int) -> Latent:
    return Latent(q_rank=q_rank, kv_rank=24, qk_nope_dim=12, qk_rope_dim=ROPE, v_dim=20)


def pair(q_rank: int) -> tuple[LatentAttention, DeepseekV3Attention, DeepseekV3Config]:
    config = DeepseekV3Config(
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        q_lora_rank=q_rank or None,
        kv_lora_rank=24,
        qk_nope_head_dim=12,
        qk_rope_head_dim=ROPE,
        v_head_dim=20,
        rope_interleave=False,
        rms_norm_eps=1e-6,
        attn_implementation="eager",
    )
    theirs = DeepseekV3Attention(config, layer_idx=0)
    tiny.randomize(theirs)
    ours = LatentAttention(HIDDEN, HEADS, sizes(q_rank), eps=1e-6)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs, config


def at(*index: int, slot: int | None = None) -> Positions:
    cos, sin = Rotary(ROPE, 10_000.0, None).angles(torch.tensor(index), torch.float32)
    return Positions(cos, sin, slot=None if slot is None else torch.tensor([slot]))


@pytest.mark.parametrize("q_rank", [0, 16], ids=["full queries", "compressed queries"])
def test_the_layer_is_deepseek_v3_s(q_rank: int) -> None:
    ours, theirs, config = pair(q_rank)
    x = torch.randn(2, 10, HIDDEN, generator=torch.Generator().manual_seed(1))
    angles = DeepseekV3RotaryEmbedding(config)(x, torch.arange(10)[None])
    causal = torch.full((10, 10), float("-inf")).triu(1)[None, None]
    expected = theirs(x, position_embeddings=angles, attention_mask=causal)[0]
    found = ours(x, at(*range(10)))
    assert found.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("q_rank", [0, 16], ids=["full queries", "compressed queries"])
def test_decoding_over_latents_is_attention_over_written_out_keys(q_rank: int) -> None:
    layer, _, _ = pair(q_rank)
    x = torch.randn(3, 12, HIDDEN, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        whole = layer(x, at(*range(12)))
        cache = layer.new_cache(3, 64, x.device, x.dtype)
        first = layer(x[:, :7], at(*range(7)), cache)
        rest = [layer(x[:, i : i + 1], at(i, slot=i), cache) for i in range(7, 12)]
    torch.testing.assert_close(torch.cat([first, *rest], 1), whole, rtol=1e-4, atol=1e-5)


def test_one_sequence_takes_the_kernels_for_vectors_where_the_layer_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, ...]] = []

    def each(x: Tensor, weight: Tensor) -> Tensor:
        asked.append(tuple(weight.shape))
        return torch.einsum("bhtk,hnk->bhtn", x, weight)

    monkeypatch.setattr(vector, "fits", lambda _: True)
    monkeypatch.setattr(vector, "_multiply", F.linear)
    monkeypatch.setattr(vector, "_multiply_each", each)
    layer, _, _ = pair(0)
    found = []
    for taken in (False, True):
        if taken:
            vector.take_vectors(layer.kv_b_proj)
        for batch in (1, 2):
            x = torch.randn(batch, 3, HIDDEN, generator=torch.Generator().manual_seed(2))
            cache = layer.new_cache(batch, 64, x.device, x.dtype)
            with torch.inference_mode():
                layer(x[:, :2], at(0, 1), cache)
                found.append(layer(x[:, 2:], at(2, slot=2), cache))
        assert asked == ([(HEADS, 24, 12), (HEADS, 20, 24)] if taken else [])
    torch.testing.assert_close(found[2], found[0])
    torch.testing.assert_close(found[3], found[1])


def test_the_cache_holds_one_latent_and_one_key_a_token_whatever_the_heads() -> None:
    layer, _, _ = pair(0)
    cache = layer.new_cache(2, 64, torch.device("cpu"), torch.bfloat16)
    assert [tuple(t.shape) for t in cache] == [(2, 1, 64, 24 + ROPE)]


@pytest.mark.parametrize("q_rank", [0, 16])
def test_fusing_the_first_products_changes_nothing(q_rank: int) -> None:
    layer, _, _ = pair(q_rank)
    x = torch.randn(1, 9, HIDDEN)
    before, names = layer(x, at(*range(9))), set(layer.state_dict())
    assert fuse(layer) == (q_rank == 0)
    torch.testing.assert_close(layer(x, at(*range(9))), before)
    assert set(layer.state_dict()) == names
