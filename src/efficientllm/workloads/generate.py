"""Generation: prefill and decode, measured apart, and whole requests as the check.

Prefill is bound by compute and decode by memory, and an energy counter that ticks every
100 ms cannot divide one request between them. So each is repeated in a window of its own:
prefill over the same prompts, decode step by step from a filled cache, starting over when
the requested length is reached. A request is then prefill plus (new_tokens - 1) decode
steps; a short window of whole requests checks that sum.

Greedy: the next token is the most likely one, chosen on the device, so Python never
waits. On CUDA the decode step is compiled and captured in one graph, and so is a prefill that
is so small that it waits for Python.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from efficientllm.device import CAPTURE_CALLS, Device, free_cached, to_device
from efficientllm.models.language_model import LanguageModel
from efficientllm.record import PointResult
from efficientllm.spec.case import Point
from efficientllm.spec.workload import Generate as Spec
from efficientllm.workloads import compiling
from efficientllm.workloads.graphs import captured


class Generate:
    """The work of one point of a generate case."""

    windows = ("prefill", "decode", "request")
    brief = frozenset({"request"})
    settling = 0
    budget = None

    def __init__(
        self,
        face: LanguageModel,
        prompts: Tensor,
        spec: Spec,
        point: Point,
        device: Device,
        *,
        compile_model: bool,
        graph: bool,
        prefill_graph: bool = False,
        compile_choice: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        self._face, self._device, self._point = face, device, point
        self._new_tokens = spec.new_tokens
        self._prompts = to_device(prompts, device)
        self._length = point.context + spec.new_tokens
        face.refuse_beyond(self._length)
        with torch.inference_mode():
            self._cache = face.new_cache(point.batch, -(-self._length // 64) * 64)
            self._token = self._prompts[:, -1:].clone()
            self._slot = torch.full((1,), point.context, device=device.torch, dtype=torch.long)
        self._decode = (
            compiling.compiled(face.decode, options=options) if compile_model else face.decode
        )
        self._choose = compiling.compiled(most_likely) if compile_choice else most_likely
        self._graph, self._prefill_graph = graph, prefill_graph
        self._replay: Callable[[], None] | None = None
        self._replay_prefill: Callable[[], None] | None = None
        self._position = point.context
        self._visible: list[int] = []
        self._generated: list[Tensor] = []

    @torch.inference_mode()
    def unit(self, window: str) -> None:
        """One prefill of all prompts, one decode step, or one whole request."""
        match window:
            case "prefill":
                self._prefill()
            case "decode":
                self._decode_step()
            case _:
                self._request()

    def check(self) -> None:
        """Greedy choices are integers; there is nothing that could be not finite."""

    def counts(self, window: str, units: int) -> dict[str, float]:
        """Raw totals: tokens put out, prompt tokens read, cached tokens read by decode.

        With what a user's own attention states of its FLOPs and of the bytes that it reads.
        """
        batch, context = self._point
        prompt = float(batch * context * units)
        match window:
            case "prefill":
                counts = {"prompt_tokens": prompt, "tokens": float(batch * units)}
                cost = self._face.attention_cost(context, 0)
                return counts | ({"attention_flops": batch * units * cost.flops} if cost else {})
            case "decode":
                visible = self._visible[len(self._visible) - units :]
                counts = {
                    "tokens": float(batch * units),
                    "cache_reads": float(batch * sum(visible)),
                }
                costs = [self._face.attention_cost(1, seen - 1) for seen in visible]
                read = [cost.read for cost in costs if cost is not None]
                told = bool(read) and len(read) == len(visible)  # a part would pass for the whole
                return counts | ({"cache_read_bytes": batch * sum(read)} if told else {})
            case _:
                tokens = float(batch * units * self._new_tokens)
                return {
                    "prompt_tokens": prompt,
                    "tokens": tokens,
                    "requests": float(batch * units),
                }

    def compilations(self) -> int:
        return compiling.compilations()

    def holdings(self) -> dict[str, int]:
        """Bytes of the cache as it was allocated."""
        tensors = self._face.cache_tensors(self._cache)
        return {"kv_cache": sum(t.numel() * t.element_size() for t in tensors)}

    @torch.inference_mode()
    def result(self, result: PointResult) -> PointResult:
        """Add the digest of one request's tokens: equal trials must give equal text.

        Not where requests were too slow to be made. And what was captured.
        """
        graphs = {"prefill": self._replay_prefill, "decode": self._replay}
        names = tuple(name for name, replay in graphs.items() if replay is not None)
        result = result.model_copy(update={"captured": names})
        if not self._generated:
            return result
        text = torch.cat(self._generated, dim=1).cpu().numpy().tobytes()
        return result.model_copy(update={"output_sha256": hashlib.sha256(text).hexdigest()})

    def close(self) -> None:
        """Free the cache and the graph's memory pool."""
        self._replay = self._replay_prefill = None
        self._generated.clear()
        del self._cache, self._decode
        compiling.reset()
        free_cached()

    def _request(self) -> None:
        """One whole request. The first, which is in no window, keeps the tokens it puts out."""
        first = not self._generated
        self._capture_once()
        self._prefill()
        for step in range(self._new_tokens):
            if step:
                self._decode_step()
            if first:
                self._generated.append(self._token.clone())

    def _prefill(self) -> None:
        if self._prefill_graph and self._replay_prefill is None:
            self._replay_prefill = captured(self._fill, "the prefill")
        (self._replay_prefill or self._fill)()
        self._position = self._point.context

    def _fill(self) -> None:
        logits = self._face.prefill(self._prompts, self._cache)
        self._token.copy_(self._choose(logits))
        self._slot.fill_(self._point.context)

    def _decode_step(self) -> None:
        if self._position >= self._point.context + self._new_tokens - 1:
            self._slot.fill_(self._point.context)
            self._position = self._point.context
        self._capture_once()
        if self._replay is not None:
            self._replay()
        else:
            self._step()
        self._position += 1
        self._visible.append(self._position)

    def _capture_once(self) -> None:
        """Put the decode step into a graph; what that writes is written again before it is read."""
        if self._graph and self._replay is None:
            # Capturing runs the step CAPTURE_CALLS times, each one slot further.
            self._slot.fill_(min(self._position, self._length - CAPTURE_CALLS))
            self._replay = captured(self._step, "the decode step")
            self._slot.fill_(self._position)

    def _step(self) -> None:
        logits = self._decode(self._token, self._slot, self._cache)
        self._token.copy_(self._choose(logits))
        self._slot.add_(1)


def most_likely(logits: Tensor) -> Tensor:
    """The index [B, 1] of the largest of each row of logits [B, V], the first among equals.

    In two steps where V can be divided: one search through 150,000 numbers is the work of a
    single program, and takes a GPU 30 microseconds.
    """
    width = logits.shape[-1]
    part = next((n for n in range(1024, 127, -1) if width % n == 0), width)
    if part == width:
        return logits.argmax(dim=-1, keepdim=True)
    parts = logits.unflatten(-1, (-1, part))
    best = parts.amax(dim=-1).argmax(dim=-1, keepdim=True)
    row = parts.take_along_dim(best.unsqueeze(-1), dim=1).squeeze(1)
    return best * part + row.argmax(dim=-1, keepdim=True)
