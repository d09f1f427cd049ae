"""A user's file is run as it was when the case was planned, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from efficientllm.models.own import is_own, load, load_module, told
from efficientllm.record import Unsupported
from tests import tiny
from tests.models.own_modules import SOUND, written


def test_a_class_and_its_source_come_out_of_a_file_and_nothing_is_left_beside_it(
    tmp_path: Path,
) -> None:
    file, sha256 = written(tmp_path, SOUND)
    code = load_module(file, "Mine", sha256)
    module = code.found(tiny.shape())
    assert (code.source, is_own(module), is_own(module.qkv)) == (SOUND, True, False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_dataclasses_find_the_module_that_they_stand_in(tmp_path: Path) -> None:
    text = (
        "from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass\nclass Sizes:\n    of: dataclasses.InitVar[int] = 1\n"
    )
    assert load(*_named(written(tmp_path, text), "Sizes")).found(of=2)


def _named(file: tuple[str, str], name: str) -> tuple[str, str, str]:
    return file[0], name, file[1]


@pytest.mark.parametrize(
    ("text", "name", "why"),
    [
        (SOUND, "Yours", "mine.py: has no Yours"),
        (SOUND, "F", "F is no class of torch.nn.Module"),
        ("import nothing_of_the_kind\n", "Mine", r"cannot be run: ModuleNotFoundError: .* line 1"),
        ("import sys\nsys.exit(0)\n", "Mine", r"cannot be run: SystemExit: 0 \(its line 2\)"),
        ("x = 1\n\nx.y\n", "Mine", r"cannot be run: AttributeError: .* \(its line 3\)"),
    ],
)
def test_what_cannot_be_taken_out_of_a_file_says_why(
    tmp_path: Path, text: str, name: str, why: str
) -> None:
    file, sha256 = written(tmp_path, text)
    with pytest.raises(Unsupported, match=why):
        load_module(file, name, sha256)


def test_a_file_that_has_changed_or_gone_is_not_run(tmp_path: Path) -> None:
    file, sha256 = written(tmp_path, SOUND)
    written(tmp_path, SOUND + "\n")
    with pytest.raises(Unsupported, match="has changed since the case was planned; run again"):
        load(file, "Mine", sha256)
    Path(file).unlink()
    with pytest.raises(Unsupported, match="cannot be read"):
        load(file, "Mine", sha256)


def test_an_error_names_the_last_line_of_the_users_file_on_its_way(tmp_path: Path) -> None:
    text = "import torch\n\ndef broken():\n    torch.zeros(2) @ torch.zeros(3)\n"
    code = load(*_named(written(tmp_path, text), "broken"))
    with pytest.raises(RuntimeError) as caught:
        code.found()
    assert told(caught.value).endswith("(its line 4)")
    assert told(ValueError("first\nsecond")) == "ValueError: first"


def test_torchs_own_layers_are_not_a_users() -> None:
    assert not is_own(nn.Linear(2, 2))
