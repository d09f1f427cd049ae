"""An attention of one's own from a file to a LaTeX table, and what becomes of bad ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from efficientllm import examination
from efficientllm.analysis.checks import flags
from efficientllm.analysis.table import rows
from efficientllm.cli import app
from efficientllm.machine import Gpu
from efficientllm.metrics import View
from efficientllm.pin import pin
from efficientllm.plan import Planned
from efficientllm.record import Record
from efficientllm.spec.case import Case
from efficientllm.spec.protocol import Protocol
from efficientllm.store import Store
from tests import samples
from tests.models.own_modules import LOOKS_AHEAD, RAISES, SOUND, WRONG_SHAPE, spoiled, written
from tests.trials import story_of

ROOT = Path(__file__).parents[1]
LEAVES = spoiled(("seen = torch", "raise SystemExit(0)\n        seen = torch"))
SMALL = {"sequence_length": 32, "batch": 2, "precision": {"compute": "float32"}, "steps": 6}


def called(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line in a folder, as a user types it there: a process, and its fork server."""
    command = [sys.executable, "-m", "efficientllm.cli", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=environment
    )


class Here:
    """In place of the launcher: the same worker in this process, which has imported already."""

    def __init__(self, store: Store, gpu: Gpu | None, *, space_bytes: int) -> None:
        self.folder = store.root

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, planned: Planned, protocol: Protocol, *, keep: bool) -> Record:
        story = story_of(planned.case, self.folder, self.folder / "cache")
        return samples.record(outcome=story.outcome, build=story.build)


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The same command line in this process: quick, where what a process adds is not asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(examination, "Launcher", Here)
    return lambda *words: CliRunner().invoke(app, words)


@pytest.mark.slow
def test_a_researchers_module_goes_from_its_file_to_a_latex_table(
    tmp_path: Path, inside: Callable[..., Result]
) -> None:
    """What docs/own-attention.md says, word for word but for its smaller sizes and the page."""
    example = ROOT / "examples" / "window_attention.py"
    (tmp_path / example.name).write_bytes(example.read_bytes())
    what = f"{example.name}:WindowAttention"
    checked = inside("check", what, "--preset", "tiny", "--json")
    assert checked.exit_code == 0, checked.stderr
    verdicts = {finding["name"]: finding["verdict"] for finding in json.loads(checked.stdout)}
    assert verdicts.pop("compile") == verdicts.pop("positions") == "told"
    assert set(verdicts.values()) == {"passed"}
    assert {"causality", "cache", "gradients", "differences", "FLOPs"} <= verdicts.keys()

    settings = [
        *("model=backbone-tiny", f"model.attention=gqa,custom:{what}", "protocol=smoke"),
        *("steps=6", "sequence_length=32", "batch=2", "precision.compute=float32"),
        "quality.max_bytes=2048",
    ]
    refused = inside("run", "pretrain", *settings)
    assert refused.exit_code == 2
    assert "say --allow-code" in refused.stderr
    ran = called(tmp_path, "run", "pretrain", *settings, "--allow-code", "--no-page")
    assert ran.returncode == 0, ran.stderr
    names = ("backbone-tiny-gqa", "backbone-tiny-WindowAttention")
    compared = inside("compare", *names)
    assert "training tokens/s" in compared.stdout, compared.stderr
    table = inside("export", "--format", "latex").stdout
    assert r"\toprule" in table
    assert all(f"{name}\\textsuperscript" in table for name in names)
    assert "CUSTOM\\_ATTENTION: WindowAttention: an attention of somebody's own" in table
    published = inside("export", "--format", "jsonl").stdout
    assert str(tmp_path) not in published
    assert "class WindowAttention(nn.Module)" in published


@pytest.mark.slow
def test_a_check_that_fails_says_what_to_do_and_ends_with_one(
    tmp_path: Path, inside: Callable[..., Result]
) -> None:
    written(tmp_path, LOOKS_AHEAD)
    checked = called(tmp_path, "check", "mine.py:Mine", "--preset", "tiny")
    assert checked.returncode == 1
    assert "causality    failed  tokens from 1 on change outputs before them" in checked.stdout
    assert "-> mask every key behind its query" in checked.stdout
    assert "Traceback" not in checked.stdout + checked.stderr
    assert checked.stdout.endswith("It runs; its rows will not be ranked.\n")
    written(tmp_path, RAISES)
    raised = inside("check", "mine.py:Mine", "--preset", "tiny")
    assert raised.exit_code == 1
    assert raised.stdout.endswith("It does not run.\n"), raised.stderr
    words = ("check", "mha", "--preset", "tiny", "--position", "alibi")
    assert "uses what position alibi tells it" in inside(*words).stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("mine.py:Yours",), "mine.py: has no Yours; there is Mine"),
        (("mha", "--preset", "tiny", "--position", "alibis"), "alibi"),
        (("mhaa",), "mha"),
    ],
)
def test_what_cannot_be_checked_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], told: str
) -> None:
    written(tmp_path, SOUND)
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, ["check", *words])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert told in refused.stderr


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def training(folder: Path, text: str) -> Case:
    """A short training with the class `Mine` of a file of this text, as it is planned."""
    file, _ = written(folder, text)
    model = {"kind": "backbone", "preset": "tiny", "attention": f"custom:{file}:Mine"}
    workload = {"kind": "pretrain", **SMALL}
    value = {"name": "mine", "model": model, "workload": workload, "quality": {"max_bytes": 1024}}
    return pin(Case.model_validate(value), allow_code=True)


