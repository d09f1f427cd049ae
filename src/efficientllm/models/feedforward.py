"""The gated feed-forward layer (SwiGLU, Shazeer 2020)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from efficientllm.models.swiglu import swiglu, takes


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)); parameter names are those of Qwen2 and Llama."""

    FUSED: ClassVar = {"gate_up_proj": ("gate_proj", "up_proj")}
    gate_up_proj: nn.Linear
    fused_sizes: tuple[int, ...]

    def __init__(self, hidden: int, ffn: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, ffn, bias=False)
        self.up_proj = nn.Linear(hidden, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, C] -> [B, T, C]."""
        if hasattr(self, "gate_up_proj"):  # made by models/fuse.py
            both = self.gate_up_proj(x)
            if takes(self.gate_up_proj, both):
                return self.down_proj(swiglu(both))
            gate, up = both.split(self.fused_sizes, dim=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(gated(gate, up))


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """SwiGLU by its formula: what the kernels of `swiglu_kernel.py` are held against."""
    return F.silu(gate) * up
