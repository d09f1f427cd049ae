"""Fusing: products that read the same input become one (q, k, v; gate, up). A step, not a shape.

Done in `prepare`, after adapters are attached or merged and before weight-only
quantization. A module says in `FUSED` what of it may be fused, under which name. Exact,
because rows of a product are independent. The state dict keeps the
unfused names both ways, so checkpoints never know. Modules that an adapter or a
quantizer has replaced are left alone, and the record says how many were fused.
Where some parts have biases and others none, the others' are zeros, which nothing may train.
A part whose rows would leave the whole no multiple of 16 stays alone: it would take libraries'
fast kernels, and int4, away from the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ALIGNED = 16
"""What int4 asks rows to be a multiple of (tiles of 8 on CUDA, of 16 on a CPU); others ask less."""


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
    if len(plain) != len(names) or not _may_join(list(plain.values())):
        return False
    fused = _joined(list(plain.values()))
    for name in names:
        delattr(module, name)
    setattr(module, fused_name, fused)
    sizes = {name: linear.out_features for name, linear in plain.items()}
    biased = tuple(name for name, linear in plain.items() if linear.bias is not None)
    group = _Group(fused_name, sizes, biased)
    module.fused_sizes = tuple(sizes.values())  # type: ignore[assignment]
    module.register_state_dict_post_hook(partial(_unfuse_on_save, group))
    module.register_load_state_dict_pre_hook(partial(_fuse_on_load, group))
    return True


def _may_join(parts: list[nn.Linear]) -> bool:
    """Whether all or none is trained, no made-up bias is, and no product becomes slower."""
    trained = {number.requires_grad for part in parts for number in part.parameters()}
    biased = {part.bias is not None for part in parts}
    rows = [part.out_features for part in parts]
    spoiled = max(rows) % ALIGNED == 0 and sum(rows) % ALIGNED != 0
    return len(trained) == 1 and not (True in trained and len(biased) > 1) and not spoiled


def _joined(parts: list[nn.Linear]) -> nn.Linear:
    """One linear layer whose rows are those of all parts, in order."""
    first, trained = parts[0], parts[0].weight.requires_grad
    rows = sum(part.out_features for part in parts)
    biased = any(part.bias is not None for part in parts)
    with torch.device("meta"):
        joined = nn.Linear(first.in_features, rows, bias=biased)
    joined.weight = nn.Parameter(torch.cat([part.weight.data for part in parts]), trained)
    if biased:
        joined.bias = nn.Parameter(torch.cat([_bias(part) for part in parts]), trained)
    return joined


def _bias(part: nn.Linear) -> Tensor:
    """Zeros where a part has none."""
    return part.weight.new_zeros(part.out_features) if part.bias is None else part.bias.data


class _Group(NamedTuple):
    """What was fused: the whole's name, rows of each part, and which parts have biases."""

    name: str
    sizes: dict[str, int]
    biased: tuple[str, ...]

    def kinds(self, prefix: str) -> Iterator[tuple[str, dict[str, str]]]:
        """What a state calls the whole weight or bias, and its parts that have one."""
        for kind, parts in (("weight", self.sizes), ("bias", self.biased)):
            yield f"{prefix}{self.name}.{kind}", {part: f"{prefix}{part}.{kind}" for part in parts}


def _unfuse_on_save(
    group: _Group, _: nn.Module, state: dict[str, Any], prefix: str, *__: Any
) -> None:
    for name, named in group.kinds(prefix):
        whole = state.get(name)
        if whole is not None and not hasattr(whole, "__tensor_flatten__"):  # not quantized since
            del state[name]
            rows = whole.split(tuple(group.sizes.values()))
            for part, some in zip(group.sizes, rows, strict=True):
                if part in named:
                    state[named[part]] = some


def _fuse_on_load(
    group: _Group, _: nn.Module, state: dict[str, Any], prefix: str, *__: Any
) -> None:
    for name, named in group.kinds(prefix):
        if not named or any(part not in state for part in named.values()):
            continue  # the whole is then missing, which torch tells
        found = {part: state.pop(there) for part, there in named.items()}
        none = next(iter(found.values())).new_zeros
        rows = [found[part] if part in found else none(n) for part, n in group.sizes.items()]
        state[name] = torch.cat(rows)
