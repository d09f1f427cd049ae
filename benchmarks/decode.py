"""Decoded tokens per second: this tool, transformers with a static cache, vLLM, in one run.

    python benchmarks/decode.py --model Llama-3.1-8B --batch 1,16,64 --context 1024 --new 128
    OMP_NUM_THREADS=1 python benchmarks/decode.py --model backbone-tiny --context 64 --new 32

All arms have random bf16 weights of one shape (cost only) and read the same prompts. Each
answers two questions: seconds of a whole request (prefill and all new tokens, greedy, never
stopping early) and of one with a single new token. The difference of the medians is new - 1
decode steps, measured from outside and alike for all.

* ours: the tool's own work, by the worker's classes: layers compiled, one graph a step.
* transformers-static: its own model and StaticCache in a loop written here, the whole step
  compiled and captured in a CUDA graph by hand (faster than its `generate`); prefill is eager.
* vllm: where installed; dummy weights, no prefix caching. Its peak is not told: it takes most
  of the card in advance, in a process of its own.

The bandwidth share is what a step has to read (weights without the input embedding, and the
visible cache at its mean length) / seconds of a step / the datasheet's bandwidth. Target on one
H200 at batch 1: 245 tokens/s, 85 % of what the card copies (4.3 of 4.8 TB/s), a share of 0.77.
Predictions: at batch 1 transformers-static 0.82 of ours and vllm 0.98 (as 166, 200 and 203
tokens/s on an H200 before there was a tool); vllm leads from batch 64 on.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import arms
import measuring
from efficientllm import clock
from efficientllm.catalog.shape import Shape
from efficientllm.cost import cache_read_bytes
from efficientllm.device import CAPTURE_CALLS, Device
from efficientllm.models.huggingface import published_config
from efficientllm.models.language_model import face
from efficientllm.parameters import parameters
from efficientllm.predict import shape_of
from efficientllm.record import Unsupported
from efficientllm.spec.case import Case, Point
from efficientllm.spec.model import model_from_name
from efficientllm.spec.workload import Generate
from efficientllm.workloads import compiling
from efficientllm.workloads.batches import prompts
from efficientllm.workloads.graphs import captured
from efficientllm.workloads.text import read_corpus
from efficientllm.workloads.vocabulary import vocabulary_of

COLUMNS = [
    arms.Column("per user", "per_user", ",.1f"),
    arms.Column("bandwidth share", "bandwidth_share", ".3f"),
    arms.Column("single token (ms)", "first_token_ms", ",.1f"),
    arms.Column("peak GiB", "peak_gib", ".1f"),
    arms.Column("first request (s)", "first_step_s", ".1f"),
]


class Setup(NamedTuple):
    """What all arms are to do, and where."""

    case: Case
    point: Point
    new: int
    shape: Shape
    device: Device
    out: Path


class Server(NamedTuple):
    """Answers all prompts, with one token each or with all that are asked for."""

    single: Callable[[], Any]
    whole: Callable[[], Any]
    what: str
    elsewhere: bool = False  # another process works for this one, whose device tells nothing


def setup(args: argparse.Namespace, batch: int) -> Setup:
    """The case that all arms do."""
    workload = {"kind": "generate", "new_tokens": args.new, "data": args.text or "stdlib"}
    workload["points"] = {"batch": batch, "context": args.context}
    model = {**model_from_name(args.model), "tokenizer": args.tokenizer}
    case = Case.model_validate({"model": model, "technique": "bf16", "workload": workload})
    shape = shape_of(case)
    if shape is None or not shape.published:
        raise Unsupported(f"{args.model}: not a dense shape that all arms know")
    return Setup(case, case.points[0], args.new, shape, measuring.device(), args.out)


def ours(to: Setup) -> Server:
    """The tool's own work."""
    made, work = measuring.work_of(to.case, to.out / "vocabulary")
    how = ", ".join(f"{key} {made.resolved[key]}" for key in ("compile", "attention", "graph"))
    return Server(partial(work.unit, "prefill"), partial(work.unit, "request"), how)


