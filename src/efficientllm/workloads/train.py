"""Training steps: pretraining and fine-tuning are the same loop over different batches.

One unit is one optimizer step: forward and backward over every micro-batch, gradient
clipping, AdamW. The batch is made on the host while the device works on the one before.
Inside the clock: everything a training run does at every step. Outside: reading and
tokenizing text, building the model, compiling.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from efficientllm.cost import causal_pairs
from efficientllm.device import (
    Device,
    random_states,
    restore_random_states,
    tensor_bytes,
    to_device,
)
from efficientllm.models.language_model import LanguageModel
from efficientllm.models.position import Documents
from efficientllm.record import PointResult
from efficientllm.spec.workload import AdamW, Precision, Training
from efficientllm.workloads import compiling
from efficientllm.workloads.batches import Batches, split_documents
from efficientllm.workloads.loss import loss_of, resolve
from efficientllm.workloads.schedule import learning_rate
from efficientllm.workloads.snapshot import Snapshot
from efficientllm.workloads.step_graph import StepGraph

TORCH_TYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KEPT_LOSSES = 1 << 16


class NotFinite(RuntimeError):
    """A loss that is not a finite number; training ends there."""


class Train:
    """The work of a pretrain or finetune case."""

    windows = ("step",)
    brief: frozenset[str] = frozenset()

    def __init__(
        self,
        model: nn.Module,
        face: LanguageModel,
        batches: Batches,
        spec: Training,
        device: Device,
        *,
        compile_model: bool = False,
        graph: bool = False,
    ) -> None:
        self._model, self._face, self._batches = model, face, batches
        self._spec, self._device = spec, device
        self._hidden = compiling.compiled(face.hidden) if compile_model else face.hidden
        self.total = spec.budget_steps
        """Steps that the case declares; those of an earlier process count."""
        self.first = 0
        """Steps that an earlier process has taken."""
        self._loss = loss_of(resolve(spec.loss, face.head().weight.shape[0]))
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = optimizer(model, spec.optimizer, in_graph=graph)
        scored = float(spec.step_tokens)  # of running text, every token
        self._graph = StepGraph(partial(self._learn, None, scored)) if graph else None
        self._scaler = torch.amp.GradScaler(
            device.torch.type, enabled=spec.precision.compute == "fp16"
        )
        self._step = 0
        self._tokens = 0.0
        self._counts: list[dict[str, float]] = []
        self._losses = torch.zeros(
            min(self.total or KEPT_LOSSES, KEPT_LOSSES), pin_memory=not device.is_cpu
        )
        self._next = batches.batch(0)

    @property
    def budget(self) -> int | None:
        """Steps that this process has to do, if the case declares any."""
        return None if self.total is None else self.total - self.first

    @property
    def settling(self) -> int:
        """Steps until the graph is there, if there is to be one."""
        return 0 if self._graph is None else self._graph.settling

    def unit(self, window: str) -> None:
        """One optimizer step."""
        batch = self._next
        self._set_rate()
        tokens, targets = (to_device(t, self._device) for t in (batch.tokens, batch.targets))
        step = self._graph or partial(self._learn, batch.documents, batch.counts["loss_tokens"])
        loss = step(tokens, targets)
        self._losses[self._step % len(self._losses)].copy_(loss, non_blocking=True)
        self._counts.append(batch.counts)
        self._tokens += batch.counts["tokens"]
        self._step += 1
        self._next = self._batches.batch(self._step)

    def _learn(
        self, documents: Documents | None, scored: float, tokens: Tensor, targets: Tensor
    ) -> Tensor:
        """Forward, backward and update; the mean loss of the `scored` tokens."""
        loss = torch.zeros((), device=self._device.torch)
        for part in self._micro_batches(tokens, targets, documents):
            with autocast(self._spec.precision, self._device):
                share = self._forward(*part) / scored
            self._scaler.scale(share).backward()
            loss += share.detach()
        self._update()
        return loss

    def check(self) -> None:
        """Raise NotFinite for any finished step whose loss was not finite."""
        seen = self._in_order()
        if not torch.isfinite(seen).all():
            step = self._step - len(seen) + int((~torch.isfinite(seen)).nonzero()[0]) + 1
            raise NotFinite(f"the loss of step {step} is not finite; try a smaller optimizer.lr")

    def counts(self, window: str, units: int) -> dict[str, float]:
        """Raw totals over the last `units` steps."""
        last = self._counts[len(self._counts) - units :]
        keys = self._counts[0] if self._counts else {}
        total = {key: sum(counts[key] for counts in last) for key in keys}
        return total | self._stated(total)

    def _stated(self, total: dict[str, float]) -> dict[str, float]:
        """Forward FLOPs that a user's own attention states; for whole rows only."""
        length, rows = self._spec.sequence_length, total.get("samples")
        cost = self._face.attention_cost(length, 0)
        if cost is None or rows is None or total["pairs"] != rows * causal_pairs(length):
            return {}
        return {"attention_flops": rows * cost.flops}

    def compilations(self) -> int:
        return compiling.compilations()

    def holdings(self) -> dict[str, int]:
        """Bytes that stay between steps, and those of the gradients at their peak."""
        states = self._optimizer.state.values()
        tensors = [t for state in states for t in state.values() if isinstance(t, Tensor)]
        return {
            "weights": sum(tensor_bytes(p) for p in self._model.parameters()),
            "gradients": sum(tensor_bytes(p) for p in self._trained),
            "optimizer": sum(tensor_bytes(t) for t in tensors),
        }

    def losses(self) -> tuple[float, ...]:
        """Mean loss per token of every step so far (the last 65,536)."""
        return tuple(round(float(x), 6) for x in self._in_order())

    def _in_order(self) -> Tensor:
        """The losses that are kept, oldest first."""
        place = self._step % len(self._losses)
        if self._step <= len(self._losses):
            return self._losses[: self._step]
        return torch.cat((self._losses[place:], self._losses[:place]))

    @property
    def trained(self) -> tuple[int, float]:
        """Steps taken so far, and their tokens without padding."""
        return self._step, self._tokens

    def state(self) -> Snapshot:
        """What the steps to come depend on, beside the case and its seed."""
        tensors = {"losses": self._losses}
        for kind, state in random_states(self._device).items():
            tensors[f"random/{kind}"] = state
        for name, parameter in self._named():
            tensors[f"weights/{name}"] = parameter
            for key, moment in self._optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}/{name}"] = moment
        facts = {"step": self._step, "tokens": self._tokens, "scaler": self._scaler.state_dict()}
        return Snapshot(tensors, facts)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a state, taken by another process with the same case and seed."""
        tensors, facts = snapshot
        self._losses.copy_(tensors["losses"])
        kinds = [key.partition("/") for key in tensors]
        restore_random_states(
            self._device, {n: tensors[f"random/{n}"] for kind, _, n in kinds if kind == "random"}
        )
        parameters = dict(self._named())
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[f"weights/{name}"])
        for kind, _, name in kinds:
            if kind.startswith("optimizer."):
                parameter, moment = parameters[name], tensors[f"{kind}/{name}"]
                state = self._optimizer.state[parameter]
                state[kind.removeprefix("optimizer.")] = moment.to(parameter.device, copy=True)
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(facts["scaler"])
        self._step = self.first = facts["step"]
        self._tokens = facts["tokens"]
        self._next = self._batches.batch(self._step)

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self._model.named_parameters() if p.requires_grad]

    def result(self, result: PointResult) -> PointResult:
        """Add whether steps were captured in a graph."""
        names = ("step",) if self._graph is not None and self._graph.there else ()
        return result.model_copy(update={"captured": names})

    def close(self) -> None:
        """Let go of gradients, optimizer states and graph, so that quality runs beside none."""
        self._graph = None
        self._optimizer.zero_grad(set_to_none=True)
        self._optimizer.state.clear()

    def _forward(self, tokens: Tensor, targets: Tensor, documents: Documents | None) -> Tensor:
        # Under autocast the last norm gives float32; the head multiplies in the compute type.
        hidden = self._hidden(tokens, documents).to(TORCH_TYPES[self._spec.precision.compute])
        return self._loss(hidden.flatten(0, 1), self._face.head().weight, targets.flatten())

    def _micro_batches(
        self, tokens: Tensor, targets: Tensor, documents: Documents | None
    ) -> list[tuple[Tensor, Tensor, Documents | None]]:
        count = self._spec.batch // self._spec.micro_batch_size
        if documents is None:
            rows = zip(tokens.chunk(count), targets.chunk(count), strict=True)
            return [(t, g, None) for t, g in rows]
        # Packed documents are one long row; it is cut where stretches of whole documents meet.
        placed = [self._placed(part) for part in split_documents(documents, count)]
        parts = tokens.chunk(count, dim=1), targets.chunk(count, dim=1), placed
        return list(zip(*parts, strict=True))

    def _placed(self, documents: Documents) -> Documents:
        placed = documents._replace(offsets=to_device(documents.offsets, self._device))
        # A compiled layer would be specialised on lengths, which only a CPU needs.
        return placed if self._device.is_cpu else placed._replace(lengths=())

    def _update(self) -> None:
        self._scaler.unscale_(self._optimizer)
        if self._spec.optimizer.clip is not None:
            nn.utils.clip_grad_norm_(self._trained, self._spec.optimizer.clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)

    def _set_rate(self) -> None:
        rate = learning_rate(self._spec.optimizer, self._step, self.total)
        for group in self._optimizer.param_groups:
            if self._graph is None:
                group["lr"] = rate
            else:  # a graph knows the rate by its address
                group["lr"].fill_(rate)


def optimizer(model: nn.Module, spec: AdamW, *, in_graph: bool = False) -> torch.optim.AdamW:
    """Fused AdamW; matrices decay, norms and biases do not. In a graph its rate is a tensor."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = torch.tensor(spec.lr, device=trained[0].device) if in_graph else spec.lr
    betas = (spec.beta1, spec.beta2)
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True, capturable=in_graph)


def autocast(precision: Precision, device: Device) -> AbstractContextManager[object]:
    """Multiply in the compute type where parameters are held in another."""
    if precision.compute == precision.params:
        return nullcontext()
    return torch.autocast(device.torch.type, TORCH_TYPES[precision.compute])
