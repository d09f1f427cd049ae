"""All tests. Without a GPU, Triton interprets our kernels: slowly, and in the same words."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported
