"""Models with random weights, from a shape.

Shapes are built on the meta device and filled on the target, so an 8B model takes less than a
second on a GPU. Memory does not depend on the values, and quality is nothing that such a model
has, except to begin a pretraining with.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from efficientllm.catalog.shape import Shape
from efficientllm.models import huggingface
from efficientllm.models.decoder import Decoder, Mixer
from efficientllm.models.own import is_own
from efficientllm.record import Unsupported

INIT_STD = 0.02


def untrained(
    shape: Shape,
    implementation: str,
    device: torch.device,
    dtype: torch.dtype | None,
    seed: int,
    mixer: Mixer | None = None,
) -> PreTrainedModel:
    """A model of a shape with random weights (bf16 where `dtype` is None).

    `mixer` makes the attention of each layer where it is a user's own. Such a model is made
    where it will run: on the meta device whatever a class computes for itself would be lost.
    """
    ours = shape.gated_decoder if implementation == "auto" else implementation == "decoder"
    if ours and not shape.gated_decoder:
        raise Unsupported(f"{shape.name}: our decoder cannot build it; use implementation: auto")
    torch.manual_seed(seed)
    with torch.device("meta" if mixer is None else device):
        if ours:
            model: PreTrainedModel = Decoder.from_shape(shape, mixer)
        else:
            model = AutoModelForCausalLM.from_config(huggingface.config_of(shape))
    model = materialize(model, device, dtype or torch.bfloat16)
    _fill(model, seed)
    return model


def materialize(
    model: PreTrainedModel, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """Give parameters their final type, and memory at once where they have none yet."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    if any(parameter.is_meta for parameter in model.parameters()):
        model = model.to_empty(device=device)
    model.tie_weights()
    return model


@torch.no_grad()
def _fill(model: PreTrainedModel, seed: int) -> None:
    """Fill every parameter and buffer, the same on every run with the same seed and device.

    What a user's own class initialises itself stays as it is.
    """
    torch.manual_seed(seed)
    for module in model.modules():
        if is_own(module):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                parameter.normal_(std=INIT_STD)
            elif name == "weight":
                parameter.fill_(1.0)
            else:
                parameter.zero_()
    huggingface.reset_buffers(model)
