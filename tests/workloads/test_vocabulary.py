"""Tokenizers: made here, found in a folder, and the one token that ends a document."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from efficientllm.record import Unsupported
from efficientllm.workloads.vocabulary import END, builtin_vocabulary, load_vocabulary
from tests import tiny

SIZE = 400
TRAIN = (
    "import sys\nfrom pathlib import Path\n"
    "from efficientllm.workloads.vocabulary import builtin_vocabulary\n"
    f"print(builtin_vocabulary({SIZE}, Path(sys.argv[1])).sha256, 'torch' in sys.modules)"
)


def test_two_processes_train_the_same_vocabulary(tmp_path: Path) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(tmp_path / name)],
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        )
        for name, seed in (("a", "1"), ("b", "2"))
    ]
    told = [process.communicate(timeout=60)[0].split() for process in started]
    assert told[0][0] == told[1][0]
    assert len(told[0][0]) == 64
    assert told[0][1] == "False"


def test_the_builtin_vocabulary_reads_any_text_and_gives_it_back(tmp_path: Path) -> None:
    vocabulary = builtin_vocabulary(SIZE, tmp_path)
    assert vocabulary.size == SIZE
    text = "def f(x):\n    return x  # naïve 日本語 \x00"
    (ids,) = vocabulary.encode([text])
    assert vocabulary.tokenizer.decode(ids) == text
    assert max(ids) < SIZE
    assert vocabulary.end not in ids
    assert vocabulary.tokenizer.id_to_token(vocabulary.end) == END


def test_the_builtin_vocabulary_shortens_english(tmp_path: Path) -> None:
    vocabulary = builtin_vocabulary(SIZE, tmp_path)
    text = "the value of the function is returned to the caller"
    assert len(vocabulary.encode([text])[0]) < len(text) / 1.5


def test_a_cached_vocabulary_is_the_trained_one(tmp_path: Path) -> None:
    first = builtin_vocabulary(SIZE, tmp_path)
    (cached,) = tmp_path.iterdir()
    before = cached.stat().st_mtime_ns
    again = builtin_vocabulary(SIZE, tmp_path)
    assert again.sha256 == first.sha256
    assert cached.stat().st_mtime_ns == before


def test_a_saved_vocabulary_loads_from_its_folder(tmp_path: Path) -> None:
    vocabulary = tiny.byte_vocabulary()
    vocabulary.save(tmp_path)
    again = load_vocabulary(tmp_path)
    assert again.sha256 == vocabulary.sha256
    assert again.end == vocabulary.end == 256


@pytest.mark.parametrize("name", ["<|endoftext|>", "</s>", "<|im_end|>"])
def test_the_end_token_of_known_families_is_found(name: str, tmp_path: Path) -> None:
    Tokenizer(models.BPE({"a": 0, name: 1}, [])).save(str(tmp_path / "tokenizer.json"))
    assert load_vocabulary(tmp_path).end == 1


def test_a_tokenizer_without_an_end_gets_one(tmp_path: Path) -> None:
    Tokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(tmp_path / "tokenizer.json"))
    vocabulary = load_vocabulary(tmp_path)
    assert vocabulary.end == 2
    assert vocabulary.size == 3


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_the_two_file_form_of_gpt2_is_read(names: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / names[0]).write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (tmp_path / names[1]).write_text("#version: 0.2\na b\n")
    vocabulary = load_vocabulary(tmp_path)
    assert vocabulary.encode(["abb"]) == [[2, 1]]
    assert vocabulary.end == 3


def test_a_folder_without_a_tokenizer_and_a_file_that_is_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"no tokenizer\.json there"):
        load_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(Unsupported, match=r"not a tokenizer\.json"):
        load_vocabulary(tmp_path / "tokenizer.json")
