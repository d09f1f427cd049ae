"""The shape of a model: every size that decides its parameters, FLOPs and bytes.

Facts only, from `models.yaml` (with their sources), from `backbones.yaml` (our own
presets) or from a checkpoint's `config.json`. No torch here.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from efficientllm.spec.document import SpecError
from efficientllm.spec.problems import nearest

Arch = Literal["dense", "moe", "moe-mla", "gpt-neox", "mamba1", "mamba2"]
Encoding = Literal["rope", "sinusoidal", "learned", "t5", "alibi", "none"]

Size = Annotated[int, Field(ge=0, lt=1 << 31)]
Positive = Annotated[int, Field(ge=1, lt=1 << 31)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Layers = Annotated[int, Field(ge=1, le=10_000)]


class Experts(BaseModel):
    """A mixture of experts in the feed-forward place (sizes per expert)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: Size
    per_token: Size
    ffn: Size
    shared: Size = 0
    first_dense_layers: Size = 0


class Latent(BaseModel):
    """Multi-head latent attention (DeepSeek-V2/V3): low-rank keys and values, and queries.

    A `q_rank` of 0 means that queries come from the hidden state directly.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    q_rank: Size
    kv_rank: Size
    qk_nope_dim: Size
    qk_rope_dim: Size
    v_dim: Size


class Sparse(BaseModel):
    """Native sparse attention: blocks that are compressed, those read whole, and a window."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    block: Positive
    selected: Positive
    window: Positive


class Relative(BaseModel):
    """T5's learned biases: one for each head and bucket of distances."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    buckets: Positive
    max_distance: Positive


class State(BaseModel):
    """A Mamba mixer in the place of attention and feed-forward."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inner: Size
    state: Size
    conv: Size
    dt_rank: Size = 0
    groups: Size = 1


class RopeScaling(BaseModel):
    """Llama 3's stretching of low rotary frequencies (its `rope_type: llama3`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: Size = 8192


class Shape(BaseModel):
    """Sizes in elements. `head_dim` need not be hidden / heads; `vocab` counts rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: str
    arch: Arch
    hidden: Positive
    layers: Layers
    heads: Size = 0
    kv_heads: Size = 0
    head_dim: Size = 0
    ffn: Size = 0
    vocab: Positive
    tied: bool
    qkv_bias: bool = False
    qk_norm: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rotary_share: float = 1.0
    sliding_window: Size | None = None
    max_positions: Size = 4096
    norm_eps: float = 1e-6
    experts: Experts | None = None
    latent: Latent | None = None
    sparse: Sparse | None = None
    state: State | None = None
    position: Encoding = "rope"
    relative: Relative | None = None
    custom: str = ""
    """The class of a user's own attention, whose weights and work nothing here can count."""

    parameters: Count | None = None
    active_parameters: Count | None = None
    note: str = ""
    sources: tuple[str, ...] = ()

    @property
    def gated_decoder(self) -> bool:
        """Whether our own decoder builds it: RMSNorm, whole-head rotations, gated feed-forward."""
        windowed = self.sliding_window is not None and self.family != "backbone"
        return self.arch == "dense" and self.rotary_share == 1.0 and not windowed

    @property
    def published(self) -> bool:
        """Whether transformers has a family (Llama, Qwen2, Qwen3) with just these parts."""
        studied = self.latent or self.sparse or self.sliding_window or self.custom
        return self.gated_decoder and not studied and self.position == "rope"


def read_catalog(name: str) -> Any:
    """A YAML file of this folder. Ours, so PyYAML's own types will do."""
    text = (resources.files("efficientllm") / "catalog" / name).read_text("utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@cache
def shapes() -> dict[str, Shape]:
    """Every published shape of the catalog, by name."""
    rows = [Shape.model_validate(row) for row in read_catalog("models.yaml")["models"]]
    return {shape.name: shape for shape in rows}


@cache
def presets() -> dict[str, Shape]:
    """The sizes of the controlled backbone, by preset name."""
    rows = read_catalog("backbones.yaml")["presets"]
    return {name: Shape(name=f"backbone-{name}", **row) for name, row in rows.items()}


def model_names() -> list[str]:
    """Every model that one word names, presets of the backbone first."""
    return [*(f"backbone-{name}" for name in presets()), *shapes()]


def shape_named(name: str) -> Shape:
    """A shape of the catalog, or a SpecError that names the nearest one."""
    for known, shape in shapes().items():
        if known.lower() == name.lower():
            return shape
    raise SpecError(f"model: the catalog has no shape {name!r}{nearest(name, shapes())}")


OWN_FAMILY = "efficientllm-decoder"
"""The `model_type` of saved models that have parts no published family has."""

_DENSE = {"llama", "mistral", "qwen2", "qwen3"}
_MOE = {"mixtral", "qwen3_moe"}


def shape_from_config(config: dict[str, Any], name: str) -> Shape | None:
    """The shape in a checkpoint's `config.json`; None for families without formulas here."""
    kind = config.get("model_type")
    if kind == OWN_FAMILY:
        return Shape.model_validate(config["shape"])
    mixed = config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1
    if kind not in _DENSE | _MOE or mixed:
        return None
    try:
        return _shape(config, name, kind)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        what = error.args[0] if isinstance(error, KeyError) else type(error).__name__
        raise SpecError(
            f"model: {name}: its config.json is not a {kind} model's ({what})"
        ) from error


def _shape(config: dict[str, Any], name: str, kind: str) -> Shape:
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    return Shape(
        name=name,
        family=kind,
        arch="moe" if kind in _MOE else "dense",
        hidden=hidden,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        ffn=config["intermediate_size"],
        vocab=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=bool(config.get("attention_bias", False)) or kind == "qwen2",
        qk_norm=kind in ("qwen3", "qwen3_moe"),
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        rope_scaling=_scaling(rope),
        sliding_window=window if kind != "qwen2" else None,
        max_positions=config.get("max_position_embeddings", 4096),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        experts=_experts(config) if kind in _MOE else None,
    )


def _scaling(rope: dict[str, Any]) -> RopeScaling | None:
    if rope.get("rope_type", rope.get("type")) != "llama3":
        return None
    return RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_positions=rope["original_max_position_embeddings"],
    )


def _experts(config: dict[str, Any]) -> Experts:
    return Experts(
        count=config.get("num_local_experts") or config["num_experts"],
        per_token=config["num_experts_per_tok"],
        ffn=config.get("moe_intermediate_size") or config["intermediate_size"],
    )


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint folder's `config.json`, or a SpecError that says what is missing."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SpecError(f"{folder}: no checkpoint there (config.json: {error.strerror})") from error
    except ValueError as error:
        raise SpecError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise SpecError(f"{path}: not a model configuration")
    return config
