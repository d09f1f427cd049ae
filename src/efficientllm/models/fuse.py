"""Fusing: products that read the same input become one (q, k, v; gate, up). A step, not a shape.

Done in `prepare`, after adapters are attached or merged and before weight-only
quantization. A module says in `FUSED` what of it may be fused, under which name. Exact,
because rows of a product are independent. The state dict keeps the
unfused names both ways, so checkpoints never know. Modules that an adapter or a
quantizer has replaced are left alone, and the record says how many were fused.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn


def fuse(model: nn.Module) -> int:
    """Fuse every plain group of linear layers in place; how many groups were fused."""
    fused = 0
    for module in model.modules():
        for name, parts in getattr(module, "FUSED", {}).items():
            fused += _fuse_group(module, parts, name)
    return fused


def _fuse_group(module: nn.Module, names: tuple[str, ...], fused_name: str) -> bool:
    parts = {name: getattr(module, name, None) for name in names}
    plain = {
        n: p for n, p in parts.items() if type(p) is nn.Linear and type(p.weight) is nn.Parameter
    }
    if len(plain) != len(names) or len({p.weight.requires_grad for p in plain.values()}) != 1:
        return False
    fused = _joined(list(plain.values()))
    for name in names:
        delattr(module, name)
    setattr(module, fused_name, fused)
    sizes = {name: linear.out_features for name, linear in plain.items()}
    module.fused_sizes = tuple(sizes.values())  # type: ignore[assignment]
    module.register_state_dict_post_hook(partial(_unfuse_on_save, fused_name, sizes))
    module.register_load_state_dict_pre_hook(partial(_fuse_on_load, fused_name, sizes))
    return True


def _joined(parts: list[nn.Linear]) -> nn.Linear:
    """One linear layer whose rows are those of all parts, in order."""
    first, trained = parts[0], parts[0].weight.requires_grad
    rows = sum(part.out_features for part in parts)
    with torch.device("meta"):
        joined = nn.Linear(first.in_features, rows, bias=first.bias is not None)
    joined.weight = nn.Parameter(torch.cat([part.weight.data for part in parts]), trained)
    if first.bias is not None:
        joined.bias = nn.Parameter(torch.cat([part.bias.data for part in parts]), trained)
    return joined


def _unfuse_on_save(
    name: str,
    sizes: dict[str, int],
    module: nn.Module,
    state: dict[str, Any],
    prefix: str,
    _: Any,
) -> None:
    for kind in ("weight", "bias"):
        whole = state.get(f"{prefix}{name}.{kind}")
        if whole is not None and not hasattr(whole, "__tensor_flatten__"):  # not quantized since
            del state[f"{prefix}{name}.{kind}"]
            for part, rows in zip(sizes, whole.split(tuple(sizes.values())), strict=True):
                state[f"{prefix}{part}.{kind}"] = rows


def _fuse_on_load(
    name: str, sizes: dict[str, int], module: nn.Module, state: dict[str, Any], prefix: str, *_: Any
) -> None:
    for kind in ("weight", "bias"):
        keys = [f"{prefix}{part}.{kind}" for part in sizes]
        if all(key in state for key in keys):
            state[f"{prefix}{name}.{kind}"] = torch.cat([state.pop(key) for key in keys])
