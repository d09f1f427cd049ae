"""What memory a case will need before it is run.

Memory is counted from the shape: weights and states exactly, activations by what our
decoder keeps for the backward pass. Against peaks measured on an H100 (0.5B and 1.5B
trained, 1B fine-tuned in three ways, 8B decoded in five precisions) it is off by 6 % at
most. It is a prediction and is shown as one; `tight` means within 10 % of what the device
has.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from efficientllm import cost
from efficientllm.catalog.shape import Shape, read_config, shape_from_config, shape_named
from efficientllm.matching import matched_shape
from efficientllm.parameters import linears, lora_parameters, parameters
from efficientllm.spec.case import Case, Point
from efficientllm.spec.model import Backbone, CatalogShape, Checkpoint, Product, is_local
from efficientllm.spec.suite import Suite
from efficientllm.spec.technique import (
    Cast,
    Freeze,
    Int4WeightOnly,
    Int8Dynamic,
    Int8WeightOnly,
    Lora,
)
from efficientllm.spec.workload import Generate, Probe, Training

GIB = 2**30
CONTEXT_BYTES = 0.6 * GIB
"""What an accelerator's context and libraries take before the first tensor."""

ADAPTER_BYTES = 4
"""peft keeps adapters in float32, whatever they stand beside."""

LOSS_SLICE_BYTES = 5 << 28
"""Logits that the loss holds at once (`workloads/loss.py`)."""

PLAIN_LOSS_VOCAB = 16_384
"""Up to this vocabulary all logits are held at once, if nothing else is asked for."""

TIGHT = 0.9

Fit = Literal["fits", "tight", "no", "unknown"]


class Memory(NamedTuple):
    """Predicted bytes, each at its own peak.

    Without an earlier micro-batch gradients grow as activations go, so the larger of the two
    counts; `gradients_stay` when there was one.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    cache: float
    gradients_stay: bool = False

    @property
    def total(self) -> float:
        """Bytes at the peak of all, the device's context included."""
        moving = (self.gradients, self.activations)
        passing = sum(moving) if self.gradients_stay else max(moving)
        return self.weights + self.optimizer + self.cache + passing + CONTEXT_BYTES


def shape_of(case: Case, suite: Suite | None = None) -> Shape | None:
    """The shape of a case's model; a product has its parent's; None without formulas."""
    match case.model:
        case Backbone():
            return None if case.own_attention else matched_shape(case.model)
        case CatalogShape(name=name) if isinstance(case.workload, Probe) and name == "none":
            return None
        case CatalogShape(name=name):
            return shape_named(name)
        case Product(parent=parent):
            above = next((c for c in suite.cases if c.case_id == parent), None) if suite else None
            return shape_of(above, suite) if above else None
        case Checkpoint():
            return _checkpoint_shape(case.model)


def _checkpoint_shape(model: Checkpoint) -> Shape | None:
    if is_local(model.source):
        return shape_from_config(read_config(Path(model.source).expanduser()), model.source)
    try:
        from huggingface_hub import hf_hub_download

        name = model.source.partition("@")[0]
        path = hf_hub_download(name, "config.json", revision=model.commit or None)
    except Exception:  # offline, gated or gone: planning then says unknown
        return None
    return shape_from_config(read_config(Path(path).parent), model.source)


