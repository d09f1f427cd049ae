"""From a model spec to weights on a device, and from trained weights to a checkpoint.

Checkpoints are read from safetensors only: a pickle is a program. Somebody else's Python is
refused unless the case allows it by name and full revision.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

from efficientllm.catalog.shape import Shape, read_config, shape_from_config, shape_named
from efficientllm.matching import matched_shape
from efficientllm.models import huggingface
from efficientllm.models.decoder import Decoder, Mixer, beyond_decoder
from efficientllm.models.untrained import materialize, untrained
from efficientllm.record import Unsupported
from efficientllm.spec.model import Backbone, CatalogShape, Checkpoint, Model, Product, is_local

TOKENIZER = "tokenizer.json"
ADAPTER = "adapter_config.json"
_UNNEEDED = ("lm_head.weight", "rotary_emb.inv_freq")
"""Stored tensors to pass over: a head that is tied, and angles that are computed."""


def build_model(
    spec: Model,
    device: torch.device,
    dtype: torch.dtype | None,
    seed: int,
    parent: str,
    mixer: Mixer | None = None,
) -> tuple[PreTrainedModel, Shape | None]:
    """The model of a spec on a device, and its shape where formulas for it exist.

    `dtype` None keeps a checkpoint's own type (bf16 for random weights). `parent` is the
    folder that a product's weights were left in; `mixer` makes a user's own attention.
    """
    match spec:
        case Backbone():
            shape = matched_shape(spec)
            return untrained(shape, "decoder", device, dtype, seed, mixer), shape
        case CatalogShape():
            shape = shape_named(spec.name)
            return untrained(shape, spec.implementation, device, dtype, seed), shape
        case Checkpoint():
            return _load(local_folder(spec), spec, device, dtype)
        case Product():
            return _load(Path(parent), Checkpoint(source=parent), device, dtype)


def local_folder(spec: Checkpoint) -> Path:
    """Where a checkpoint's files are: its folder, or the hub's cache (never the network)."""
    if is_local(spec.source):
        return Path(spec.source).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name = spec.source.partition("@")[0]
    try:
        return Path(snapshot_download(name, revision=spec.commit or None, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise Unsupported(
            f"{name}: not on this disk; fetch it where there is a network: efficientllm fetch"
            f" model={spec.source}"
        ) from error


def _load(
    folder: Path, spec: Checkpoint, device: torch.device, dtype: torch.dtype | None
) -> tuple[PreTrainedModel, Shape | None]:
    """Weights from a folder, through our decoder where it computes what the family computes."""
    if (folder / ADAPTER).exists():
        return _load_adapter(folder, spec, device, dtype)
    config = read_config(folder)
    _refuse_pickles(folder, "*.safetensors")
    _refuse_code(config, spec)
    shape = shape_from_config(config, spec.source or folder.name)
    other = beyond_decoder(config)
    plain = shape is not None and shape.gated_decoder and not other
    if spec.implementation == "decoder" and not plain:
        because = f" ({other})" if other else ""
        raise Unsupported(
            f"{spec.source}: our decoder cannot load it{because}; use implementation: auto"
        )
    if plain and spec.implementation != "transformers":
        assert shape is not None
        return _load_decoder(folder, shape, device, dtype or _stored_dtype(folder)), shape
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype or "auto",
        use_safetensors=True,
        trust_remote_code=spec.allow_code,
        local_files_only=True,
    )
    return model.to(device), shape


def _load_decoder(
    folder: Path, shape: Shape, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    with torch.device("meta"):
        model = materialize(Decoder.from_shape(shape), device, dtype)
    huggingface.reset_buffers(model)
    parameters = dict(model.named_parameters())
    missing = set(parameters)
    for path in _safetensors(folder):
        with safe_open(path, "pt", device=str(device)) as file:
            for name in file.keys():  # noqa: SIM118  (not a dict)
                if name in parameters:
                    _fill_from(file, name, parameters[name])
                    missing.discard(name)
                elif not name.endswith(_UNNEEDED):
                    raise Unsupported(
                        f"{folder}: our decoder has no place for {name}; use"
                        " implementation: transformers"
                    )
    if missing:
        raise Unsupported(f"{folder}: no weights for {', '.join(sorted(missing)[:3])}")
    return model


@torch.no_grad()
def _fill_from(file: Any, name: str, parameter: torch.Tensor) -> None:
    stored = file.get_tensor(name)
    if stored.shape != parameter.shape:
        raise Unsupported(
            f"{name} is stored as {tuple(stored.shape)}; the configuration asks for"
            f" {tuple(parameter.shape)}"
        )
    parameter.copy_(stored)


def _load_adapter(
    folder: Path, spec: Checkpoint, device: torch.device, dtype: torch.dtype | None
) -> tuple[PreTrainedModel, Shape | None]:
    """The base model with the adapter merged into it."""
    from peft import PeftModel

    _refuse_pickles(folder, "adapter_model.safetensors")  # peft would load one without a word
    base = _base_of(folder, spec)
    base_folder = local_folder(base)
    if (base_folder / ADAPTER).exists():
        raise Unsupported(f"{folder}: an adapter for an adapter ({base.source}); merge that first")
    model, shape = _load(base_folder, base, device, dtype)
    try:
        return PeftModel.from_pretrained(model, folder).merge_and_unload(), shape
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise Unsupported(f"{folder}: this adapter cannot be merged: {first}") from error


def _base_of(folder: Path, spec: Checkpoint) -> Checkpoint:
    """The model that an adapter was trained beside."""
    config = json.loads((folder / ADAPTER).read_text("utf-8"))
    source = str(config.get("base_model_name_or_path") or "")
    if not source:
        raise Unsupported(f"{folder}: {ADAPTER} names no base model")
    return Checkpoint(source=source, implementation=spec.implementation)


def tokenizer_folder(spec: Checkpoint) -> Path:
    """Where a checkpoint's tokenizer is; adapters often leave it beside their base model."""
    folder = local_folder(spec)
    if (folder / TOKENIZER).exists() or not (folder / ADAPTER).exists():
        return folder
    return local_folder(_base_of(folder, spec))


