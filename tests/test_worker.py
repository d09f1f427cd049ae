"""The worker in this process: what an exception means, and that a product is whole or absent."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from efficientllm import worker
from efficientllm.interludes import STALL_LIMIT_S, curve_steps
from efficientllm.journal import JOURNAL, Journal, Story, read
from efficientllm.measure import PointTimeout, Progress
from efficientllm.models import attend
from efficientllm.record import Unsupported
from efficientllm.spec.case import Case
from efficientllm.worker import _whole, outcome_of
from efficientllm.workloads.train import NotFinite, Train
from tests.graphs import write_no_kernels
from tests.trials import story_of

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory"


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (NotFinite("step 3"), "nan", "step 3"),
        (Unsupported("no kernel"), "unsupported", "no kernel"),
        (PointTimeout("too slow"), "timeout", "too slow"),
        (KeyboardInterrupt(), "interrupted", ""),
        (MemoryError("Unable to allocate 32 TiB"), "out_of_memory", "Unable to allocate 32 TiB"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out_of_memory", "CUDA out of memory."),
        (RuntimeError(ALLOCATOR), "out_of_memory", ALLOCATOR),
        (
            RuntimeError("CUDA error: GPU is lost"),
            "device_lost",
            "RuntimeError: CUDA error: GPU is lost",
        ),
        (ValueError("a bug\nand its second line"), "crash", "ValueError: a bug"),
        (SystemExit(3), "crash", "SystemExit: 3"),
        (RuntimeError(""), "crash", "RuntimeError: "),
    ],
)
def test_an_exception_is_an_outcome_with_its_first_line(
    error: BaseException, status: str, reason: str
) -> None:
    outcome = outcome_of(error)
    assert (outcome.status, outcome.reason) == (status, reason)


def test_a_reason_is_never_longer_than_a_paragraph() -> None:
    assert len(outcome_of(ValueError("x" * 10_000)).reason) < 600


def test_a_folder_gets_its_name_when_everything_is_in_it(tmp_path: Path) -> None:
    target = tmp_path / "case" / "0"
    with _whole(target) as folder:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["config.json"]
    assert [path.name for path in target.parent.iterdir()] == ["0"]


def test_a_folder_that_could_not_be_filled_leaves_what_was_there_before(tmp_path: Path) -> None:
    target = tmp_path / "0"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(OSError, match="No space"):
        _fill_and_fail(target)
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def _fill_and_fail(target: Path) -> None:
    with _whole(target) as folder:
        folder.mkdir()
        (folder / "new").write_text("new")
        raise OSError(28, "No space left on device")


def test_half_a_folder_that_a_kill_left_is_replaced(tmp_path: Path) -> None:
    left = tmp_path / ".0.part"
    left.mkdir()
    (left / "half").write_text("half")
    with _whole(tmp_path / "0") as folder:
        folder.mkdir()
        (folder / "whole").write_text("whole")
    assert [path.name for path in (tmp_path / "0").iterdir()] == ["whole"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vocabulary is trained once for this file."""
    return tmp_path_factory.mktemp("cache")


def ran(
    folder: Path,
    cache: Path,
    workload: dict[str, Any],
    product: str = "",
    quality: dict[str, Any] | None = None,
) -> Story:
    training = {"kind": "pretrain", "steps": 4, "sequence_length": 16, "batch": 2}
    training |= {"precision": {"compute": "float32"}} | workload
    model = {"kind": "backbone", "preset": "tiny"}
    case = Case.model_validate(
        {
            "model": model,
            "workload": training,
            "quality": {"max_bytes": 1024} | (quality or {}),
        }
    )
    return story_of(case, folder, cache, product)


def test_a_trial_tells_its_phases_points_scores_and_product(tmp_path: Path, cache: Path) -> None:
    product = tmp_path / "artifacts" / "case" / "0"
    story = ran(tmp_path, cache, {}, str(product))
    assert story.outcome is not None
    assert story.outcome.status == "ok"
    names = [phase.name for phase in story.phases]
    assert names == ["open", "load", "describe", "prepare", "measure", "quality", "keep"]
    assert [point.outcome.status for point in story.points] == ["ok"]
    (window,) = story.points[0].windows
    assert window.warmup_units + window.units == len(story.losses) == 4
    assert story.scores is not None
    assert sum(story.scores.bytes) == 1024
    assert {path.name for path in product.iterdir()} >= {"config.json", "model.safetensors"}


