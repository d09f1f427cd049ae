"""What two rows did: work that must be equal, and conditions that may differ and are stated.

Unequal work is never compared. Conditions are of two kinds. Some only have to be known when
a ratio is read (software, micro-batch, protocol). Others move the very number that a variant
is said to move: a ratio between a bf16 and a float32 training says nothing about the
attentions in them, and neither does bits per byte after two recipes. The learning rate is no
part of a recipe, because every variant may need one of its own (`sweep`).
"""

from __future__ import annotations

from efficientllm.analysis.table import Row
from efficientllm.spec.canonical import digest
from efficientllm.spec.workload import AdamW, Generate, Training


def unequal_work(a: Row, b: Row) -> list[str]:
    """What differs in tokens, lengths or tokens a step; empty when the work is equal."""
    if a.case.stage != b.case.stage:
        return [f"{a.case.stage} against {b.case.stage}"]
    found = []
    one, two = a.views[0].point, b.views[0].point
    for name, x, y in (
        ("batch", one.batch, two.batch),
        ("context", one.context, two.context),
        *_fields(a, b),
    ):
        if x != y:
            found.append(f"{name} {x} against {y}")
    return found


def _fields(a: Row, b: Row) -> list[tuple[str, object, object]]:
    x, y = a.case.workload, b.case.workload
    if isinstance(x, Generate) and isinstance(y, Generate):
        return [("new_tokens", x.new_tokens, y.new_tokens)]
    if isinstance(x, Training) and isinstance(y, Training):
        return [
            ("steps", x.budget_steps, y.budget_steps),
            ("layout", a.record.resolved.get("layout"), b.record.resolved.get("layout")),
            ("text", a.record.resolved.get("text_sha256"), b.record.resolved.get("text_sha256")),
        ]
    return []


def training_precision(row: Row) -> str:
    """In which types a row was trained; nothing where it was not."""
    workload = row.case.workload
    return workload.precision.said if isinstance(workload, Training) else ""


def unlike(a: Row, b: Row) -> list[str]:
    """Of technique and training precision what differs: then a cost says nothing of a variant."""
    return [
        f"{name} {x} against {y}"
        for name, x, y in (
            ("technique", a.case.technique_label, b.case.technique_label),
            ("training precision", training_precision(a), training_precision(b)),
        )
        if x != y
    ]


def other_recipes(a: Row, b: Row) -> str:
    """Why a difference in quality would be the recipe's and not the model's; empty if it is not.

    Of one model and technique the recipe itself is what is compared.
    """
    one, two = (digest({"model": r.case.model, "technique": r.case.technique}) for r in (a, b))
    found = [] if one == two else _changed(_recipe(a), _recipe(b))
    return "trained by different recipes: " + "; ".join(found) if found else ""


def training_conditions(a: Row, b: Row) -> list[str]:
    """What differs in how two rows were trained."""
    return _changed(_recipe(a) | _free(a), _recipe(b) | _free(b))


def _free(row: Row) -> dict[str, object]:
    """What a training may choose without being another recipe: its rate, how loss is computed."""
    workload = row.case.workload
    if not isinstance(workload, Training):
        return {}
    return {"optimizer.lr": workload.optimizer.lr, "loss": row.record.resolved.get("loss")}


def _recipe(row: Row) -> dict[str, object]:
    """How a row was trained, but for its learning rate, by the keys that set it."""
    workload = row.case.workload
    if not isinstance(workload, Training):
        return {}
    names = (name for name in AdamW.model_fields if name != "lr")
    optimizer = {f"optimizer.{name}": getattr(workload.optimizer, name) for name in names}
    return {"training precision": workload.precision.said} | optimizer


def _changed(one: dict[str, object], two: dict[str, object]) -> list[str]:
    names = dict.fromkeys((*one, *two))
    return [f"{k}: {one.get(k)} -> {two.get(k)}" for k in names if one.get(k) != two.get(k)]


def conditions(a: Row, b: Row) -> list[str]:
    """What differs and is allowed to, stated so that nobody takes it for the technique."""
    x, y = a.record, b.record
    points = a.views[-1].point, b.views[-1].point
    settled = {
        name: (x.resolved.get(key), y.resolved.get(key))
        for name, key in (("attention kernel", "attention"), ("compile", "compile"))
    }
    of_run = {
        "machine": (x.machine.name, y.machine.name),
        "micro-batch": (x.resolved.get("micro_batch"), y.resolved.get("micro_batch")),
        "a step in one CUDA graph": tuple(bool(r.resolved.get("graph")) for r in (x, y)),
        "a prefill in one CUDA graph": tuple("prefill" in point.captured for point in points),
        "data selection": (_selection(a), _selection(b)),
        "protocol": (x.protocol["profile"], y.protocol["profile"]),
    }
    found = [f"{k}: {one} -> {two}" for k, (one, two) in (of_run | settled).items() if one != two]
    versions = [
        f"{k} {x.software.get(k)} -> {y.software.get(k)}"
        for k in sorted({*x.software, *y.software} - {"commit", "source", "kernel"})
        if x.software.get(k) != y.software.get(k)
    ]
    return training_conditions(a, b) + found + versions


def _selection(row: Row) -> str:
    """What of the text is trained on, and in which sequence."""
    said = str(getattr(getattr(row.case.workload, "data", None), "said", "none"))
    kept = row.record.resolved.get("selection", {}).get("kept", {}).get("documents")
    return said if kept is None else f"{said} ({kept:,} documents)"
