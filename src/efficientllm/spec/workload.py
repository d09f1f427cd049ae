"""Which work: training steps, or prompts answered token by token.

Fields called `auto` are settled on the machine that runs the case and stand in the
record under `resolved`; a value written here instead is part of the case's identity.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from efficientllm.spec.canonical import Many, Spec, local
from efficientllm.spec.text import StandardLibrary, Text, WholeText, of_no_kind

DType = Literal["float32", "bf16", "fp16"]
AttentionBackend = Literal["auto", "flash4", "cudnn", "flash", "efficient", "math"]
Count = Annotated[int, Field(ge=1, le=1 << 20)]
Length = Annotated[int, Field(ge=2, le=1 << 22)]


MAX_TOKENS = 10**14


def _number_or_per_parameter(value: Any) -> Any:
    """One rule with one message, where a union of types would give one for each of them."""
    number = isinstance(value, int) and not isinstance(value, bool)
    if number and 1 <= value <= MAX_TOKENS:
        return value
    per_parameter = isinstance(value, str) and re.fullmatch(r"\d{1,6}(\.\d{1,6})?x", value)
    if per_parameter and float(value[:-1]) > 0:
        return value
    raise ValueError(
        f"needs a number of tokens from 1 to 10^14, or 20x for 20 tokens per parameter"
        f" (got {value!r:.40})"
    )


Tokens = Annotated[int | str, BeforeValidator(_number_or_per_parameter)]


def _number_or_word(value: Any) -> Any:
    number = isinstance(value, int) and not isinstance(value, bool)
    if value in ("auto", "fit") or (number and value >= 1):
        return value
    raise ValueError(f"needs a number of sequences from 1, or auto or fit (got {value!r:.40})")


MicroBatch = Annotated[Count | Literal["auto", "fit"], BeforeValidator(_number_or_word)]


class Precision(Spec):
    """Training precision: what is held, what is multiplied, what the optimizer keeps."""

    params: DType = "float32"
    compute: DType = "bf16"
    optimizer_state: DType = "float32"

    @model_validator(mode="after")
    def _states_follow_params(self) -> Precision:
        if "fp16" in (self.params, self.optimizer_state):
            raise ValueError("fp16 is for compute only: params and optimizer_state underflow in it")
        if self.optimizer_state != self.params:
            raise ValueError(
                "optimizer_state must equal params: torch's AdamW keeps its states in the type of"
                " the parameters"
            )
        return self

    @property
    def said(self) -> str:
        """In a word where all is of one type: `bf16`, else `bf16 on float32 weights`."""
        held = self.params
        return held if held == self.compute else f"{self.compute} on {held} weights"


class AdamW(Spec):
    """AdamW with linear warm-up; `schedule` is what follows over a declared number of steps.

    `wsd` (warm-up, stable, decay: Hu et al. 2024, MiniCPM, arXiv 2404.06395) holds the rate
    until the last `decay_share` of the steps. Nothing before that depends on how long the
    training is, so runs of several lengths share their stable part.
    """

    kind: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0, le=10)] = 1e-4
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.1
    clip: Annotated[float, Field(gt=0, le=1e6)] | None = 1.0
    warmup_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    schedule: Literal["constant", "cosine", "wsd"] = "cosine"
    decay_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.2, description="wsd: the part of the steps in which the rate falls"
    )

    @model_validator(mode="after")
    def _decay_is_of_wsd_and_after_the_warm_up(self) -> AdamW:
        if self.schedule != "wsd":
            if self.decay_share != AdamW.model_fields["decay_share"].default:
                raise ValueError("decay_share belongs to schedule: wsd")
        elif self.warmup_share + self.decay_share > 1 + 1e-9:
            raise ValueError("warmup_share and decay_share are more than the whole training")
        return self


class Training(Spec):
    """What pretraining and fine-tuning share.

    With `steps` or `tokens` exactly that much is trained and the case has quality and a
    product; without either it runs for the protocol's windows and quality is null.
    `checkpoint_every` is no part of identity: what is trained is the same to the last digit.
    """

    sequence_length: Length = 4096
    batch: Count = Field(8, description="sequences in one optimizer step")
    micro_batch: MicroBatch = Field(
        "auto",
        description="sequences in one forward pass; auto: all of `batch`; fit: as many as the"
        " hungriest case of the suite at this size and length can take here",
    )
    steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    tokens: Tokens | None = Field(
        None, description="a number, or 20x for 20 tokens for each parameter of the model"
    )
    checkpoint_every: Annotated[int, Field(ge=20, le=10_000_000)] | None = local(
        None, description="steps after which a killed training can go on; null: from the start"
    )
    optimizer: AdamW = AdamW()
    precision: Precision = Precision()
    loss: Literal["auto", "plain", "chunked", "liger"] = "auto"
    attention: AttentionBackend = "auto"
    compile: Literal["auto", "none", "layer", "model"] = "auto"

    @model_validator(mode="after")
    def _one_budget_and_whole_micro_batches(self) -> Training:
        if self.steps is not None and self.tokens is not None:
            raise ValueError("give steps or tokens, not both")
        if self.checkpoint_every is not None and not self.budgeted:
            raise ValueError("checkpoint_every needs steps or tokens")
        if isinstance(self.micro_batch, int) and self.batch % self.micro_batch:
            raise ValueError(f"micro_batch {self.micro_batch} does not divide batch {self.batch}")
        return self

    @property
    def micro_batch_size(self) -> int:
        """Sequences in one forward pass: all of `batch` where no number is given."""
        return self.micro_batch if isinstance(self.micro_batch, int) else self.batch

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step, padding included."""
        return self.batch * self.sequence_length

    @property
    def budgeted(self) -> bool:
        """Whether the case declares how much is trained."""
        return self.steps is not None or self.tokens is not None

    @property
    def budget_steps(self) -> int | None:
        """Optimizer steps that the case declares, if it declares any.

        Raises ValueError for tokens per parameter, which only a model makes a number.
        """
        if isinstance(self.tokens, str):
            raise ValueError(f"tokens: {self.tokens} is no number of tokens before it is pinned")
        if self.tokens is not None:
            return max(1, -(-self.tokens // self.step_tokens))
        return self.steps


class Pretrain(Training):
    """Next-token training of a fresh model on a continuous stream of documents."""

    kind: Literal["pretrain"] = "pretrain"
    data: Text = StandardLibrary()
    cuda_graph: Literal["auto", "none"] = Field(
        "auto", description="auto: small steps, which wait for Python, are captured in one graph"
    )


def _of_the_default(data: Any) -> Any:
    """What is said about no text in particular is said about fine-tuning's default."""
    default = {"kind": "stdlib", "part": "code"}
    return default | data if isinstance(data, dict) and of_no_kind(data) else data


class Finetune(Training):
    """Further training of a model; documents (prompt and response) are kept apart."""

    kind: Literal["finetune"] = "finetune"
    data: Annotated[Text, BeforeValidator(_of_the_default)] = StandardLibrary(part="code")


class Points(Spec):
    """The grid of points that one trial measures on one loaded model."""

    batch: Many[Count] = (1,)
    context: Many[Length] = Field((1024,), description="prompt tokens in the cache before decode")

    @model_validator(mode="before")
    @classmethod
    def _one_value_is_a_list_of_one(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {k: [v] if isinstance(v, int) else v for k, v in data.items()}
        return data

    @model_validator(mode="after")
    def _not_empty_and_not_huge(self) -> Points:
        for name, values in (("batch", self.batch), ("context", self.context)):
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} needs at least one value, each only once")
        if len(self.batch) * len(self.context) > 256:
            raise ValueError("more than 256 points in one trial: make several cases of them")
        return self


class Generate(Spec):
    """Greedy generation from a static cache: prefill, then decode one token at a time."""

    kind: Literal["generate"] = "generate"
    points: Points = Points()
    new_tokens: Annotated[int, Field(ge=2, le=1 << 20)] = 128
    data: WholeText = StandardLibrary()
    attention: AttentionBackend = "auto"
    compile: Literal["auto", "none", "layer", "model"] = "auto"
    cuda_graph: Literal["auto", "none"] = "auto"


class Probe(Spec):
    """Known answers: about the machine, for `doctor`; about an attention, for `check`."""

    kind: Literal["probe"] = "probe"
    check: Literal["sleep", "product", "copy", "idle", "square", "attention"] = "sleep"


def _kind_from_name(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


Workload = Annotated[
    Annotated[Pretrain | Finetune | Generate | Probe, Field(discriminator="kind")],
    BeforeValidator(_kind_from_name),
]
