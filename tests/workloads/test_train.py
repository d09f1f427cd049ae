"""Training does the declared work: no more, no less, and the same again from the same seed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientllm.models.language_model import face
from efficientllm.spec.technique import Freeze, Int8WeightOnly, Lora
from efficientllm.spec.workload import AdamW, Precision, Pretrain
from efficientllm.techniques import apply
from efficientllm.workloads.batches import Packed, Stream
from efficientllm.workloads.schedule import learning_rate
from efficientllm.workloads.snapshot import load, save
from efficientllm.workloads.train import NotFinite, Train
from tests import tiny

FLOAT32 = Precision(params="float32", compute="float32")
TEXT = tiny.corpus(*(f"{i} times {i} is {i * i}. " * 3 for i in range(60)))
PAIRS = tiny.corpus(*((f"{i} times {i} is", f" {i * i}.") for i in range(60)))
VOCABULARY = tiny.byte_vocabulary()


def spec(**changes: Any) -> Pretrain:
    fields: dict[str, Any] = {
        "sequence_length": 16,
        "batch": 4,
        "steps": 8,
        "precision": FLOAT32,
        "optimizer": AdamW(lr=3e-3),
    }
    return Pretrain(**fields | changes)


def stream(of: Pretrain, seed: int = 0) -> Stream:
    length = of.sequence_length
    return Stream(TEXT, VOCABULARY, rows=of.batch, length=length, seed=seed, batches=100)


def packed(of: Pretrain, *, separate: bool = False) -> Packed:
    rows, length = of.batch, of.sequence_length
    return Packed(
        PAIRS, VOCABULARY, rows=rows, length=length, seed=0, batches=100, separate=separate
    )


def train(of: Pretrain, *, seed: int = 0, batches: Any = None) -> tuple[Train, torch.nn.Module]:
    model = tiny.decoder(seed=seed).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.2)  # a start from which training gets somewhere
    work = Train(model, face(model), batches or stream(of, seed), of, tiny.CPU)
    return work, model


def steps(work: Train, count: int) -> tuple[float, ...]:
    for _ in range(count):
        work.unit("step")
    work.check()
    return work.losses()


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_loss_falls() -> None:
    work, _ = train(spec(steps=60))
    losses = steps(work, 60)
    assert losses[0] == pytest.approx(math.log(272), abs=0.5)  # as good as guessing
    assert sum(losses[-6:]) / 6 < losses[0] - 2


def test_the_first_loss_is_the_mean_over_all_scored_tokens() -> None:
    of = spec()
    work, model = train(of)
    batch = stream(of).batch(0)
    with torch.no_grad():
        logits = model(batch.tokens).logits.double()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    assert steps(work, 1)[0] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 2])
@pytest.mark.parametrize("layout", ["stream", "packed", "separate"])
def test_micro_batches_make_the_update_of_the_whole_batch(layout: str, micro_batch: int) -> None:
    found = []
    for size in ("auto", micro_batch):
        of = spec(micro_batch=size, sequence_length=24)
        batches = {
            "stream": lambda of=of: stream(of),
            "packed": lambda of=of: packed(of),
            "separate": lambda of=of: packed(of, separate=True),
        }[layout]()
        work, model = train(of, batches=batches)
        found.append((steps(work, 3), weights(model)))
    (whole, expected), (parts, weights_) = found
    assert parts == pytest.approx(whole, rel=1e-5)
    # Adam divides by the gradient's size, so a rounding error may move a weight by far more
    # than itself; what counts is that the update as a whole is the same.
    start = weights(train(spec())[1])
    assert (weights_ - expected).norm() < 1e-3 * (expected - start).norm()


def test_micro_batches_reach_the_model_one_at_a_time() -> None:
    sizes: list[tuple[int, ...]] = []
    of = spec(micro_batch=1, sequence_length=24)
    for batches in (stream(of), packed(of)):
        work, model = train(of, batches=batches)
        model.model.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape))
        steps(work, 1)
    assert sizes == [torch.Size([1, 24])] * 8


def test_the_same_seed_gives_the_same_losses_and_weights_and_another_does_not() -> None:
    runs = []
    for seed in (0, 0, 1):
        work, model = train(spec(), seed=seed)
        runs.append((steps(work, 8), weights(model)))
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])
    assert runs[0][0] != runs[2][0]


@pytest.mark.parametrize("clip", [0.5, 1e-3])
def test_gradients_are_clipped_to_the_stated_norm(clip: float) -> None:
    work, _ = train(spec(optimizer=AdamW(lr=1e-3, beta1=0.9, clip=clip)))
    steps(work, 1)
    moments = [state["exp_avg"] for state in work._optimizer.state.values()]
    norm = torch.cat([m.flatten() for m in moments]).norm().item()
    assert norm == pytest.approx((1 - 0.9) * clip, rel=1e-3)


def test_without_a_clip_gradients_keep_their_size() -> None:
    work, _ = train(spec(optimizer=AdamW(lr=1e-3, clip=None)))
    steps(work, 1)
    moments = [state["exp_avg"] for state in work._optimizer.state.values()]
    assert torch.cat([m.flatten() for m in moments]).norm() > 0.1


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (55, 0.55), (100, 0.1), (200, 0.1)],
)
def test_the_rate_warms_up_then_falls_to_a_tenth_along_a_cosine(step: int, rate: float) -> None:
    assert learning_rate(AdamW(lr=1.0, warmup_share=0.1), step, 100) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.1), (9, 1.0), (10, 1.0), (79, 1.0), (80, 1.0), (90, 0.55), (99, 0.145), (100, 0.1)],
)
def test_wsd_stays_until_the_last_fifth_and_falls_to_a_tenth_on_a_line(
    step: int, rate: float
) -> None:
    wsd = AdamW(lr=1.0, warmup_share=0.1, schedule="wsd")
    assert learning_rate(wsd, step, 100) == pytest.approx(rate)


def test_the_stable_part_of_wsd_does_not_know_how_long_the_training_is() -> None:
    short = AdamW(lr=1.0, warmup_share=0.1, schedule="wsd", decay_share=0.5)
    long = AdamW(lr=1.0, warmup_share=0.05, schedule="wsd", decay_share=0.5)
    assert [learning_rate(short, s, 100) for s in range(50)] == [
        learning_rate(long, s, 200) for s in range(50)
    ]
    assert learning_rate(AdamW(schedule="wsd", decay_share=0.9), 0, 1) == AdamW().lr


def test_a_constant_schedule_stays_after_its_warm_up_and_no_budget_means_no_schedule() -> None:
    constant = AdamW(lr=2.0, warmup_share=0.05, schedule="constant")
    assert [learning_rate(constant, s, 40) for s in (0, 1, 2, 39)] == [1.0, 2.0, 2.0, 2.0]
    assert learning_rate(AdamW(lr=2.0), 0, None) == 2.0
    assert learning_rate(AdamW(lr=2.0, warmup_share=0.0), 0, 10) == 2.0


def test_the_optimizer_gets_the_rate_of_its_step() -> None:
    work, _ = train(spec(steps=10, optimizer=AdamW(lr=1e-2, warmup_share=0.5)))
    seen = []
    for _ in range(3):
        work.unit("step")
        seen += [group["lr"] for group in work._optimizer.param_groups]
    assert seen == pytest.approx([2e-3, 2e-3, 4e-3, 4e-3, 6e-3, 6e-3])  # two groups


def test_matrices_decay_and_norms_and_biases_do_not() -> None:
    work, model = train(spec())
    decay = {
        id(p): group["weight_decay"]
        for group in work._optimizer.param_groups
        for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        expected = 0.0 if "norm" in name or name.endswith("bias") else 0.1
        assert decay[id(parameter)] == expected, name


@pytest.mark.parametrize(
    "precision",
    [
        Precision(params="float32", compute="bf16"),
        Precision(params="bf16", compute="bf16", optimizer_state="bf16"),
        Precision(params="float32", compute="fp16"),
    ],
    ids=["mixed", "pure bf16", "fp16 with a scaler"],
)
def test_half_precision_trains_on_a_cpu_too(precision: Precision) -> None:
    of = spec(steps=40, precision=precision, optimizer=AdamW(lr=3e-3))
    model = tiny.decoder().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.2 if parameter.ndim > 1 else 1.0)
            if precision.params == "bf16":
                parameter.data = parameter.data.to(torch.bfloat16)
    work = Train(model, face(model), stream(of), of, tiny.CPU)
    losses = steps(work, 40)
    assert losses[-1] < losses[0] - 1
    assert work._scaler.is_enabled() == (precision.compute == "fp16")


def test_a_loss_that_is_not_finite_names_its_step() -> None:
    work, model = train(spec())
    steps(work, 2)
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    work.unit("step")
    with pytest.raises(NotFinite, match=r"step 3 is not finite; try a smaller optimizer\.lr"):
        work.check()


def test_holdings_are_the_bytes_of_the_real_tensors() -> None:
    work, model = train(spec())
    total = sum(p.numel() for p in model.parameters())
    assert work.holdings()["optimizer"] == 0
    steps(work, 1)
    tensors = sum(1 for _ in model.parameters())
    # two moments of float32 for each weight, and a step counter for each tensor
    expected = {"weights": 4 * total, "gradients": 4 * total, "optimizer": 8 * total + 4 * tensors}
    assert work.holdings() == expected
    real = [t for s in work._optimizer.state.values() for t in s.values()]
    assert sum(t.nbytes for t in real) == expected["optimizer"]


def test_frozen_weights_hold_no_gradients_and_no_states() -> None:
    build = tiny.build()
    apply(build, Freeze(last_layers=1))
    of = spec()
    work = Train(build.model, face(build.model), stream(of), of, tiny.CPU)
    before = weights(build.model.model.layers[0])
    steps(work, 2)
    trained = sum(p.numel() for p in build.model.model.layers[1].parameters())
    assert work.holdings()["gradients"] == 4 * trained
    assert work.holdings()["optimizer"] == 8 * trained + 4 * 12
    assert torch.equal(weights(build.model.model.layers[0]), before)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_adapters_learn_beside_int8_weights_and_these_weigh_what_they_weigh() -> None:
    build = tiny.build()
    reach = apply(build, Int8WeightOnly())
    apply(build, Lora(r=4))
    of = spec(steps=20, precision=Precision(), optimizer=AdamW(lr=1e-2))
    work = Train(build.model.train(), face(build.model), stream(of), of, tiny.CPU)
    losses = steps(work, 20)
    assert losses[-1] < losses[0]
    adapters = 4 * 2 * 4 * 928
    assert work.holdings()["weights"] == reach.bytes_after + adapters
    assert work.holdings()["gradients"] == adapters


def test_counts_are_those_of_the_last_steps() -> None:
    of = spec(sequence_length=24)
    work, _ = train(of, batches=packed(of))
    steps(work, 5)
    expected = [packed(of).batch(i).counts for i in range(5)]
    assert len({c["tokens"] for c in expected}) > 1
    assert work.counts("step", 2) == {k: expected[3][k] + expected[4][k] for k in expected[0]}
    assert work.counts("step", 0) == dict.fromkeys(expected[0], 0)


def test_letting_go_frees_gradients_and_states_and_keeps_the_losses() -> None:
    work, model = train(spec())
    losses = steps(work, 2)
    work.close()
    assert not work._optimizer.state
    assert all(p.grad is None for p in model.parameters())
    assert work.losses() == losses


def test_of_a_long_training_the_last_losses_are_kept_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("efficientllm.workloads.train.KEPT_LOSSES", 8)
    work, _ = train(spec(steps=None))
    shown = []
    for _ in range(21):
        work.unit("step")
        shown.append(work.losses()[-1])
    assert work.losses() == tuple(shown[-8:])


PRECISIONS = [
    Precision(params="float32", compute="float32"),
    Precision(params="bf16", compute="bf16", optimizer_state="bf16"),
    Precision(params="float32", compute="fp16"),
]


@pytest.mark.parametrize("precision", PRECISIONS, ids=["float32", "bf16", "fp16 with a scaler"])
def test_a_training_goes_on_from_its_state_to_the_last_bit(
    precision: Precision, tmp_path: Path
) -> None:
    """Another process begins from another seed's weights and random numbers, if it could."""

    def start(seed: int) -> tuple[Train, torch.nn.Module]:
        torch.manual_seed(seed)
        work, model = train(of, seed=seed, batches=stream(of))
        if precision.params == "bf16":
            for parameter in model.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        model.model.layers[0].register_forward_hook(
            lambda *args: torch.nn.functional.dropout(args[2], 0.2)
        )
        return work, model

    of = spec(steps=20, precision=precision, optimizer=AdamW(lr=3e-3, schedule="wsd"))
    whole, expected = start(0)
    steps(whole, 20)

    before, _ = start(0)
    steps(before, 9)
    save(before.state(), tmp_path / "s")
    again, model = start(1)
    snapshot = load(tmp_path / "s")
    assert snapshot is not None
    again.restore(snapshot)
    assert (again.first, again.budget, again.total) == (9, 11, 20)
    assert again.trained == (9, 9 * 64)
    assert again.losses() == before.losses()
    steps(again, 11)
    assert torch.equal(again._losses, whole._losses)
    assert torch.equal(weights(model), weights(expected))
    assert again._scaler.state_dict() == whole._scaler.state_dict()
    assert again.trained == whole.trained
    assert again.counts("step", 11) == whole.counts("step", 11)


def test_only_what_learns_is_in_the_state() -> None:
    build = tiny.build()
    apply(build, Freeze(last_layers=1))
    of = spec()
    work = Train(build.model, face(build.model), stream(of), of, tiny.CPU)
    steps(work, 1)
    names = [name for name in work.state().tensors if name.startswith("weights/")]
    assert len(names) == 12
    assert all("layers.1." in name for name in names)
