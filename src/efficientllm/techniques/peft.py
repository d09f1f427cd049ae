"""Which parameters are trained: all, the last layers, or adapters beside frozen ones."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.torchao import TorchaoLoraLinear
from torch import nn

from efficientllm.record import Reach, Unsupported
from efficientllm.spec.technique import Freeze, Full, Lora
from efficientllm.techniques.build import Build, bytes_by_kind, touched


def apply_full(build: Build, technique: Full) -> Reach:
    """Every parameter learns."""
    for parameter in build.model.parameters():
        parameter.requires_grad_(True)
    return _reach(build, technique.kind, sum(bytes_by_kind(build.model).values()))


def apply_freeze(build: Build, technique: Freeze) -> Reach:
    """Only the last decoder layers learn (the `freeze` recipe of LLaMA-Factory)."""
    layers = decoder_layers(build.model)
    if technique.last_layers > len(layers):
        raise Unsupported(
            f"freeze: last_layers {technique.last_layers} of a model with {len(layers)} layers"
        )
    build.model.requires_grad_(False)
    for layer in list(layers)[-technique.last_layers :]:
        layer.requires_grad_(True)
    return _reach(build, technique.kind, sum(bytes_by_kind(build.model).values()))


def apply_lora(build: Build, technique: Lora) -> Reach:
    """Attach adapters through peft; the model itself is frozen."""
    _refuse_without_gradient(build.model)
    before = sum(bytes_by_kind(build.model).values())
    targets: Any = list(technique.targets)
    config = LoraConfig(
        r=technique.r,
        lora_alpha=technique.alpha,
        lora_dropout=technique.dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
    )
    try:
        with warnings.catch_warnings():
            # peft warns that it cannot merge into torchao's weights; `merge_adapters` can.
            warnings.simplefilter("ignore")
            build.adapted = get_peft_model(build.model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise Unsupported(f"lora: {error}") from error
    return _reach(build, technique.kind, before)


def _refuse_without_gradient(model: nn.Module) -> None:
    """Adapters below a frozen layer learn through it; not every quantized product lets them.

    Tried on one layer, because some products raise and others stop the gradient silently.
    """
    quantized = next((m for m in model.modules() if _is_quantized(m)), None)
    if quantized is None:
        return
    assert isinstance(quantized, nn.Linear)
    x = torch.ones(1, quantized.in_features, dtype=torch.bfloat16, device=quantized.weight.device)
    reason = "its product drops the gradient"
    try:
        out = quantized(x.requires_grad_()).sum()
        if out.requires_grad and torch.autograd.grad(out, x, allow_unused=True)[0] is not None:
            return
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
    name = type(quantized.weight.data).__name__
    raise Unsupported(f"lora: no gradient passes through {name} weights here ({reason})")


def _is_quantized(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and hasattr(module.weight, "__tensor_flatten__")


def merge_adapters(build: Build) -> None:
    """Fold adapters into the weights they stand beside, for saving as a plain checkpoint.

    Quantized weights are dequantized for it: the values that the adapters learned beside.
    """
    if build.adapted is None:
        return
    for module in build.model.modules():
        if isinstance(module, nn.Linear) and _is_quantized(module):
            module.weight = nn.Parameter(module.weight.dequantize(), requires_grad=False)
    for parent in list(build.model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, TorchaoLoraLinear):
                linear: Any = child.get_base_layer()
                for adapter in child.active_adapters:
                    linear.weight.data += child.get_delta_weight(adapter)
                setattr(parent, name, linear)
    build.model = build.adapted.merge_and_unload()
    build.adapted = None


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The stack of decoder layers: the longest list of modules, however it is called."""
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    if not stacks:
        raise Unsupported(f"{type(model).__name__} has no list of decoder layers")
    return max(stacks, key=len)


def _reach(build: Build, kind: str, before: int) -> Reach:
    trained = [n for n, p in build.model.named_parameters() if p.requires_grad]
    by_kind = touched(trained, build.model)
    return Reach(
        technique=kind,
        parameters=sum(by_kind.values()),
        by_kind=by_kind,
        bytes_before=before,
        bytes_after=sum(bytes_by_kind(build.model).values()),
    )