def test_a_sound_one_is_measured_with_its_source_its_cost_and_its_parameters(
    tmp_path: Path, cache: Path
) -> None:
    case = training(tmp_path, SOUND)
    assert not case.makes_product, "no saved model could be read again"
    story = story_of(case, tmp_path, cache)
    assert story.outcome is not None
    assert story.outcome.status == "ok"
    assert story.scores is not None
    assert story.build is not None
    assert story.build.attention is not None
    assert story.build.attention.source == SOUND
    assert not story.build.attention.failed
    # tiny: 4 layers; per layer q, k, v, out of 128 x 128 each, one scale, feed-forward, norms
    layer = 4 * 128**2 + 1 + 3 * 128 * 384 + 2 * 128
    assert story.build.total_params == 2048 * 128 + 4 * layer + 128
    (window,) = story.points[0].windows
    row = 4 * (8 * 32 * 128 * 128 + 4 * (32 * 33 / 2) * 128)
    assert window.counts["attention_flops"] == window.counts["samples"] * row
    assert story.resolved["attention"] == "Mine"


def test_one_that_looks_ahead_runs_and_is_not_ranked(tmp_path: Path, cache: Path) -> None:
    case = training(tmp_path, LOOKS_AHEAD)
    story = story_of(case, tmp_path, cache)
    assert story.outcome is not None
    assert story.outcome.status == "ok"
    record = samples.record(case, build=story.build, windows=list(story.points[0].windows))
    (row,) = rows([record])
    assert row.status == "ok"
    assert not row.ranked
    texts = {f.code: f.text for f in flags(View(record, record.points[0]))}
    assert "causality: tokens from 1 on change" in texts["CUSTOM_CHECK_FAILED"]


@pytest.mark.parametrize("kind", ["pretrain", "generate"])
def test_one_whose_cost_fails_at_its_length_runs_without_those_counts(
    tmp_path: Path, cache: Path, kind: str
) -> None:
    text = spoiled(("pairs = new * seen", "pairs = 1 // (new + seen not in (32, 33)) * new * seen"))
    case = training(tmp_path, text)
    if kind == "generate":
        workload = {"kind": kind, "points": {"context": [32]}, "new_tokens": 4}
        value = case.model_dump() | {"workload": workload, "quality": None}
        case = Case.model_validate(value)
    story = story_of(case, tmp_path, cache)
    assert story.outcome is not None
    assert story.outcome.status == "ok", story.outcome
    for window in story.points[0].windows:
        assert not {"attention_flops", "cache_read_bytes"} & window.counts.keys()
    assert story.build is not None
    assert story.build.attention is not None
    assert [f.name for f in story.build.attention.failed] == ["FLOPs"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            WRONG_SHAPE,
            "Mine: an input of [2, 1, 128] gives an output of [2, 1, 384]; forward gives",
        ),
        (RAISES, "Mine: KeyError: 'no such head' (its line 28); the class is made with"),
        (LEAVES, "Mine: SystemExit: 0 (its line 28); the class is made with"),
    ],
)
def test_one_that_gives_no_layer_is_unsupported_with_the_reason(
    tmp_path: Path, cache: Path, text: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    story = story_of(training(tmp_path, text), tmp_path, cache)
    assert story.outcome is not None
    assert (story.outcome.status, story.outcome.phase) == ("unsupported", "load")
    assert story.outcome.reason.startswith(reason)
    assert "Traceback" not in capsys.readouterr().err


def test_one_that_leaves_the_process_in_its_work_is_not_tried_again(
    tmp_path: Path, cache: Path
) -> None:
    text = spoiled(("seen = torch", "if len(x) == 3: exit()\n        seen = torch"))
    case = training(tmp_path, text)
    workload = case.workload.model_copy(update={"batch": 3})
    story = story_of(case.model_copy(update={"workload": workload}), tmp_path, cache)
    assert story.outcome is not None
    assert story.outcome.status == "unsupported"
    assert story.outcome.reason == "SystemExit: None (its line 28)"


def test_a_file_that_changed_after_planning_is_not_run(tmp_path: Path, cache: Path) -> None:
    case = training(tmp_path, SOUND)
    written(tmp_path, SOUND + "\n# one line more\n")
    story = story_of(case, tmp_path, cache)
    assert story.outcome is not None
    assert story.outcome.status == "unsupported"
    assert story.outcome.reason.endswith(
        "mine.py: has changed since the case was planned; run again"
    )


def test_the_example_is_as_short_as_the_walk_through_says_and_shown_in_it_as_it_is() -> None:
    text = (ROOT / "examples" / "window_attention.py").read_text("utf-8")
    document = (ROOT / "docs" / "own-attention.md").read_text("utf-8")
    body = text[text.index("class WindowAttention") :]
    assert body.strip() in document
    assert len(body.splitlines()) <= 45
