"""Post-training quantization through torchao, and what it really reached.

"Quantized" says little by itself: on an H200 the int4 product of this file is 1.6 times
as fast as bf16 at batch 1 and 24 times slower at batch 1,024. So the back-end is in the
record, and so is the share of the parameters that was reached: `quantize_` passes over
what is not a linear layer (expert tensors, for one) without a word.

The output head is left alone, as transformers and vLLM do by default.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from efficientllm.models.fuse import ALIGNED
from efficientllm.record import Reach, Unsupported
from efficientllm.spec.technique import (
    Int4WeightOnly,
    Int8Dynamic,
    Int8WeightOnly,
    Techniques,
)
from efficientllm.techniques.build import Build, bytes_by_kind, kind_of

Quantization = Int8WeightOnly | Int8Dynamic | Int4WeightOnly

INT8_ROWS = 16
"""Rows that are still too few for `torch._int_mm` on CUDA."""


def apply_quantization(build: Build, technique: Quantization) -> Reach:
    """Replace the weights of linear layers; bf16 is what they are multiplied in."""
    from torchao.quantization import quantize_

    model = build.model
    if build.adapted is not None:
        raise Unsupported(f"{technique.kind} would quantize the adapters: {technique.kind}+lora")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    before = sum(bytes_by_kind(model).values())
    config, backend = _config(technique, build.device)
    reached: dict[str, int] = {}
    head = model.get_output_embeddings()

    def chosen(module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Linear) or module is head or not _fits(module, technique):
            return False
        reached[f"{name}.weight"] = module.weight.numel()
        return True

    try:
        quantize_(model, config, filter_fn=chosen)
    except (NotImplementedError, ImportError, AssertionError, ValueError) as error:
        raise Unsupported(
            f"{technique.kind} ({backend}) on {build.device.type}: {error}"
        ) from error
    if not reached:
        raise Unsupported(f"{technique.kind}: no linear layer of this model could be quantized")
    build.resolved[f"{technique.kind}_backend"] = backend
    by_kind: dict[str, int] = {}
    for name, count in reached.items():
        by_kind[kind_of(name)] = by_kind.get(kind_of(name), 0) + count
    return Reach(
        technique=technique.kind,
        parameters=sum(by_kind.values()),
        by_kind=by_kind,
        bytes_before=before,
        bytes_after=sum(bytes_by_kind(model).values()),
    )


def refuse_few_rows(techniques: Techniques, device: torch.device, batch: int) -> None:
    """Raise Unsupported where a product cannot take as few rows as decode gives it.

    cuBLAS's int8 product (`torch._int_mm`) takes more than 16 rows.
    """
    dynamic = any(isinstance(technique, Int8Dynamic) for technique in techniques)
    if dynamic and device.type == "cuda" and batch <= INT8_ROWS:
        raise Unsupported(
            f"int8-dynamic decodes with more than {INT8_ROWS} sequences on CUDA, and this point"
            f" has {batch}; use int8 (weight-only) there"
        )


def _fits(linear: nn.Linear, technique: Quantization) -> bool:
    if isinstance(technique, Int4WeightOnly):
        # tinygemm: groups divide the inputs, tiles divide the outputs.
        groups = linear.in_features % technique.group_size == 0
        return groups and linear.out_features % ALIGNED == 0
    return True


def _config(technique: Quantization, device: torch.device) -> tuple[Any, str]:
    """The torchao configuration, and the name of what multiplies."""
    from torchao import quantization as ao

    # torchao would change the compiler's settings for the whole process; a bf16 row beside
    # this one is compiled without them, and so is this.
    same = {"set_inductor_config": False}
    match technique:
        case Int8WeightOnly():
            return ao.Int8WeightOnlyConfig(**same), "torchao"
        case Int8Dynamic():
            return ao.Int8DynamicActivationInt8WeightConfig(**same), "torchao"
        case Int4WeightOnly(group_size=group) if device.type == "cpu":
            from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

            config = PrototypeInt4WeightOnlyConfig(group_size=group, **same)
            return config, "tinygemm (CPU layout)"
        case Int4WeightOnly(group_size=group):
            packed = "tile_packed_to_4d"
            config = ao.Int4WeightOnlyConfig(group_size=group, int4_packing_format=packed, **same)
            return config, f"tinygemm ({packed})"
