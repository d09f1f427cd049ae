"""Training steps per second: this tool, a bare loop, and transformers, as ratios in one run.

    python benchmarks/pretrain.py --preset 1.5B --length 4096,8192 --batch 32768 --states bf16
    OMP_NUM_THREADS=1 python benchmarks/pretrain.py --preset tiny --length 128 --batch 512

All arms train the same shape on the same tokens in the same order with AdamW, clipping and the
same sliced loss, so that memory compares. Their first and last losses are shown: `ours` and
`bare` start from the same weights and must agree to rounding, `transformers` must come near.

* ours: the tool's own work, by the worker's classes.
* eager (by --arms): the same where a small step would be captured in one CUDA graph, as with
  `--preset 30M-h16 --length 1024 --batch 16384`.
* cudnn (by --arms): the same with cuDNN's attention, where FlashAttention-4 is installed.
* bare: a loop written here over our decoder with the same compiled layer and pinned attention,
  its batches on the device beforehand: what `ours` loses is making batches, counting, checking.
  It has no graph.
* transformers: Qwen2ForCausalLM in that loop, compiled whole, with the attention that torch
  chooses. `transformers-pinned` (by --arms) gets our choice of attention.

MFU divides by the datasheet's dense bf16 peak and counts causal attention at half. Targets on
one H200: MFU 0.58 with bf16 states, 0.55 with float32 states, at 4k and 8k; first step within
25 s. Predictions: bare / ours within 1 %; transformers 0.78 of ours at 4k, 0.65 at 8k (as
39,100 / 50,400 and 29,700 / 45,500 tokens/s on an H200 before there was a tool), after 75 s.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import arms
import measuring
from efficientllm import clock
from efficientllm.catalog.shape import Shape, presets
from efficientllm.cost import causal_pairs, training_flops
from efficientllm.device import Device, pin_attention
from efficientllm.models.attend import pin
from efficientllm.models.checkpoint import build_model
from efficientllm.models.fuse import fuse
from efficientllm.models.language_model import face
from efficientllm.record import Unsupported
from efficientllm.spec.case import Case
from efficientllm.spec.workload import Pretrain
from efficientllm.workloads import compiling
from efficientllm.workloads.batches import Stream
from efficientllm.workloads.loss import loss_of, resolve
from efficientllm.workloads.text import read_corpus
from efficientllm.workloads.train import TORCH_TYPES, autocast, optimizer
from efficientllm.workloads.vocabulary import vocabulary_of

READY = 64  # different batches, as many as the tool itself goes through without a budget
COLUMNS = [
    arms.Column("MFU", "mfu", ".3f"),
    arms.Column("peak allocated (GiB)", "peak_gib", ".1f"),
    arms.Column("first step (s)", "first_step_s", ".1f"),
    arms.Column("after build (s)", "after_build_s", ".1f"),
    arms.Column("losses", "losses"),
]


class Setup(NamedTuple):
    """What all arms are to do, and where."""

    case: Case
    spec: Pretrain
    shape: Shape
    device: Device
    cache: Path


class Loop(NamedTuple):
    """One optimizer step, the losses so far, and how it was built."""

    step: Callable[[], Any]
    losses: Callable[[], list[float]]
    what: str


def setup(args: argparse.Namespace, length: int) -> Setup:
    """The case that all arms do: --batch tokens a step, in rows of one length."""
    if args.batch % length:
        raise Unsupported(f"--batch {args.batch} tokens are no whole rows of {length}")
    workload = {"kind": "pretrain", "batch": args.batch // length, "sequence_length": length}
    workload["precision"] = {"params": args.states, "optimizer_state": args.states}
    workload["data"] = args.text or "stdlib"
    model = {"kind": "backbone", "preset": args.preset, "tokenizer": args.tokenizer}
    case = Case.model_validate({"model": model, "workload": workload})
    assert isinstance(case.workload, Pretrain)
    shape, cache = presets()[args.preset], args.out / "vocabulary"
    return Setup(case, case.workload, shape, measuring.device(), cache)


def ours(to: Setup, **other: str) -> Loop:
    """The tool's own work, or the same with another choice in the workload."""
    spec = to.spec.model_copy(update=other)
    assembly, work = measuring.work_of(to.case.model_copy(update={"workload": spec}), to.cache)
    how = (f"{key} {assembly.resolved[key]}" for key in ("compile", "attention", "loss", "graph"))
    return Loop(partial(work.unit, "step"), lambda: list(work.losses()), ", ".join(how))


