"""One face for every model: all that workloads ask of it.

Our decoder has these methods itself; a model of transformers is wrapped. Its static
cache keeps its length in a tensor per layer, so a decode step can be compiled once and
captured.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from efficientllm.models.contract import Cost
from efficientllm.models.decoder import Decoder
from efficientllm.models.position import Documents
from efficientllm.record import Unsupported


class LanguageModel(Protocol):
    """What workloads ask of a model. Shapes: B sequences, T positions, V vocabulary."""

    packs_documents: bool

    def hidden(self, tokens: Tensor, documents: Documents | None = None) -> Tensor:
        """Final hidden states [B, T, C] of tokens [B, T]."""

    def head(self) -> nn.Linear:
        """The product that turns hidden states into logits."""

    def refuse_beyond(self, length: int) -> None:
        """Raise Unsupported where there are no positions for so many tokens."""

    def new_cache(self, batch: int, slots: int) -> Any:
        """An empty static cache; slots that are never filled need no position."""

    def cache_tensors(self, cache: Any) -> list[Tensor]:
        """Every tensor of a cache, for counting bytes."""

    def prefill(self, tokens: Tensor, cache: Any) -> Tensor:
        """Fill a cache from prompts [B, T]; logits of the last position [B, V]."""

    def decode(self, tokens: Tensor, slot: Tensor, cache: Any) -> Tensor:
        """One new token [B, 1] at a cache slot [1]; logits [B, V]."""

    def attention_cost(self, new: int, seen: int) -> Cost | None:
        """What a user's own attention states for one sequence, all layers; else None."""


class OurDecoder:
    """Our decoder behind the face."""

    def __init__(self, model: Decoder) -> None:
        self.model = model
        # A user's own attention is not asked to keep documents apart.
        self.packs_documents = not model.shape.custom
        self.attention_cost = model.attention_cost
        self.hidden, self.new_cache = model.hidden, model.new_cache
        self.refuse_beyond = model.refuse_beyond
        self.prefill, self.decode = model.prefill, model.decode

    def head(self) -> nn.Linear:
        return self.model.lm_head

    def cache_tensors(self, cache: Any) -> list[Tensor]:
        return [tensor for layer in cache for tensor in layer]


class Transformers:
    """A model of transformers behind the face."""

    packs_documents = False

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def hidden(self, tokens: Tensor, documents: Documents | None = None) -> Tensor:
        assert documents is None, "transformers' models get one document a row"
        return self.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state

    def head(self) -> nn.Linear:
        head = self.model.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        return head

    def refuse_beyond(self, length: int) -> None:
        """Nothing: transformers' models know themselves."""

    def new_cache(self, batch: int, slots: int) -> Any:
        name = type(self.model).__name__
        if not getattr(self.model, "_can_compile_fullgraph", False):
            raise Unsupported(f"{name} has no static cache in transformers: no generation here")
        cache = StaticCache(config=self.model.config, max_cache_len=slots)
        for index, layer in enumerate(cache.layers):
            # A window that never fills is plain attention. Its own layer counts in Python, and
            # that count cannot be set back for the next prompt.
            if isinstance(layer, StaticSlidingWindowLayer) and layer.max_cache_len == slots:
                cache.layers[index] = StaticLayer(slots)
        other = next((type(c).__name__ for c in cache.layers if type(c) is not StaticLayer), None)
        if other is not None:
            raise Unsupported(
                f"{name}: the {other} of transformers cannot start over: no generation here at"
                f" {slots} positions"
            )
        return cache

    def cache_tensors(self, cache: Any) -> list[Tensor]:
        return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]

    def prefill(self, tokens: Tensor, cache: Any) -> Tensor:
        _set_length(cache, 0)
        return self._logits(tokens, cache)

    def decode(self, tokens: Tensor, slot: Tensor, cache: Any) -> Tensor:
        _set_length(cache, slot)
        return self._logits(tokens, cache)

    def attention_cost(self, new: int, seen: int) -> None:
        return None

    def _logits(self, tokens: Tensor, cache: Any) -> Tensor:
        out = self.model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1]


def _set_length(cache: Any, length: Tensor | int) -> None:
    for layer in cache.layers:
        if isinstance(length, int):
            layer.cumulative_length.fill_(length)
        else:
            layer.cumulative_length.copy_(length.squeeze(0))


def face(model: PreTrainedModel) -> LanguageModel:
    """The face of a model, ours or transformers'."""
    return OurDecoder(model) if isinstance(model, Decoder) else Transformers(model)
