"""From a case to something that can be measured: model, techniques, text, work.

Everything here happens outside the clock. What a case left to `auto` is settled here and
told in `resolved`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from efficientllm.assembly import Assembly, ours, pinned
from efficientllm.catalog.shape import Shape
from efficientllm.clock import sleep
from efficientllm.device import Device
from efficientllm.journal import Task
from efficientllm.matching import residual
from efficientllm.models.admission import admit
from efficientllm.models.checkpoint import build_model
from efficientllm.models.decoder import Decoder
from efficientllm.models.fuse import fuse
from efficientllm.parameters import parameters
from efficientllm.prepare_generation import generation
from efficientllm.spec.case import Case, Point
from efficientllm.spec.technique import Cast, Lora, Techniques
from efficientllm.spec.workload import Finetune, Generate, Pretrain, Probe, Training
from efficientllm.techniques import apply
from efficientllm.techniques.build import DTYPES, Build
from efficientllm.techniques.peft import decoder_layers
from efficientllm.techniques.quantize import Quantization
from efficientllm.workloads import compiling, step_graph
from efficientllm.workloads.batches import Batches, Packed, Stream
from efficientllm.workloads.generate import Generate as GenerateWork
from efficientllm.workloads.loss import resolve as resolve_loss
from efficientllm.workloads.probe import Probe as ProbeWork
from efficientllm.workloads.selection import training_text
from efficientllm.workloads.train import Train
from efficientllm.workloads.vocabulary import vocabulary_of

UNBUDGETED_BATCHES = 64
"""Different batches that work without declared steps goes through before it repeats them."""


def assemble(case: Case, task: Task, device: Device) -> Assembly:
    """Load the model and apply the techniques, in the order written."""
    torch.manual_seed(task.seed)
    case = _settled(case, task)
    assembly = Assembly(case, device)
    assembly.resolved |= {"device": device.torch.type, "threads": torch.get_num_threads()}
    if isinstance(case.workload, Probe) and case.workload.check != "attention":
        return assembly
    probing = isinstance(case.workload, Probe)
    mixer, examined = admit(case, device.torch)
    model, shape = build_model(
        case.model, device.torch, _first_dtype(case), task.seed, task.parent_weights, mixer
    )
    if (left := residual(case)) is not None:
        assembly.resolved["match_residual"] = left
    build = Build(model, shape, device.torch, case.random_weights, attention=examined)
    assembly.build, assembly.logical_params = build, _logical_params(model, shape)
    if probing:
        return assembly
    assembly.resolved["implementation"] = (
        "decoder" if isinstance(model, Decoder) else "transformers"
    )
    rows = int(model.get_input_embeddings().weight.shape[0])
    assembly.vocabulary = vocabulary_of(
        case.model, rows, parent=task.parent_weights, cache=task.cache_folder
    )
    assembly.resolved["tokenizer_sha256"] = assembly.vocabulary.sha256
    trained = isinstance(case.workload, Training)
    _apply(build, case.technique, assembly.resolved, trained=trained)
    if isinstance(case.workload, Training):
        _set_up_training(assembly, case.workload)
    else:
        build.model.eval()
    return assembly


def _logical_params(model: PreTrainedModel, shape: Shape | None) -> int:
    """Parameters as the shape counts them: 4-bit checkpoints hold two weights in one element.

    Only the model itself knows those of a user's own attention.
    """
    if shape is None or shape.custom:
        return sum(p.numel() for p in model.parameters())
    return parameters(shape).total


def _settled(case: Case, task: Task) -> Case:
    """The case with the micro-batch that this machine can take, where it leaves that open."""
    spec = case.workload
    if not isinstance(spec, Training) or isinstance(spec.micro_batch, int):
        return case
    size = task.micro_batch if spec.micro_batch == "fit" else None
    workload = spec.model_copy(update={"micro_batch": size or spec.batch})
    return case.model_copy(update={"workload": workload})


def _first_dtype(case: Case) -> torch.dtype | None:
    """The type to build weights in, so that no second copy is ever needed."""
    cast = next((t for t in case.technique if isinstance(t, Cast)), None)
    if cast is not None:
        return DTYPES[cast.kind]
    if isinstance(case.workload, Training) and not any(
        isinstance(t, Quantization) for t in case.technique
    ):
        return DTYPES[case.workload.precision.params]
    return None


def _apply(
    build: Build, techniques: Techniques, resolved: dict[str, Any], *, trained: bool
) -> None:
    """Apply techniques in order; fuse before quantizing, unless adapters follow."""
    adapters = any(isinstance(t, Lora) for t in techniques)
    fused = 0
    for technique in techniques:
        if isinstance(technique, Quantization) and not adapters:
            fused += _fused(build.model, trained=trained)
        build.reach.append(apply(build, technique))
    fused += _fused(build.model, trained=trained)
    resolved["fused_groups"] = fused
    resolved |= build.resolved


def _fused(model: PreTrainedModel, *, trained: bool) -> int:
    """How many groups were fused: more where nothing is trained, as nothing is from here on."""
    if not trained:
        model.requires_grad_(False)
    return fuse(model)


def _set_up_training(assembly: Assembly, spec: Training) -> None:
    build, device = assembly.build, assembly.device
    assert build is not None
    build.model.train()
    if isinstance(spec, Pretrain):
        build.model.requires_grad_(True)
    compute = DTYPES[spec.precision.compute]
    attention = pinned(build, spec.attention, device, compute, spec.sequence_length)
    how = compiling.resolve(spec.compile, device, ours=ours(build), decode=False)
    if how == "layer":
        layers = decoder_layers(build.model)
        compiling.compile_layers(layers, whole=build.adapted is None)
    vocab = assembly.face.head().weight.shape[0]
    assembly.resolved |= {
        "attention": attention,
        "compile": how,
        "loss": resolve_loss(spec.loss, vocab),
        "graph": ours(build) and step_graph.resolve(spec, build.shape, device),
        "micro_batch": spec.micro_batch,
        "tf32": torch.get_float32_matmul_precision(),
    }


def work_for(assembly: Assembly, point: Point, task: Task) -> Train | GenerateWork | ProbeWork:
    """The work of one point, ready for its cold call."""
    spec = assembly.case.workload
    match spec:
        case Probe():
            return ProbeWork(spec, assembly.device, sleep)
        case Generate():
            return generation(assembly, spec, point, task.seed)
        case Pretrain() | Finetune():
            assert assembly.build is not None
            return Train(
                assembly.build.model,
                assembly.face,
                _batches(assembly, spec, task),
                spec,
                assembly.device,
                compile_model=assembly.resolved["compile"] == "model",
                graph=assembly.resolved["graph"],
            )


def _batches(assembly: Assembly, spec: Pretrain | Finetune, task: Task) -> Batches:
    """Streams for running text, packed documents for prompts with responses."""
    vocabulary, resolved = assembly.vocabulary, assembly.resolved
    quality, cache = assembly.case.quality, Path(task.cache_folder)
    assert vocabulary is not None
    corpus, facts = training_text(spec.data, None if quality is None else quality.data, cache)
    resolved |= facts
    wanted = spec.budget_steps or UNBUDGETED_BATCHES
    sizes = {"rows": spec.batch, "length": spec.sequence_length, "seed": task.seed}
    batches: Stream | Packed
    if isinstance(spec, Finetune) and corpus.paired:
        packs = assembly.face.packs_documents
        resolved["layout"] = "packed documents" if packs else "one document a row"
        if packs and not assembly.device.is_cpu:
            resolved["attention"] = "flash, variable length"
        batches = Packed(corpus, vocabulary, **sizes, batches=wanted, separate=not packs)
    else:
        resolved["layout"] = "stream"
        batches = Stream(corpus, vocabulary, **sizes, batches=wanted, cache=cache)
    if spec.budgeted:
        resolved["epochs"] = batches.epochs or "less than one"
    return batches