def bare(to: Setup) -> Loop:
    """A plain loop over our decoder, its layers fused and compiled."""
    dtype = TORCH_TYPES[to.spec.precision.params]
    attention = pin("auto", to.device, _compute(to), to.spec.sequence_length, to.shape)
    model, _ = build_model(to.case.model, to.device.torch, dtype, 0, "")
    fuse(model)
    if not to.device.is_cpu:
        compiling.compile_layers(model.model.layers)
    return _loop(to, model, model.hidden, f"compile layer, attention {attention}")


def transformers(to: Setup, *, pinned: bool = False) -> Loop:
    """Qwen2ForCausalLM of the same sizes, as a script would use it."""
    attention = "torch's choice"
    if pinned:
        length = to.spec.sequence_length
        attention = pin_attention("auto", to.device, _compute(to), length, grouped=True)
    model = measuring.published(to.shape, TORCH_TYPES[to.spec.precision.params], to.device)
    plain = face(model).hidden
    hidden = plain if to.device.is_cpu else compiling.compiled(plain)
    return _loop(to, model, hidden, f"compile model, attention {attention}")


def _compute(to: Setup) -> torch.dtype:
    return TORCH_TYPES[to.spec.precision.compute]


def _loop(to: Setup, model: Any, hidden: Callable[..., Tensor], what: str) -> Loop:
    """Forward, loss, backward, clipping, fused AdamW, and nothing else."""
    spec, device, head = to.spec, to.device, model.get_output_embeddings().weight
    model.train()
    compute, ready = _compute(to), _ready(to)
    kind = resolve(spec.loss, to.shape.vocab)
    loss_sum, how = loss_of(kind), f"{what}, loss {kind}{', eager' * device.is_cpu}"
    adamw, trained = optimizer(model, spec.optimizer), list(model.parameters())
    losses: list[Tensor] = []

    def step() -> None:
        tokens, targets = ready[len(losses) % READY]
        with autocast(spec.precision, device):
            states = hidden(tokens).to(compute).flatten(0, 1)
            loss = loss_sum(states, head, targets.flatten()) / targets.numel()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(trained, 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        losses.append(loss.detach())

    return Loop(step, lambda: [float(loss) for loss in losses], how)


def _ready(to: Setup) -> list[tuple[Tensor, Tensor]]:
    """The tool's own batches in their order, tokens and targets [B, T], on the device."""
    spec, place = to.spec, to.device.torch
    words = vocabulary_of(to.case.model, to.shape.vocab, parent="", cache=str(to.cache))
    sizes = {"rows": spec.batch, "length": spec.sequence_length, "seed": 0, "batches": READY}
    stream = Stream(read_corpus(spec.data, "train"), words, **sizes)
    batches = (stream.batch(index) for index in range(READY))
    return [(b.tokens.to(place), b.targets.to(place)) for b in batches]


def measure(build: Callable[[Setup], Loop], args: argparse.Namespace, length: int) -> arms.Result:
    """Build, take the first step, warm up, and time --steps steps."""
    to, (product, peak) = setup(args, length), measuring.card()
    loop = build(to)
    found = measuring.timed(loop.step, clock.timeline(to.device.torch), args)
    losses, rows, tokens = loop.losses(), to.spec.batch, args.batch * args.steps
    flops = training_flops(to.shape, (), tokens, args.steps * rows * causal_pairs(length))
    limit = None if peak is None else peak.flops("bf16")
    work = f"{to.shape.name}, {rows} x {length} tokens, {args.states} states"
    return found | {
        "where": f"{product}, torch {torch.__version__}, {work}",
        "what": loop.what,
        "tokens_per_s": tokens / found["seconds"],
        "mfu": None if limit is None or flops is None else flops / found["seconds"] / limit,
        "losses": f"{losses[0]:.4f} to {losses[-1]:.4f}",
        "loss": losses,
    }


ARMS: dict[str, Callable[[Setup], Loop]] = {
    "ours": ours,
    "eager": partial(ours, cuda_graph="none"),
    "cudnn": partial(ours, attention="cudnn"),
    "bare": bare,
    "transformers": transformers,
    "transformers-pinned": partial(transformers, pinned=True),
}


def main() -> None:
    """Compare the arms at every length."""
    parser = arms.parser(__doc__ or "", ["ours", "bare", "transformers"], "pretrain")
    parser.add_argument(
        "--preset", default="1.5B", choices=presets(), help="a size of the backbone"
    )
    parser.add_argument("--length", default="4096,8192", help="tokens in a row; a comma list")
    parser.add_argument("--batch", type=int, default=32_768, help="tokens in a step")
    parser.add_argument("--states", choices=("bf16", "float32"), default="bf16")
    args = parser.parse_args()
    lengths = [int(word) for word in args.length.split(",")]
    arms.compare(args, {n: partial(measure, build) for n, build in ARMS.items()}, lengths, COLUMNS)


if __name__ == "__main__":
    main()
