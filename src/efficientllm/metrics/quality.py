"""Quality and size: what was kept and how small it became."""

from __future__ import annotations

import math

from efficientllm.metrics.view import Unmeasured, Value, View
from efficientllm.record import Record, Scores
from efficientllm.spec.workload import Training

MAX_NATS = 700.0
"""exp() of more is beyond what a float holds."""


def _scores(view: View) -> Scores | Unmeasured:
    if view.record.scores is not None:
        return view.record.scores
    return view.note("quality", default="the trial ended before quality was measured")


def perplexity(view: View) -> Value:
    """exp(mean negative log-likelihood per token) on held-out text; one tokenizer only."""
    scores = _scores(view)
    if isinstance(scores, Unmeasured):
        return scores
    tokens = sum(scores.tokens)
    if not tokens:
        return Unmeasured("no held-out token was scored")
    mean = sum(scores.nll) / tokens
    if mean > MAX_NATS:
        return Unmeasured(f"{mean:.3g} nats a token: there is no number for its exponential")
    return math.exp(mean)


def bits_per_byte(view: View) -> Value:
    """Negative log-likelihood / (ln 2 x UTF-8 bytes) on held-out text; any tokenizer."""
    scores = _scores(view)
    if isinstance(scores, Unmeasured):
        return scores
    size = sum(scores.bytes)
    if not size:
        return Unmeasured("no held-out byte was scored")
    return sum(scores.nll) / (math.log(2) * size)


NOT_DECLARED = Unmeasured("NOT_TRAINED: the case declares no steps or tokens")


def _declared_steps(view: View) -> int | None:
    """Optimizer steps that a training case declares, if it declares any."""
    workload = view.case.workload
    return workload.budget_steps if isinstance(workload, Training) else None


def final_loss(view: View) -> Value:
    """Mean training loss of the last tenth of the declared steps."""
    losses = view.record.losses
    if not losses:
        return Unmeasured("no step was trained")
    if _declared_steps(view) is None:
        return NOT_DECLARED
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def tokens_per_param(view: View) -> Value:
    """Tokens trained without padding (declared steps x mean of the window) / total parameters.

    A model as good as its compute allows takes about 20 (Hoffmann et al. 2022, arXiv
    2203.15556).
    """
    steps = _declared_steps(view)
    if steps is None:
        return NOT_DECLARED
    window, total = view.window("step"), total_params(view)
    if isinstance(window, Unmeasured):
        return window
    if isinstance(total, Unmeasured):
        return total
    tokens = window.counts.get("tokens")
    if tokens is None:
        return Unmeasured("the step window counts no tokens")
    return steps * tokens / window.units / total


def most_tokens_per_param(view: View) -> Value:
    """The same with whole rows, for a training too short to have a window: it has no padding."""
    steps, total = _declared_steps(view), total_params(view)
    if steps is None:
        return NOT_DECLARED
    if isinstance(total, Unmeasured):
        return total
    return steps * view.point.batch * view.point.context / total


def other_text(a: Record, b: Record) -> str:
    """Why two scores are not of the same text in the same way; empty where they are."""
    one, two = a.scores, b.scores
    if one is None or two is None:
        return ""
    if one.text_sha256 != two.text_sha256 or one.bytes != two.bytes:
        return "scored on different text"
    contexts = [(record.case.get("quality") or {}).get("sequence_length") for record in (a, b)]
    return "scored with different context" if contexts[0] != contexts[1] else ""


def quality_retained(view: View) -> Value:
    """Bits per byte of the reference / own bits per byte (1: as good as the reference)."""
    own = bits_per_byte(view)
    if isinstance(own, Unmeasured):
        return own
    if view.reference is None:
        return Unmeasured("no uncompressed row of the same model to compare with")
    reference = bits_per_byte(view.reference)
    if isinstance(reference, Unmeasured):
        return reference
    other = other_text(view.record, view.reference.record)
    if other:
        return Unmeasured(f"beside the uncompressed row {other}")
    return reference / own if own else Unmeasured("nothing is divided by 0 bits per byte")


def mcr(view: View) -> Value:
    """Size ratio x task score / task score of the reference (the paper's MCR)."""
    return Unmeasured("no task score was measured, and perplexity is not one")


def size_ratio(view: View) -> Value:
    """Bytes of the unquantized model in bf16 / bytes held, scales and zero points included."""
    build = view.record.build
    if build is None or build.reference_bytes is None:
        return Unmeasured("no model was built")
    return build.reference_bytes / sum(build.bytes_by_kind.values())


def size_ratio_disk(view: View) -> Value:
    """Bytes of the unquantized model in bf16 / bytes of the model's file, metadata included."""
    build = view.record.build
    if build is None or build.reference_bytes is None:
        return Unmeasured("no model was built")
    if not build.disk_bytes:
        return Unmeasured("the model was too large to be serialized for this")
    return build.reference_bytes / build.disk_bytes


def bits_per_param(view: View) -> Value:
    """Bits held / logical parameters of the unquantized model."""
    build = view.record.build
    if build is None:
        return Unmeasured("no model was built")
    return 8 * sum(build.bytes_by_kind.values()) / build.total_params


def _parameters(view: View, name: str) -> Value:
    build = view.record.build
    return float(getattr(build, name)) if build else Unmeasured("no model was built")


def total_params(view: View) -> Value:
    """All parameters, a tied table once, adapters included."""
    return _parameters(view, "total_params")


def trainable_params(view: View) -> Value:
    """Parameters that learn."""
    return _parameters(view, "trainable_params")


def active_params(view: View) -> Value:
    """Parameters that one token passes through (fewer than all in a mixture of experts)."""
    return _parameters(view, "active_params")
