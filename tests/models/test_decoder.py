"""Our decoder is the published one: transformers is the oracle, on the same random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from efficientllm.catalog.shape import RopeScaling, Shape
from efficientllm.models.checkpoint import save_checkpoint
from efficientllm.models.decoder import Decoder, DecoderConfig
from efficientllm.models.position import Documents
from tests import tiny

KV_HEADS = {"mha": 4, "gqa": 2, "mqa": 1}
SIZES = {
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def assert_same_logits(ours: Decoder, theirs: PreTrainedModel, length: int = 40) -> None:
    tokens = tiny.tokens(2, length)
    with torch.inference_mode():
        a, b = ours(tokens).logits, theirs.eval()(input_ids=tokens).logits
    assert b.std() > 0.1, "an oracle that says nothing"
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def with_weights_of(theirs: PreTrainedModel, shape: Shape) -> Decoder:
    ours = Decoder.from_shape(shape).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kv_heads", KV_HEADS.values(), ids=KV_HEADS.keys())
def test_logits_equal_those_of_qwen2(kv_heads: int, tied: bool) -> None:
    theirs = Qwen2ForCausalLM(
        Qwen2Config(**SIZES, num_key_value_heads=kv_heads, tie_word_embeddings=tied)
    )
    tiny.randomize(theirs)
    ours = with_weights_of(theirs, tiny.shape(kv_heads=kv_heads, tied=tied))
    assert_same_logits(ours, theirs)


def test_logits_equal_those_of_llama_with_its_stretched_rotary_positions() -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    theirs = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, rope_parameters=rope))
    tiny.randomize(theirs)
    scaling = RopeScaling(factor=8.0, original_max_positions=16)
    plain = tiny.shape(tied=False, qkv_bias=False, rope_theta=500_000.0)
    ours = with_weights_of(theirs, plain.model_copy(update={"rope_scaling": scaling}))
    assert_same_logits(ours, theirs)
    unscaled = with_weights_of(theirs, plain)
    tokens = tiny.tokens(1, 40)
    assert (unscaled(tokens).logits - ours(tokens).logits).abs().max() > 0.01


def test_logits_equal_those_of_qwen3_with_norms_on_queries_and_keys() -> None:
    config = Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=32, tie_word_embeddings=True)
    theirs = Qwen3ForCausalLM(config)
    tiny.randomize(theirs)
    ours = with_weights_of(theirs, tiny.shape(qkv_bias=False, qk_norm=True, head_dim=32))
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize("kv_heads", KV_HEADS.values(), ids=KV_HEADS.keys())
def test_a_saved_backbone_is_a_plain_qwen2_checkpoint(kv_heads: int, tmp_path: Path) -> None:
    ours = tiny.decoder(tiny.shape(kv_heads=kv_heads))
    save_checkpoint(ours, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs) is Qwen2ForCausalLM
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize(
    ("parts", "family"),
    [
        ({"qkv_bias": False, "tied": False}, LlamaForCausalLM),
        (
            {
                "qkv_bias": False,
                "rope_theta": 5e5,
                "rope_scaling": {"factor": 8.0, "original_max_positions": 16},
            },
            LlamaForCausalLM,
        ),
        ({"qkv_bias": False, "qk_norm": True, "head_dim": 32}, Qwen3ForCausalLM),
    ],
    ids=["llama", "llama3", "qwen3"],
)
def test_a_saved_decoder_names_the_published_family_that_has_its_parts(
    parts: dict[str, object], family: type[PreTrainedModel], tmp_path: Path
) -> None:
    ours = tiny.decoder(tiny.shape(**parts))
    save_checkpoint(ours, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs) is family
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize("kv_heads", KV_HEADS.values(), ids=KV_HEADS.keys())
def test_prefill_and_decode_steps_equal_the_whole_forward_pass(kv_heads: int) -> None:
    model, tokens = tiny.decoder(tiny.shape(kv_heads=kv_heads)), tiny.tokens(3, 30)
    with torch.inference_mode():
        whole = model(tokens).logits
        cache = model.new_cache(3, 64)
        for layer in cache:  # what an earlier request left there must not be seen
            layer.k.fill_(7.0)
            layer.v.fill_(7.0)
        found = [model.prefill(tokens[:, :11], cache)]
        slot = torch.tensor([11])
        for i in range(11, 30):
            found.append(model.decode(tokens[:, i : i + 1], slot, cache))
            slot += 1
    # float32 sums in another order: by how much hangs on the processor's kernels
    torch.testing.assert_close(torch.stack(found, 1), whole[:, 10:], rtol=1e-4, atol=5e-5)


def packed(*lengths: int) -> Documents:
    offsets = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).to(torch.int32)
    padded = torch.cat((offsets, offsets[-1:].expand(3)))
    return Documents(padded, max(lengths), lengths)


def test_packed_documents_equal_separate_ones_in_outputs_and_gradients() -> None:
    model, row = tiny.decoder().train(), tiny.tokens(1, 24)
    weighting = torch.randn(24, 64, generator=torch.Generator().manual_seed(1))

    together = model.hidden(row, packed(7, 1, 16))[0]
    (together * weighting).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    apart = torch.cat([model.hidden(part)[0] for part in row.split((7, 1, 16), dim=1)])
    (apart * weighting).sum().backward()

    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    assert len(gradients) == 26  # embedding and norm; a layer has 7 weights, 3 biases, 2 norms
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-4)


def test_a_later_token_changes_nothing_before_it() -> None:
    model, tokens = tiny.decoder(), tiny.tokens(1, 20)
    other = tokens.clone()
    other[0, 12] += 1
    before, after = model(tokens).logits, model(other).logits
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])


def test_the_loss_with_labels_is_that_of_transformers() -> None:
    theirs = Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True))
    tiny.randomize(theirs)
    ours, tokens = with_weights_of(theirs, tiny.shape()), tiny.tokens(2, 16)
    labels = tokens.clone()
    labels[0, :5] = -100
    expected = theirs(input_ids=tokens, labels=labels).loss
    torch.testing.assert_close(ours(tokens, labels=labels).loss, expected)


def test_the_auto_classes_bring_our_own_configuration_back(tmp_path: Path) -> None:
    ours = tiny.decoder()
    ours.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is Decoder
    assert type(again.config) is DecoderConfig
    assert again.shape == ours.shape
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert_same_logits(ours, again)


def test_a_model_from_the_auto_classes_starts_from_usable_weights() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny.decoder().config).eval()
    logits = model(tiny.tokens(1, 8)).logits
    assert torch.isfinite(logits).all()
    assert logits.std() > 0