def _safetensors(folder: Path) -> list[Path]:
    """The weight files, as transformers finds them; some folders hold a second set beside."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        return sorted(folder / Path(name).name for name in names)
    return [whole] if whole.exists() else sorted(folder.glob("*.safetensors"))


def _refuse_pickles(folder: Path, wanted: str) -> None:
    if any(folder.glob(wanted)):
        return
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise Unsupported(
            f"{folder}: {pickles[0]} is a pickle, and loading a pickle runs it; convert the weights"
            " to safetensors"
        )
    raise Unsupported(f"{folder}: no {wanted} there")


def _refuse_code(config: dict[str, Any], spec: Checkpoint) -> None:
    if "auto_map" in config and not spec.allow_code:
        raise Unsupported(
            f"{spec.source}: brings its own Python code; to run it say model.allow_code=true and"
            " name the full revision: model.source=id@<40-digit commit>"
        )


def _stored_dtype(folder: Path) -> torch.dtype:
    """The type that the first floating-point tensor is stored in."""
    with safe_open(_safetensors(folder)[0], "pt") as file:
        for name in file.keys():  # noqa: SIM118
            dtype: torch.dtype = file.get_tensor(name).dtype
            if dtype.is_floating_point:
                return dtype
    return torch.bfloat16


def save_checkpoint(model: PreTrainedModel, folder: Path) -> str:
    """Save as a plain checkpoint that other tools read; the SHA-256 of the weights.

    A model of our decoder is saved under the published family that has its parts: Qwen3
    (norms on q and k), Qwen2 (biases) or Llama; under our own name where none has. Raises
    Unsupported for a user's own attention, which no configuration can rebuild.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, Decoder):
        if model.shape.custom:
            raise Unsupported(
                f"{model.shape.custom} is code of its own: a saved model could not be read again"
            )
        published = model.shape.published
        config = huggingface.published_config(model.shape) if published else model.config
        config.dtype = next(model.parameters()).dtype
        config.save_pretrained(folder)
        # Rows of a fused weight share its storage; a copy of their own is what gets saved.
        state = {name: t.detach().to("cpu", copy=True) for name, t in model.state_dict().items()}
        if model.shape.tied:
            state.pop("lm_head.weight", None)
        save_torch_state_dict(state, folder, metadata={"format": "pt"})
    else:
        model.save_pretrained(folder)
    return weights_sha256(folder)


def weights_sha256(folder: Path) -> str:
    """One digest over every weight file of a folder, in the order of their names."""
    total = hashlib.sha256()
    for path in _safetensors(folder):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def disk_bytes(folder: Path) -> int:
    """Bytes of the weight files in a folder."""
    return sum(path.stat().st_size for path in _safetensors(folder))
