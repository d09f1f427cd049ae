"""A case: techniques applied to a model that runs a workload."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from efficientllm.spec.architecture import CustomAttention
from efficientllm.spec.canonical import Spec, digest, local
from efficientllm.spec.model import CatalogShape, Model, Product
from efficientllm.spec.technique import (
    TUNING,
    WEIGHTS,
    Custom,
    Lora,
    Techniques,
    label,
)
from efficientllm.spec.text import WholeText
from efficientllm.spec.workload import Finetune, Generate, Pretrain, Probe, Training, Workload


class Quality(Spec):
    """Held-out text on which perplexity and bits per byte are taken.

    Every token is scored once, with at least half of `sequence_length` before it where
    the document has that much.
    """

    data: WholeText | None = Field(
        None, description="null: the held-out part of the workload's data"
    )
    max_bytes: Annotated[int, Field(ge=1, le=1 << 40)] = 262_144
    sequence_length: Annotated[int, Field(ge=2, le=1 << 22)] | None = Field(
        None, description="null: the workload's, at most 2,048"
    )
    curve: Annotated[int, Field(ge=0, le=10_000)] = Field(
        0, description="scorings along a training's declared steps, later ones further apart"
    )


class Point(NamedTuple):
    """One (batch, context) of a trial. Training has exactly one: its batch and length."""

    batch: int
    context: int

    def __str__(self) -> str:
        return f"b{self.batch} c{self.context}"


def _printable(name: str) -> str:
    """Names are shown in terminals and pages: no control characters, no changes of direction."""
    if not name.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return name


class Case(Spec):
    """One thing to measure. Its name and labels are for people, its content is its identity."""

    name: Annotated[str, AfterValidator(_printable)] = local("", max_length=200)
    model: Model
    technique: Techniques = ()
    workload: Workload
    quality: Quality | None = Quality()

    @model_validator(mode="after")
    def _techniques_fit(self) -> Case:
        tuning = [t.kind for t in self.technique if isinstance(t, TUNING)]
        weights = [t.kind for t in self.technique if isinstance(t, WEIGHTS)]
        for group in (tuning, weights):
            if len(group) > 1:
                raise ValueError(f"technique: {' and '.join(group)} exclude each other")
        match self.workload:
            case Pretrain() if self.technique:
                raise ValueError("technique: pretraining starts from scratch and takes none")
            case Pretrain() if not hasattr(self.model, "tokenizer"):
                raise ValueError("model: pretraining takes a backbone or a catalog shape")
            case Probe(check="attention") if not hasattr(self.model, "attention"):
                raise ValueError("model: only a backbone's attention can be examined")
            case Finetune() if not tuning and not self.custom:
                raise ValueError("technique: finetune needs one of full, freeze, lora")
            case Finetune() if weights and not any(isinstance(t, Lora) for t in self.technique):
                raise ValueError(
                    f"technique: {weights[0]} weights cannot be trained; add +lora, or set"
                    " workload.precision"
                )
            case Generate() if tuning:
                raise ValueError(
                    f"technique: {tuning[0]} trains; generate from the product of a finetune case"
                )
            case _:
                return self

    @model_validator(mode="after")
    def _a_curve_is_of_declared_steps(self) -> Case:
        points = 0 if self.quality is None else self.quality.curve
        if not points:
            return self
        if not isinstance(self.workload, Training) or not self.workload.budgeted:
            raise ValueError("quality: a curve needs a training with steps or tokens")
        relative = isinstance(self.workload.tokens, str)
        steps = None if relative else self.workload.budget_steps
        if steps is not None and points > steps:
            raise ValueError(f"quality: a curve of {points} scorings does not fit {steps} steps")
        return self

    @cached_property
    def case_id(self) -> str:
        """SHA-256 of what is measured; the name, paths, protocol and machine stay outside."""
        return digest({k: getattr(self, k) for k in ("model", "technique", "workload", "quality")})

    @property
    def custom(self) -> bool:
        """Whether a technique of somebody's own is part of this case."""
        return any(isinstance(technique, Custom) for technique in self.technique)

    @property
    def own_attention(self) -> CustomAttention | None:
        """The attention from a user's file that the model is made with, if it is."""
        attention = getattr(self.model, "attention", None)
        return attention if isinstance(attention, CustomAttention) else None

    @property
    def points(self) -> tuple[Point, ...]:
        match self.workload:
            case Generate(points=grid):
                return tuple(Point(b, c) for c in grid.context for b in grid.batch)
            case Probe(check="attention"):
                return ()  # it is examined before anything would be measured
            case Probe():
                return (Point(1, 1),)
            case training:
                return (Point(training.batch, training.sequence_length),)

    def point_id(self, point: Point) -> str:
        """The case without its grid, plus the point: equal for equal work in any grid."""
        identity = {k: getattr(self, k) for k in ("model", "technique", "quality")}
        workload: Any = self.workload
        if isinstance(workload, Generate):
            workload = workload.model_copy(update={"points": Generate().points})
        return digest(identity | {"workload": workload, "point": list(point)})

    @property
    def technique_label(self) -> str:
        return label(self.technique)

    @property
    def stage(self) -> str:
        """The stage of a model's life: pretrain, finetune, generate or probe."""
        return self.workload.kind

    @property
    def random_weights(self) -> bool:
        """Whether the model starts from weights that nobody trained."""
        return isinstance(self.model, CatalogShape) or (
            not isinstance(self.model, Product) and self.model.kind == "backbone"
        )

    @property
    def makes_product(self) -> bool:
        """Whether a trial of this case leaves trained weights behind.

        No configuration rebuilds an attention from a user's file, so its weights are not kept.
        """
        training = isinstance(self.workload, Pretrain | Finetune) and self.workload.budgeted
        return training and self.own_attention is None