def test_compiling_processes_start_before_the_model_is_loaded(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    assemble = worker.assemble

    def told(*arguments: Any) -> Any:
        done.append("load")
        return assemble(*arguments)

    monkeypatch.setattr(worker, "start_compilers", lambda wanted, _: done.append(wanted))
    monkeypatch.setattr(worker, "assemble", told)
    write_no_kernels(monkeypatch)
    story = ran(tmp_path, cache, {"compile": "layer"})
    assert done == ["layer", "load"]
    assert story.outcome is not None
    assert story.outcome.status == "ok"


def test_a_curve_is_scored_between_the_steps_and_changes_none_of_them(
    tmp_path: Path, cache: Path
) -> None:
    stories = []
    for curve in (0, 4):
        (tmp_path / str(curve)).mkdir()
        stories.append(ran(tmp_path / str(curve), cache, {"steps": 24}, quality={"curve": curve}))
    without, story = stories
    assert without.curve == ()
    assert [(p.step, p.tokens) for p in story.curve] == [(s, s * 32) for s in (3, 6, 12, 24)]
    assert story.losses == without.losses, "the same training, to the last digit"
    assert story.scores is not None
    assert story.scores == without.scores
    last = story.curve[-1]
    assert (last.nll, last.bytes) == (sum(story.scores.nll), sum(story.scores.bytes))
    assert len({p.nll for p in story.curve}) == 4, "and each of a model that has learned since"
    (window,) = story.points[0].windows
    assert 6 < window.units <= 12, "the longest stretch is the second half"
    assert window.counts["tokens"] == window.units * 32


def test_scoring_long_text_along_the_way_is_no_standstill(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every batch of windows says that it lives, in the curve as at the end."""
    lives: list[str] = []
    monkeypatch.setattr(
        Journal, "renewed_limit", lambda _, seconds, what: lambda: lives.append(what)
    )
    ran(tmp_path, cache, {"steps": 4}, quality={"curve": 2})
    end, along = "scoring held-out text", "scoring held-out text along the way"
    assert list(dict.fromkeys(lives)) == [along, end]
    assert lives.count(along) == 2 * lives.count(end)


def test_scoring_says_that_nothing_is_differentiated_and_training_does_not(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By which attention chooses its kernel for windows."""
    seen: set[tuple[bool, bool]] = set()
    real = F.scaled_dot_product_attention

    def told(*arguments: Any, **options: Any) -> Tensor:
        seen.add((torch.is_grad_enabled(), attend._scored_only))
        return real(*arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", told)
    ran(tmp_path, cache, {"steps": 4}, quality={"curve": 2})
    assert seen == {(True, False), (False, True)}


def test_declared_work_is_measured_under_the_limit_of_a_standstill(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: dict[str, float] = {}
    monkeypatch.setattr(Journal, "limit", lambda _, s, what: limits.update({what: s}))
    ran(tmp_path, cache, {"steps": 4})
    assert list(limits)[:2] == [
        "opening the device and loading the model",
        "measuring b2 c16",
    ]
    assert limits["measuring b2 c16"] == STALL_LIMIT_S


@pytest.mark.parametrize(
    ("count", "steps", "expected"),
    [
        (4, 512, [64, 128, 256, 512]),
        (1, 10, [10]),
        (2, 3, [1, 3]),
        (5, 5, [1, 2, 3, 4, 5]),
        (9, 4, [1, 2, 3, 4]),
        (0, 5, []),
    ],
)
def test_points_of_a_curve_lie_ever_further_apart_and_end_with_the_last_step(
    count: int, steps: int, expected: list[int]
) -> None:
    assert curve_steps(count, steps) == expected
    many = curve_steps(100, 512)
    assert len(set(many)) == 100
    assert many == sorted(many)
    assert (many[0], many[-1]) == (64, 512)


@pytest.mark.parametrize("declared", [True, False])
def test_each_sign_of_progress_gives_declared_work_new_time_and_no_other(
    declared: bool, tmp_path: Path
) -> None:
    with Journal(tmp_path) as log:
        setting = cast(worker.Setting, SimpleNamespace(log=log))
        worker._tell(setting, declared=declared)(Progress("step", 3, 9))
    assert (read(tmp_path).deadline_ns is not None) is declared


def test_a_curve_that_cannot_be_scored_says_why(tmp_path: Path, cache: Path) -> None:
    model = {"kind": "backbone", "preset": "tiny"}
    workload = {"kind": "finetune", "sequence_length": 16, "batch": 2, "steps": 4}
    case = Case.model_validate(
        {"model": model, "technique": "full", "workload": workload, "quality": {"curve": 2}}
    )
    story = story_of(case, tmp_path, cache)
    assert story.curve == ()
    assert story.notes["curve"] == story.notes["quality"] == "random weights: cost only"


def test_a_device_that_is_lost_while_a_curve_is_scored_ends_the_trial(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("CUDA error: GPU is lost")

    monkeypatch.setattr("efficientllm.interludes.evaluate", lost)
    story = ran(tmp_path, cache, {"steps": 4}, quality={"curve": 2})
    assert story.outcome is not None
    assert story.outcome.status == "device_lost"


def test_a_loss_that_overflows_is_nan_and_no_crash(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Infinity is no JSON either: it must be kept out of the losses that are told."""
    forward, calls = Train._forward, []

    def overflows_at_the_third(self: Train, *arguments: Any) -> Tensor:
        calls.append(1)
        loss = forward(self, *arguments)
        return loss + torch.inf if len(calls) == 3 else loss

    monkeypatch.setattr(Train, "_forward", overflows_at_the_third)
    story = ran(tmp_path, cache, {"steps": 12})
    assert story.outcome is not None
    assert (story.outcome.status, story.outcome.phase) == ("nan", "measure")
    assert re.match("the loss of step 3 is not finite", story.outcome.reason)
    assert story.points[0].outcome == story.outcome
    assert len(story.losses) >= 2
    assert "Infinity" not in (tmp_path / JOURNAL).read_text()


def test_a_bug_in_scoring_costs_the_quality_and_nothing_else(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bug(*_: object) -> None:
        raise KeyError("missing")

    monkeypatch.setattr(worker, "evaluate", bug)
    story = ran(tmp_path, cache, {})
    assert story.outcome is not None
    assert story.outcome.status == "ok"
    assert story.notes["quality"] == "crash: KeyError: 'missing'"
    assert story.scores is None
    assert [point.outcome.status for point in story.points] == ["ok"], "what was measured is kept"
    assert "Traceback" in capsys.readouterr().err


def test_what_ran_out_is_told_without_the_advice_behind_it() -> None:
    said = (
        "CUDA out of memory. Tried to allocate 1.16 GiB. GPU 0 has a total capacity of 79.18 GiB."
        " If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF=... to avoid"
        " fragmentation.  See documentation for Memory Management  (https://pytorch.org)"
    )
    outcome = outcome_of(torch.OutOfMemoryError(said))
    assert outcome.status == "out_of_memory"
    assert outcome.reason.endswith("GPU 0 has a total capacity of 79.18 GiB.")
