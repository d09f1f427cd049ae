"""Both arms behind one face: our decoder, and transformers' own models with a static cache."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from efficientllm.models.language_model import OurDecoder, Transformers, face
from efficientllm.record import Unsupported
from tests import tiny

SIZES = {
    "vocab_size": 272,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2))


def neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES))


def mixtral() -> PreTrainedModel:
    config = MixtralConfig(
        **SIZES, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
    )
    return MixtralForCausalLM(config)


def mistral(window: int) -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=window))


def ours() -> PreTrainedModel:
    return tiny.decoder()


@pytest.mark.parametrize("make", [ours, llama, neox, mixtral, lambda: mistral(64)])
def test_a_cache_serves_prompt_after_prompt_with_the_logits_of_whole_passes(make: object) -> None:
    assert callable(make)
    model = make().eval()
    tiny.randomize(model)
    behind, tokens = face(model), tiny.tokens(2, 50)
    with torch.inference_mode():
        cache = behind.new_cache(2, 64)
        for start in (0, 5):  # the second prompt finds the first one's leavings
            row = tokens[:, start:]
            whole = model(input_ids=row).logits
            found = [behind.prefill(row[:, :9], cache)]
            slot = torch.tensor([9])
            for i in range(9, row.shape[1]):
                found.append(behind.decode(row[:, i : i + 1], slot, cache))
                slot += 1
            torch.testing.assert_close(torch.stack(found, 1), whole[:, 8:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [ours, llama, neox])
def test_the_head_turns_hidden_states_into_logits(make: object) -> None:
    assert callable(make)
    model = make().eval()
    tiny.randomize(model)
    behind, tokens = face(model), tiny.tokens(2, 7)
    with torch.inference_mode():
        logits = behind.head()(behind.hidden(tokens))
        torch.testing.assert_close(logits, model(input_ids=tokens).logits, rtol=1e-5, atol=1e-5)


def test_cache_tensors_are_all_of_the_cache() -> None:
    # 2 layers x (k, v) x 3 rows x 2 heads x 64 slots x 16 x 4 bytes
    expected = 2 * 2 * 3 * 2 * 64 * 16 * 4
    for model in (ours(), llama().eval()):
        behind = face(model)
        cache = behind.new_cache(3, 64)
        with torch.inference_mode():
            behind.prefill(tiny.tokens(3, 5), cache)
        held = sum(t.numel() * t.element_size() for t in behind.cache_tensors(cache))
        assert held == expected


def test_only_our_decoder_keeps_packed_documents_apart() -> None:
    assert isinstance(face(ours()), OurDecoder)
    assert isinstance(face(llama()), Transformers)
    assert face(ours()).packs_documents
    assert not face(llama()).packs_documents


def mamba() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(vocab_size=272, hidden_size=64, num_hidden_layers=1))


def mamba2() -> PreTrainedModel:
    config = Mamba2Config(
        vocab_size=272,
        hidden_size=64,
        num_hidden_layers=1,
        num_heads=8,
        head_dim=16,
        state_size=16,
        n_groups=1,
    )
    return Mamba2ForCausalLM(config)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (mamba, "MambaForCausalLM has no static cache"),
        (mamba2, "Mamba2ForCausalLM: the LinearAttentionLayer .* cannot start over"),
        (lambda: mistral(48), "StaticSlidingWindowLayer .* no generation here at 64 positions"),
    ],
    ids=["mamba", "mamba2", "a window shorter than the sequence"],
)
def test_models_whose_cache_cannot_start_over_say_so(make: object, reason: str) -> None:
    assert callable(make)
    with pytest.raises(Unsupported, match=reason):
        face(make()).new_cache(1, 64)
