"""Validity: what may be wrong with a number, found in the record itself.

`invalid` values stay in the store and on the page and are never ranked. `warn` is for the
reader to weigh. `info` says under which condition a number holds. What the meters saw is
judged in `metering`, the work and its conditions here.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import get_args

from efficientllm.analysis import metering
from efficientllm.analysis.flag import Flag
from efficientllm.analysis.stats import autocorrelation
from efficientllm.cost import cache_bytes
from efficientllm.matching import NEAR
from efficientllm.metrics import BY_KEY, Unmeasured, View
from efficientllm.metrics.energy import window_energy
from efficientllm.metrics.memory import cache_slots
from efficientllm.metrics.quality import most_tokens_per_param
from efficientllm.record import Status, Window
from efficientllm.spec.protocol import Protocol
from efficientllm.spec.workload import Training

__all__ = ["Flag", "flags"]

OPTIMAL_TOKENS_PER_PARAM = 20
"""Hoffmann et al. 2022, arXiv 2203.15556."""

REPEATS_AS_NEW = 4
"""Readings of a text that teach almost as new text does: Muennighoff et al. 2023, 2305.16264."""


def flags(view: View) -> list[Flag]:
    """Everything to be said about a point of a record."""
    return [flag for check in _CHECKS for flag in check(view)]


def _windows(view: View) -> list[Window]:
    return [window for window in view.point.windows if window.units]


def _window_lengths(view: View) -> Iterator[Flag]:
    limits = Protocol.model_validate(view.record.protocol).limits
    for window in _windows(view):
        if window.name == "request":
            continue
        if window.units < limits.min_units or window.seconds < 0.98 * limits.min_seconds:
            yield Flag(
                "WINDOW_SHORT",
                "warn",
                "all",
                f"{window.name}: {window.units} units in {window.seconds:.3g} s; the profile asks"
                f" for {limits.min_units} and {limits.min_seconds:g} s",
            )
    main = view.main_window
    energy = window_energy(view, main)
    if isinstance(main, Window) and not isinstance(energy, Unmeasured):
        wanted = max(10.0, limits.energy_seconds)
        if main.seconds < 0.98 * wanted:
            text = f"{main.seconds:.3g} s; a decision needs {wanted:g} s"
            yield Flag("ENERGY_SHORT", "warn", "energy", text)


def _left_out(view: View) -> Iterator[Flag]:
    if view.point.left_out:
        text = "; ".join(f"{name}: {reason}" for name, reason in view.point.left_out.items())
        yield Flag("WINDOW_LEFT_OUT", "warn", "all", text)


def _steadiness(view: View) -> Iterator[Flag]:
    loose = [w.name for w in _windows(view) if not w.converged]
    if loose:
        text = f"{', '.join(loose)}: two blocks never agreed within 2 % before the window began"
        yield Flag("WARMUP_NOT_CONVERGED", "warn", "all", text)
    for window in _windows(view):
        r1 = autocorrelation(window.unit_s)
        if r1 is not None and abs(r1) > 0.3 and window.units >= 30:
            text = f"{window.name}: neighbouring units are alike (r = {r1:.2f}); blocks are used"
            yield Flag("AUTOCORRELATED", "info", "all", text)


def _compilation(view: View) -> Iterator[Flag]:
    again = sum(window.recompiles for window in view.point.windows)
    if again:
        text = f"{again} graphs were compiled inside a steady window"
        yield Flag("RECOMPILE", "invalid", "all", text)
    breaks = view.point.compilation.get("graph_breaks", 0)
    if breaks:
        text = f"{breaks} graph breaks: part of the model ran without compilation"
        yield Flag("COMPILE_PARTIAL", "warn", "all", text)


def _clocks_agree(view: View) -> Iterator[Flag]:
    for window in _windows(view):
        device = sum(window.unit_s)
        if device and abs(window.seconds - device) > 0.05 * window.seconds:
            text = (
                f"{window.name}: {device:.3g} s on the device, {window.seconds:.3g} s on the host"
            )
            yield Flag("HOST_BOUND", "warn", "all", text)


def _requests_add_up(view: View) -> Iterator[Flag]:
    """One request against its parts: between the sum of their medians and that of their means.

    Now and then a step is slow. A request has its share of such steps, which the median of
    single steps hides and their mean may overstate.
    """
    windows = {window.name: window for window in _windows(view)}
    if not {"request", "prefill", "decode"} <= windows.keys():
        return
    steps = int(view.record.case["workload"]["new_tokens"]) - 1
    seen, prefill, decode = (windows[name].unit_s for name in ("request", "prefill", "decode"))
    whole = statistics.median(seen)
    low, high = sorted(
        middle(prefill) + steps * middle(decode) for middle in (statistics.median, statistics.fmean)
    )
    if not 0.95 * low <= whole <= 1.05 * high:
        text = f"a whole request took {whole:.4g} s, its parts add up to {low:.4g} to {high:.4g} s"
        yield Flag("REQUEST_MISMATCH", "warn", "all", text)


def _impossible(view: View) -> Iterator[Flag]:
    for key in ("mfu", "mbu"):
        value = BY_KEY[key](view)
        if not isinstance(value, Unmeasured) and value > 1.0:
            yield Flag("IMPOSSIBLE", "invalid", "all", f"{key} is {value:.2f}; above 1 is an error")


def _allocator(view: View) -> Iterator[Flag]:
    retries = view.point.memory.get("alloc_retries")
    if retries:
        text = f"the allocator had to free its cache and try again {retries} times"
        yield Flag("OOM_RETRY", "warn", "all", text)


def _reach(view: View) -> Iterator[Flag]:
    build = view.record.build
    if build is None:
        return
    for reach in build.reach:
        share = reach.parameters / build.total_params
        if reach.technique.startswith("int") and share < 0.5:
            text = f"{reach.technique} reached {share:.0%} of the parameters"
            yield Flag("REACH_LOW", "warn", "all", text)


def _cache_size(view: View) -> Iterator[Flag]:
    measured = BY_KEY["kv_bytes_per_token"](view)
    if view.shape is None or view.shape.custom or isinstance(measured, Unmeasured):
        return
    element = 4 if view.record.resolved.get("activations") == "float32" else 2
    slots = cache_slots(view)
    expected = cache_bytes(view.shape, slots, element) / slots
    if expected and abs(measured - expected) > 0.05 * expected:
        text = f"{measured:.0f} bytes of cache a token, the formula gives {expected:.0f}"
        yield Flag("CACHE_SIZE", "warn", "all", text)


def _undertrained(view: View) -> Iterator[Flag]:
    """Pretraining far from compute-optimal ranks models by how fast they begin to learn."""
    if view.stage != "pretrain" or view.point.outcome.status != "ok":
        return
    tokens = BY_KEY["tokens_per_param"](view)
    if isinstance(tokens, Unmeasured):
        tokens = most_tokens_per_param(view)
    if isinstance(tokens, float) and tokens < OPTIMAL_TOKENS_PER_PARAM:
        text = (
            f"{tokens:.2g} tokens per parameter; a compute-optimal training takes about"
            f" {OPTIMAL_TOKENS_PER_PARAM}, and what is better early need not be better then"
        )
        yield Flag("UNDERTRAINED", "warn", "quality", text)


def _repeated_text(view: View) -> Iterator[Flag]:
    """What is read again and again is learned by heart, and tokens then count for less."""
    epochs = view.record.resolved.get("epochs")
    if view.stage == "pretrain" and isinstance(epochs, float) and epochs > REPEATS_AS_NEW:
        text = (
            f"the text was read {epochs:.3g} times; beyond {REPEATS_AS_NEW} tokens count for less"
        )
        yield Flag("REPEATED_TEXT", "warn", "quality", text)


def _not_scored(view: View) -> Iterator[Flag]:
    """A training whose held-out text could not be scored: it was asked for, and is missing."""
    workload, note = view.case.workload, str(view.record.notes.get("quality", ""))
    asked = isinstance(workload, Training) and workload.budgeted and view.case.quality
    if asked and view.record.scores is None and note.partition(":")[0] in get_args(Status):
        yield Flag("NOT_SCORED", "warn", "quality", f"held-out text was not scored: {note}")


def _match_residual(view: View) -> Iterator[Flag]:
    """A feed-forward that was resized to make variants equal, and does not where this one works."""
    left = view.record.resolved.get("match_residual")
    if isinstance(left, float) and abs(left) > NEAR:
        model = view.record.case["model"]
        text = f"match: {model['match']} left {left:+.1%} over at the length of this row"
        yield Flag("MATCH_RESIDUAL", "info", "all", text)


def _conditions(view: View) -> Iterator[Flag]:
    record = view.record
    build = record.build
    if build is not None and build.weights == "random" and view.stage != "pretrain":
        text = "random weights: cost only, no quality"
        yield Flag("COST_ONLY", "info", "quality", text)
    if record.notes.get("quality", "").startswith("NOT_TRAINED"):
        yield Flag("NOT_TRAINED", "info", "quality", record.notes["quality"])
    if not Protocol.model_validate(record.protocol).ranked:
        yield Flag("SMOKE", "warn", "all", "a smoke run shows that it works, never how fast")
    if record.software.get("commit", "").endswith("-dirty"):
        yield Flag("UNCOMMITTED", "info", "all", "measured with code that is in no commit")
    if "resumed" in record.notes:
        text = f"{record.notes['resumed']}: windows and meters are of the last process only"
        yield Flag("RESUMED", "warn", "all", text)
    if record.declared_peak is not None:
        text = f"peaks as declared: {record.declared_peak.get('source', 'no source')}"
        yield Flag("PEAK_DECLARED", "info", "all", text)
    if view.case.custom:
        text = "a technique of somebody's own: shown, not ranked among built-in ones"
        yield Flag("CUSTOM_CODE", "warn", "all", text)
    yield from _own_attention(view)
    if record.case.get("model", {}).get("allow_code"):
        yield Flag("REMOTE_CODE", "warn", "all", "ran Python code that came with the checkpoint")


def _own_attention(view: View) -> Iterator[Flag]:
    """What examining an attention from a user's file found, just before it was measured."""
    own, build = view.case.own_attention, view.record.build
    if own is None or build is None:
        return
    examined = build.attention
    if examined is None or not examined.findings:
        text = f"{own.name}: nobody has examined it; shown, not ranked"
        yield Flag("CUSTOM_UNCHECKED", "warn", "all", text)
    elif examined.failed:
        text = "; ".join(f"{f.name}: {f.seen}" for f in examined.failed)
        yield Flag("CUSTOM_CHECK_FAILED", "warn", "all", f"{own.name}: {text}; not ranked")
    else:
        passed = sum(finding.verdict == "passed" for finding in examined.findings)
        text = f"{own.name}: an attention of somebody's own; it passed {passed} checks"
        yield Flag("CUSTOM_ATTENTION", "info", "all", text)
    for finding in examined.findings if examined is not None else ():
        if finding.verdict == "unused":
            text = f"{own.name} {finding.seen}; not ranked under that name: {finding.advice}"
            yield Flag("POSITION_UNUSED", "warn", "all", text)


_CHECKS: tuple[Callable[[View], Iterator[Flag]], ...] = (
    _impossible,
    _compilation,
    _window_lengths,
    _left_out,
    _steadiness,
    _clocks_agree,
    _requests_add_up,
    *metering.CHECKS,
    _allocator,
    _reach,
    _cache_size,
    _undertrained,
    _repeated_text,
    _not_scored,
    _match_residual,
    _conditions,
)