def memory(case: Case, shape: Shape, point: Point) -> Memory:
    """Predicted memory of one point."""
    weights = weight_bytes(case, shape)
    if isinstance(case.workload, Training):
        return _training(case, case.workload, shape, weights)
    context = point.context
    if isinstance(case.workload, Generate):
        context += case.workload.new_tokens
    element = 4 if any(t.kind == "float32" for t in case.technique) else 2
    slots = -(-context // 64) * 64
    cache = float(cost.cache_bytes(shape, slots, element) * point.batch)
    # One layer at a time, plus the rows of logits that are asked for.
    tokens = cost.prefill_rows(point.batch, point.context) * point.context
    alive = tokens * (4 * shape.hidden + 3 * shape.ffn) * element
    if any(isinstance(t, Int8Dynamic) for t in case.technique):
        alive += tokens * 4 * shape.ffn  # gate and up come out in int32
    logits = point.batch * shape.vocab * (element + 4)
    return Memory(weights, 0.0, 0.0, float(alive + logits), cache)


def weight_bytes(case: Case, shape: Shape) -> float:
    """Bytes of the weights as a case holds them: scales, zero points and adapters too."""
    counts = parameters(shape)
    kind = case.workload.precision.params if isinstance(case.workload, Training) else "bf16"
    quantized = adapters = 0.0
    for technique in case.technique:
        match technique:
            case Cast():
                kind = technique.kind
            case Lora():
                adapters = trained_parameters(case, shape) * ADAPTER_BYTES
            case Int8WeightOnly() | Int8Dynamic() | Int4WeightOnly():
                kind, quantized = "bf16", _saved_bytes(technique, shape)
            case _:
                pass
    return float(counts.total * cost.DTYPE_BYTES[kind]) - quantized + adapters


def _saved_bytes(technique: Int8WeightOnly | Int8Dynamic | Int4WeightOnly, shape: Shape) -> float:
    """Bytes below bf16. int4 has a scale and a zero for every group, int8 for every row.

    What lies in no linear layer is not reached: the experts of a mixture, above all.
    """
    group = technique.group_size if isinstance(technique, Int4WeightOnly) else None
    if shape.arch != "dense":
        counts = parameters(shape)
        reached = counts.products
        if shape.experts is not None:
            reached = sum(layer.attention for layer in counts.layers)
        return reached * (1.5 - 4 / group if group else 1 - 5 / shape.hidden)
    saved = 0.0
    for inputs, outputs in linears(shape):
        if group is None:
            saved += inputs * outputs - 5 * outputs
        elif inputs % group == 0 and outputs % 16 == 0:
            saved += inputs * outputs * (1.5 - 4 / group)
    return saved * shape.layers


def trained_parameters(case: Case, shape: Shape) -> int:
    """Parameters that learn under a case's techniques."""
    counts = parameters(shape)
    for technique in case.technique:
        match technique:
            case Lora():
                return lora_parameters(shape, technique) or 0
            case Freeze(last_layers=last):
                layers = counts.layers[-min(last, shape.layers) :]
                return sum(x.attention + x.feedforward + x.other for x in layers)
            case _:
                pass
    return counts.total


def _training(case: Case, spec: Training, shape: Shape, weights: float) -> Memory:
    trained = trained_parameters(case, shape)
    adapted = any(isinstance(t, Lora) for t in case.technique)
    held = ADAPTER_BYTES if adapted else cost.DTYPE_BYTES[spec.precision.params]
    element = cost.DTYPE_BYTES[spec.precision.compute]
    rows = spec.micro_batch_size
    tokens = rows * spec.sequence_length
    attention = _attention_kept(shape)
    kept = 7 * shape.hidden + 1.5 * attention + 3 * shape.ffn
    loss = min(tokens * shape.vocab * element, LOSS_SLICE_BYTES)
    if spec.loss == "plain" or (spec.loss == "auto" and shape.vocab <= PLAIN_LOSS_VOCAB):
        # Logits, and in float32 a copy of them, their softmax and its gradient.
        loss = tokens * shape.vocab * (element + 3 * 4)
    if trained == parameters(shape).total:  # the head learns: its gradient is summed first
        loss += 4 * shape.vocab * shape.hidden
    activations = tokens * _layers_kept(case, shape) * kept * element + loss
    if spec.precision.compute != spec.precision.params:
        activations += parameters(shape).total * element  # weights cast for the products
    kept_gradients = rows < spec.batch
    return Memory(
        weights, trained * held, 2 * trained * held, float(activations), 0.0, kept_gradients
    )


def _attention_kept(shape: Shape) -> int:
    """Values of queries, keys and values that a layer keeps for each token."""
    if shape.latent is not None:  # the latent, and what is written out of it
        latent = shape.latent
        heads = 2 * (latent.qk_nope_dim + latent.qk_rope_dim) + latent.v_dim
        return shape.heads * heads + latent.kv_rank + latent.qk_rope_dim
    plain = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    # Each of three branches keeps an output of its own for its gate.
    return plain if shape.sparse is None else plain + 3 * shape.heads * shape.head_dim


def _layers_kept(case: Case, shape: Shape) -> int:
    """Layers whose inputs the backward pass needs: with frozen layers, those above them."""
    frozen = next((t for t in case.technique if isinstance(t, Freeze)), None)
    return shape.layers if frozen is None else min(frozen.last_layers, shape.layers)


def fit(needed: float, available: float) -> Fit:
    """Whether predicted bytes fit a device."""
    if needed > available:
        return "no"
    return "tight" if needed > TIGHT * available else "fits"


def largest_batch(case: Case, shape: Shape, point: Point, available: float) -> int | None:
    """The largest smaller batch that fits, in training micro-batch: the nearest change that does.

    Generation is tried at powers of two, training at divisors of the batch that it keeps.
    """
    spec = case.workload
    tried: Iterable[tuple[int, Case, Point]]
    if isinstance(spec, Training):
        sizes = (n for n in divisors(spec.batch) if n < spec.micro_batch_size)
        tried = ((n, with_micro_batch(case, n), point) for n in sizes)
    else:
        powers = (1 << i for i in reversed(range((point.batch - 1).bit_length())))
        tried = ((n, case, Point(n, point.context)) for n in powers)
    for size, smaller, at in tried:
        if memory(smaller, shape, at).total <= available:
            return size
    return None


def divisors(number: int) -> Iterable[int]:
    """All that divide a number, the largest first."""
    return (n for n in range(number, 0, -1) if number % n == 0)


def with_micro_batch(case: Case, size: int | None) -> Case:
    """The case with so many sequences in one forward pass; None leaves it as it is."""
    if size is None:
        return case
    workload = case.workload.model_copy(update={"micro_batch": size})
    return case.model_copy(update={"workload": workload})
