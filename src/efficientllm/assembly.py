"""A case made ready on a device: its model, its tokenizer, and what was settled on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from efficientllm.device import Device, leave_attention_open, pin_attention
from efficientllm.models import flash4
from efficientllm.models.attend import kernel, pin
from efficientllm.models.decoder import Decoder
from efficientllm.models.language_model import LanguageModel, face
from efficientllm.record import Unsupported
from efficientllm.spec.case import Case
from efficientllm.techniques.build import Build
from efficientllm.workloads.text import Corpus
from efficientllm.workloads.vocabulary import Vocabulary


@dataclass
class Assembly:
    """A case made ready on a device. A probe has neither model nor vocabulary."""

    case: Case
    device: Device
    build: Build | None = None
    vocabulary: Vocabulary | None = None
    logical_params: int = 0
    heldout: Corpus | None = None
    """Read when it is first scored."""

    resolved: dict[str, Any] = field(default_factory=dict)

    @property
    def face(self) -> LanguageModel:
        """The model as workloads see it."""
        assert self.build is not None
        return face(self.build.model)

    def save_vocabulary(self, folder: Path) -> None:
        """Put the tokenizer beside saved weights."""
        if self.vocabulary is not None:
            self.vocabulary.save(folder)


def pinned(build: Build, wanted: str, device: Device, dtype: torch.dtype, length: int) -> str:
    """Pin one back-end of plain attention; the name of the kernel that will run."""
    shape = build.shape
    if wanted == flash4.KERNEL and (shape is None or shape.custom or not ours(build)):
        raise Unsupported(f"attention: {wanted} attends in the project's own layers only")
    if shape is not None and shape.custom and wanted == "auto":
        leave_attention_open(device)
        return shape.custom
    if shape is None or not ours(build):
        grouped = shape is not None and shape.heads != shape.kv_heads
        return pin_attention(wanted, device, dtype, length, grouped=grouped)
    plain = pin(wanted, device, dtype, length, shape)
    return kernel(shape, device.torch, dtype, length, plain)


def ours(build: Build) -> bool:
    """Whether the model is our decoder, whose parts we may capture and compile one by one."""
    return isinstance(build.model, Decoder)
