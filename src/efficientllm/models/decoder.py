"""Our decoder: one readable model for the controlled backbone and the Llama/Qwen families.

RMSNorm, an attention, an encoding of positions, gated feed-forward. Parameters carry
transformers' Qwen2 and Llama names, so adapters, checkpoints and other tools find what
they expect, and its logits equal theirs (tested). Blocks receive their cache as tensors,
never by layer index, so all layers share one compiled graph.

Legend: B batch, T new positions, S cache slots, C hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from efficientllm.catalog.shape import OWN_FAMILY, Shape
from efficientllm.cost import prefill_rows
from efficientllm.models.attention import Attention
from efficientllm.models.contract import Cost, declared_cost
from efficientllm.models.encoding import Encoding, encoding_of
from efficientllm.models.feedforward import FeedForward
from efficientllm.models.latent import LatentAttention
from efficientllm.models.position import Documents, Positions
from efficientllm.models.sparse import SparseAttention
from efficientllm.record import Unsupported

Cache = list[Any]
"""The static cache of every layer, each a tuple of tensors that its attention made."""

Mixer = Callable[[Shape], nn.Module]
"""What makes a layer's attention from a shape, where it is a user's own."""


class DecoderConfig(PreTrainedConfig):
    """A shape in the form that transformers saves beside weights."""

    model_type = OWN_FAMILY

    def __init__(self, shape: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.shape = shape or {}
        if shape:
            kwargs.setdefault("tie_word_embeddings", bool(shape["tied"]))
            self.vocab_size, self.hidden_size = shape["vocab"], shape["hidden"]
            self.num_hidden_layers = shape["layers"]
            self.num_attention_heads = shape["heads"]
        super().__init__(**kwargs)


class Block(nn.Module):
    """One decoder layer: attention, then feed-forward, each behind a norm and a residual."""

    def __init__(self, shape: Shape, mixer: Mixer | None) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, shape.norm_eps)
        self.self_attn: nn.Module = (mixer or attention_of)(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, shape.norm_eps)
        self.mlp = FeedForward(shape.hidden, shape.ffn)

    def forward(self, x: Tensor, positions: Positions, cache: Any = None) -> Tensor:
        """x [B, T, C] -> [B, T, C]."""
        x = x + self.self_attn(self.input_layernorm(x), positions, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


def attention_of(shape: Shape) -> nn.Module:
    """The attention that a shape names, for one layer."""
    if shape.custom:
        raise Unsupported(f"{shape.custom} is code of its own: it needs the file it came from")
    if shape.latent is not None:
        return LatentAttention(shape.hidden, shape.heads, shape.latent, eps=shape.norm_eps)
    parts: dict[str, Any] = {
        "bias": shape.qkv_bias,
        "qk_norm": shape.qk_norm,
        "eps": shape.norm_eps,
    }
    sizes = (shape.hidden, shape.heads, shape.kv_heads, shape.head_dim)
    if shape.sparse is not None:
        return SparseAttention(*sizes, shape.sparse, **parts)
    return Attention(*sizes, **parts, window=shape.sliding_window)


class Body(nn.Module):
    """Embeddings, layers, final norm (the part that transformers calls `model`)."""

    def __init__(self, shape: Shape, mixer: Mixer | None) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Block(shape, mixer) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, shape.norm_eps)
        self.position: Encoding = encoding_of(shape)

    def forward(
        self, tokens: Tensor, index: Tensor, positions: Positions, cache: Cache | None = None
    ) -> Tensor:
        """tokens [B, T] at positions `index` [T] -> hidden states [B, T, C]."""
        return self.norm(self.through(self.enter(tokens, index), positions, cache))

    def enter(self, tokens: Tensor, index: Tensor) -> Tensor:
        """What the first layer gets, [B, T, C]."""
        return self.position.embed(self.embed_tokens(tokens), index)

    def through(self, x: Tensor, positions: Positions, cache: Cache | None) -> Tensor:
        """x [B, T, C] through all layers."""
        for number, block in enumerate(self.layers):
            x = block(x, positions, None if cache is None else cache[number])
        return x


class Decoder(PreTrainedModel):
    """A causal language model with a static cache, as a transformers model."""

    config_class = DecoderConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _no_split_modules = ["Block"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: DecoderConfig, mixer: Mixer | None = None) -> None:
        super().__init__(config)
        self.shape = Shape.model_validate(config.shape)
        self.model = Body(self.shape, mixer)
        self.lm_head = nn.Linear(self.shape.hidden, self.shape.vocab, bias=False)
        self.post_init()

    @classmethod
    def from_shape(cls, shape: Shape, mixer: Mixer | None = None) -> Decoder:
        """The decoder of a shape, on whatever device is current (`torch.device`).

        `mixer` makes the attention of each layer where the shape's is a user's own.
        """
        fields = shape.model_dump(exclude={"sources", "note", "parameters", "active_parameters"})
        return cls(DecoderConfig(fields), mixer)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, Encoding):
            module.reset()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **_: Any) -> CausalLMOutput:
        """Logits [B, T, V] for tokens [B, T]; with labels also the mean next-token loss.

        Rows are whole and causal. Padding on the right changes nothing before it.
        """
        logits = self.lm_head(self.hidden(input_ids))
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100
            )
        return CausalLMOutput(loss=loss, logits=logits)

    def hidden(self, tokens: Tensor, documents: Documents | None = None) -> Tensor:
        """Final hidden states [B, T, C]; the loss multiplies them by the head in chunks."""
        self.refuse_beyond(tokens.shape[1])
        index = torch.arange(tokens.shape[1], device=tokens.device)
        if documents is not None:
            index = _restart(index, documents)
        return self.model(tokens, index, self._positions(index)._replace(documents=documents))

    def new_cache(self, batch: int, slots: int) -> Cache:
        """A static cache of `slots` positions for each of `batch` sequences."""
        table = self.get_input_embeddings().weight
        blocks = (block for block in self.model.layers if isinstance(block, Block))
        return [
            block.self_attn.new_cache(batch, slots, table.device, table.dtype)  # type: ignore[operator]
            for block in blocks
        ]

    def prefill(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Fill the cache with prompts [B, T]; logits of the last position, [B, V].

        Long prompts go through a few rows at a time: what a layer holds for all of them at
        once would take more memory than their cache.
        """
        rows = prefill_rows(*tokens.shape)
        logits = [
            self._prefill(tokens[first : first + rows], _rows_of(cache, first, first + rows))
            for first in range(0, tokens.shape[0], rows)
        ]
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def _prefill(self, tokens: Tensor, cache: Cache) -> Tensor:
        index = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.model(tokens, index, self._positions(index), cache)
        return self.lm_head(x[:, -1])

    def decode(self, tokens: Tensor, slot: Tensor, cache: Cache) -> Tensor:
        """One new token [B, 1] for each sequence at position `slot` [1]; logits [B, V]."""
        x, positions = self.enter(tokens, slot)
        # Not in `enter`: torch 2.11 cannot return a named tuple that was replaced in a graph.
        positions = positions._replace(slot=slot)
        return self.leave(self.model.through(x, positions, cache))

    def enter(self, tokens: Tensor, slot: Tensor) -> tuple[Tensor, Positions]:
        """What comes before the layers of a decode step."""
        return self.model.enter(tokens, slot), self._positions(slot)

    def leave(self, x: Tensor) -> Tensor:
        """What comes after them: x [B, 1, C] -> logits [B, V]."""
        return self.lm_head(self.model.norm(x[:, -1]))

    def attention_cost(self, new: int, seen: int) -> Cost | None:
        """What the attention of all layers declares for one sequence; None where it does not.

        What it declares wrongly is a finding of its examination, and ends no work.
        """
        blocks = [block for block in self.model.layers if isinstance(block, Block)]
        try:
            each = declared_cost(blocks[0].self_attn, new, seen)
        except Unsupported:
            return None
        return each and each.times(len(blocks))

    def _positions(self, index: Tensor) -> Positions:
        return self.model.position.positions(index, self.get_input_embeddings().weight.dtype)

    def refuse_beyond(self, length: int) -> None:
        """Raise Unsupported for a length that has positions without a learned vector."""
        most = self.shape.max_positions
        if self.shape.position == "learned" and length > most:
            raise Unsupported(
                f"{self.shape.name} has {most} learned positions and {length} are asked for; give"
                " model.position={kind: learned, max_positions: ...} or a shorter length"
            )


def _rows_of(cache: Cache, first: int, last: int) -> Cache:
    """The same cache, seen for some of its sequences."""
    return [getattr(type(layer), "_make", tuple)(t[first:last] for t in layer) for layer in cache]


def _restart(index: Tensor, documents: Documents) -> Tensor:
    """Positions that count from 0 in every document."""
    which = torch.bucketize(index, documents.offsets[1:].to(index.dtype), right=True)
    return index - documents.offsets[which].to(index.dtype)


def beyond_decoder(config: dict[str, Any]) -> str:
    """What a configuration of the Llama, Mistral or Qwen families asks for beyond this decoder."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    asked = {
        "quantized weights": "quantization_config" in config,
        "another activation": config.get("hidden_act", "silu") not in ("silu", "swish"),
        "biases in the feed-forward": bool(config.get("mlp_bias")),
        "a bias behind attention": bool(config.get("attention_bias"))
        and config.get("model_type") != "qwen2",
        "rotary scaling": rope.get("rope_type", rope.get("type", "default"))
        not in ("default", "llama3"),
        "partial rotary": (rope.get("partial_rotary_factor") or 1.0) != 1.0
        or (config.get("partial_rotary_factor") or 1.0) != 1.0,
        "sliding windows": bool(config.get("use_sliding_window")),
    }
    return ", ".join(name for name, present in asked.items() if present)


AutoConfig.register(DecoderConfig.model_type, DecoderConfig)
AutoModelForCausalLM.register(DecoderConfig, Decoder)