def transformers_static(to: Setup) -> Server:
    """transformers' model and static cache in a plain loop."""
    model = measuring.published(to.shape, torch.bfloat16, to.device).eval().requires_grad_(False)
    seen, (batch, context) = face(model), to.point
    tokens = _prompts(to).to(to.device.torch)
    with torch.inference_mode():
        cache = seen.new_cache(batch, -(-(context + to.new + CAPTURE_CALLS) // 64) * 64)
        token, slot = tokens[:, -1:].clone(), tokens.new_full((1,), context)
    decode = seen.decode if to.device.is_cpu else compiling.compiled(seen.decode)
    replay: list[Callable[[], None]] = []

    def step() -> None:
        token.copy_(decode(token, slot, cache).argmax(dim=-1, keepdim=True))
        slot.add_(1)

    @torch.inference_mode()
    def answer(new: int) -> None:
        if not replay:
            replay.append(captured(step, "the decode step") if to.device.graphs else step)
        token.copy_(seen.prefill(tokens, cache).argmax(dim=-1, keepdim=True))
        slot.fill_(context)
        for _ in range(new - 1):
            replay[0]()

    how = "eager" if to.device.is_cpu else "step compiled and captured"
    return Server(partial(answer, 1), partial(answer, to.new), how)


def vllm(to: Setup) -> Server:
    """vLLM's offline engine."""
    if importlib.util.find_spec("vllm") is None:
        raise Unsupported("not installed")
    engines = importlib.import_module("vllm")
    folder = str(to.out / f"config-{to.shape.name}")
    published_config(to.shape).save_pretrained(folder)
    options = {"load_format": "dummy", "skip_tokenizer_init": True, "dtype": "bfloat16"}
    options |= {"max_model_len": to.point.context + to.new, "max_num_seqs": to.point.batch}
    engine = engines.LLM(model=folder, enable_prefix_caching=False, seed=0, **options)
    asked = [{"prompt_token_ids": row} for row in _prompts(to).tolist()]

    def answer(new: int) -> None:
        greedy = {"temperature": 0.0, "ignore_eos": True, "detokenize": False}
        sampling = engines.SamplingParams(max_tokens=new, **greedy)
        engine.generate(asked, sampling, use_tqdm=False)

    how = f"vllm {engines.__version__}"
    return Server(partial(answer, 1), partial(answer, to.new), how, elsewhere=True)


def _prompts(to: Setup) -> Tensor:
    """The tool's own prompts [B, T], on the host."""
    assert isinstance(to.case.workload, Generate)
    cache = str(to.out / "vocabulary")
    words = vocabulary_of(to.case.model, to.shape.vocab, parent="", cache=cache)
    return prompts(read_corpus(to.case.workload.data, "train"), words, *to.point, 0)


def measure(build: Callable[[Setup], Server], args: argparse.Namespace, batch: int) -> arms.Result:
    """Time --steps whole requests and as many with a single token; the rest is decode."""
    to, (product, peak) = setup(args, batch), measuring.card()
    server = build(to)
    line = clock.HostTimeline() if server.elsewhere else clock.timeline(to.device.torch)
    found = measuring.timed(server.whole, line, args)
    _, single = measuring.window(server.single, line, args.steps)
    first, whole = statistics.median(single), statistics.median(found["unit_s"])
    step, head = (whole - first) / (args.new - 1), to.shape.vocab * to.shape.hidden
    read = batch * cache_read_bytes(to.shape, args.context + args.new / 2)
    read += 2 * (parameters(to.shape).products + head)
    work = f"{to.shape.name}, batch {batch}, {args.context} in, {args.new} out, random weights"
    return found | {
        "where": f"{product}, torch {torch.__version__}, {work}",
        "what": server.what,
        "tokens_per_s": batch / step,
        "per_user": 1 / step,
        "bandwidth_share": None if peak is None else read / step / peak.bytes_per_s,
        "first_token_ms": first * 1e3,
        "peak_gib": None if server.elsewhere else found["peak_gib"],
        "single_s": single,
    }


ARMS = {"ours": ours, "transformers-static": transformers_static, "vllm": vllm}


def main() -> None:
    """Compare the arms at every batch."""
    parser = arms.parser(__doc__ or "", list(ARMS), "decode")
    parser.add_argument("--model", default="Llama-3.1-8B", help="a catalog shape or backbone")
    parser.add_argument("--batch", default="1,16", help="sequences at once; a comma list")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens of an answer, at least 2")
    args = parser.parse_args()
    batches = [int(word) for word in args.batch.split(",")]
    arms.compare(args, {n: partial(measure, build) for n, build in ARMS.items()}, batches, COLUMNS)


if __name__ == "__main__":
    main()
