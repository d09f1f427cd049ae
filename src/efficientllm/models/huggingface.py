"""transformers' own configurations for the shapes of the catalog."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import (
    GPTNeoXConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.deepseek_v3 import DeepseekV3Config

from efficientllm.catalog.shape import Shape
from efficientllm.models.encoding import Encoding


def reset_buffers(model: PreTrainedModel) -> None:
    """Compute again what a model keeps in buffers and `to_empty` has left undefined."""
    for module in model.modules():
        if isinstance(module, Encoding):
            module.reset()
        elif hasattr(module, "inv_freq") and hasattr(module, "rope_type"):
            _reset_rotary(module)
        elif "e_score_correction_bias" in dict(module.named_buffers(recurse=False)):
            module.e_score_correction_bias.zero_()


def _reset_rotary(module: Any) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if module.rope_type == "default":
        compute = type(module).compute_default_rope_parameters
    else:
        compute = ROPE_INIT_FUNCTIONS[module.rope_type]
    frequencies, module.attention_scaling = compute(module.config)
    device = module.inv_freq.device
    module.inv_freq.data = frequencies.to(device)
    if isinstance(getattr(module, "original_inv_freq", None), Tensor):
        module.original_inv_freq.data = frequencies.clone().to(device)


def published_config(shape: Shape) -> PreTrainedConfig:
    """The configuration of the published family that has a dense shape's parts."""
    config, architecture = (
        (Qwen3Config, "Qwen3ForCausalLM")
        if shape.qk_norm
        else (Qwen2Config, "Qwen2ForCausalLM")
        if shape.qkv_bias
        else (LlamaConfig, "LlamaForCausalLM")
    )
    return config(**_dense(shape), architectures=[architecture])


def config_of(shape: Shape) -> PreTrainedConfig:
    """transformers' own configuration of a catalog shape."""
    match shape.arch:
        case "dense" if shape.family == "Phi":
            return Phi3Config(
                **_dense(shape) | {"pad_token_id": None}, partial_rotary_factor=shape.rotary_share
            )
        case "dense" if shape.sliding_window is not None:
            return MistralConfig(**_dense(shape), sliding_window=shape.sliding_window)
        case "dense":
            return published_config(shape)
        case "moe":
            return _mixture(shape)
        case "moe-mla":
            return _deepseek(shape)
        case "gpt-neox":
            return _neox(shape)
        case "mamba1" | "mamba2":
            return _mamba(shape)


def _rope(shape: Shape) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_theta}
    if shape.rotary_share != 1.0:
        rope["partial_rotary_factor"] = shape.rotary_share
    if shape.rope_scaling is not None:
        scaling = shape.rope_scaling
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    return rope


def _dense(shape: Shape) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_eps,
        "tie_word_embeddings": shape.tied,
        "rope_parameters": _rope(shape),
    }


def _mixture(shape: Shape) -> PreTrainedConfig:
    experts = shape.experts
    assert experts is not None
    if not shape.qk_norm:
        return MixtralConfig(
            **_dense(shape) | {"intermediate_size": experts.ffn},
            num_local_experts=experts.count,
            num_experts_per_tok=experts.per_token,
        )
    return Qwen3MoeConfig(
        **_dense(shape),
        moe_intermediate_size=experts.ffn,
        num_experts=experts.count,
        num_experts_per_tok=experts.per_token,
        norm_topk_prob=True,
    )


def _deepseek(shape: Shape) -> PreTrainedConfig:
    experts, latent = shape.experts, shape.latent
    assert experts is not None
    assert latent is not None
    fields = _dense(shape)
    del fields["head_dim"]
    return DeepseekV3Config(
        **fields,
        moe_intermediate_size=experts.ffn,
        n_routed_experts=experts.count,
        num_experts_per_tok=experts.per_token,
        n_shared_experts=experts.shared,
        first_k_dense_replace=experts.first_dense_layers,
        q_lora_rank=latent.q_rank,
        kv_lora_rank=latent.kv_rank,
        qk_nope_head_dim=latent.qk_nope_dim,
        qk_rope_head_dim=latent.qk_rope_dim,
        v_head_dim=latent.v_dim,
    )


def _neox(shape: Shape) -> PreTrainedConfig:
    return GPTNeoXConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=shape.tied,
        rope_parameters=_rope(shape),
    )


def _mamba(shape: Shape) -> PreTrainedConfig:
    state = shape.state
    assert state is not None
    common = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "state_size": state.state,
        "conv_kernel": state.conv,
        "expand": state.inner // shape.hidden,
        "tie_word_embeddings": shape.tied,
    }
    if shape.arch == "mamba1":
        return MambaConfig(**common, time_step_rank=state.dt_rank)
    return Mamba2Config(
        **common, num_heads=shape.heads, head_dim=shape.head_dim, n_groups=state.groups
    )
