"""A build: the model on its way to being measured, and what techniques did to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from efficientllm.catalog.shape import Shape
from efficientllm.device import tensor_bytes
from efficientllm.record import Examined, Reach

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass
class Build:
    """A model that techniques edit in place.

    `adapted` is the peft wrapper once adapters are attached; `model` stays the model
    itself, whose linear layers the adapters have replaced, so everything runs it alike.
    """

    model: PreTrainedModel
    shape: Shape | None
    device: torch.device
    weights_random: bool
    tokenizer_folder: str = ""
    adapted: Any = None
    attention: Examined | None = None
    reach: list[Reach] = field(default_factory=list)
    resolved: dict[str, Any] = field(default_factory=dict)


def kind_of(name: str) -> str:
    """The kind of module that a parameter belongs to, by its name."""
    for part, kind in (
        ("lora_", "adapter"),
        ("model.position.", "position"),
        ("embed", "embedding"),
        ("lm_head", "head"),
        ("norm", "norm"),
        ("attn", "attention"),
        ("attention", "attention"),
        ("mixer", "mixer"),
        ("mlp", "feedforward"),
        ("expert", "feedforward"),
        ("feed_forward", "feedforward"),
    ):
        if part in name:
            return kind
    return "other"


def bytes_by_kind(model: nn.Module) -> dict[str, int]:
    """Bytes of all parameters by kind of module; a tied table counts once, as embedding."""
    return _summed((kind_of(name), tensor_bytes(p)) for name, p in model.named_parameters())


def dtypes_of(model: nn.Module) -> dict[str, int]:
    """How many parameters are held in which type; quantized ones by their layout's name."""
    return _summed((_type_name(p), p.numel()) for p in model.parameters())


def _type_name(parameter: Tensor) -> str:
    data = parameter.data if type(parameter) is nn.Parameter else parameter
    if hasattr(data, "__tensor_flatten__"):
        return type(data).__name__
    return DTYPE_NAMES.get(data.dtype, str(data.dtype).removeprefix("torch."))


def _summed(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for key, value in pairs:
        total[key] = total.get(key, 0) + value
    return dict(sorted(total.items()))


def touched(names: Iterable[str], model: nn.Module) -> dict[str, int]:
    """Parameters, by kind, of the named ones."""
    chosen = set(names)
    return _summed((kind_of(n), p.numel()) for n, p in model.named_parameters() if n in chosen)
