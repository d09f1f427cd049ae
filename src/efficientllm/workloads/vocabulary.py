"""Tokenizers: a checkpoint's own, a named one, or one trained on the spot.

The built-in vocabulary is a byte-pair encoding trained on text that every Python carries,
so that a first run needs no network and still reads real tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from efficientllm.record import Unsupported
from efficientllm.spec.model import Checkpoint, Model, Product
from efficientllm.spec.text import StandardLibrary
from efficientllm.workloads.text import Corpus, read_corpus

END = "<|end|>"
BUILTIN_VOCAB = 4096
_TRAINING_BYTES = 1_000_000


class Vocabulary:
    """A tokenizer with the one special token that ends a document."""

    def __init__(self, tokenizer: Tokenizer, end: int) -> None:
        self.tokenizer, self.end = tokenizer, end

    @property
    def size(self) -> int:
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text, without any special one; on all cores at once."""
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [item.ids for item in encoded]

    def save(self, folder: Path) -> None:
        self.tokenizer.save(str(folder / "tokenizer.json"))


def builtin_vocabulary(rows: int, cache: Path) -> Vocabulary:
    """A byte-pair vocabulary trained on the standard library's prose, at most `rows` tokens.

    The training is deterministic, so the cache only saves its second.
    """
    size = min(rows, BUILTIN_VOCAB)
    corpus = read_corpus(StandardLibrary(), "train")
    path = cache / f"bpe-{size}-{corpus.sha256[:16]}.json"
    if path.exists():
        return load_vocabulary(path)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_some(corpus), trainer)
    cache.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{id(tokenizer)}")
    tokenizer.save(str(temporary))
    temporary.replace(path)
    return load_vocabulary(path)


def _some(corpus: Corpus) -> Iterator[str]:
    taken = 0
    for document in corpus.documents:
        taken += len(document.text)
        yield document.text
        if taken > _TRAINING_BYTES:
            return


_END_NAMES = (END, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")


def load_vocabulary(path: Path) -> Vocabulary:
    """A tokenizer.json, alone or in a folder; GPT-2's two-file form is read too."""
    if path.is_dir():
        return _from_folder(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise Unsupported(f"{path}: not a tokenizer.json ({error})") from error
    return Vocabulary(tokenizer, _end_of(tokenizer))


def _from_folder(folder: Path) -> Vocabulary:
    if (folder / "tokenizer.json").exists():
        return load_vocabulary(folder / "tokenizer.json")
    for vocab, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        if (folder / vocab).exists() and (folder / merges).exists():
            model = models.BPE.from_file(str(folder / vocab), str(folder / merges))
            tokenizer = Tokenizer(model)
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            return Vocabulary(tokenizer, _end_of(tokenizer))
    raise Unsupported(f"{folder}: no tokenizer.json there")


def _end_of(tokenizer: Tokenizer) -> int:
    for name in _END_NAMES:
        token = tokenizer.token_to_id(name)
        if token is not None:
            return int(token)
    tokenizer.add_special_tokens([END])
    added = tokenizer.token_to_id(END)
    assert added is not None
    return int(added)


def vocabulary_of(spec: Model, rows: int, *, parent: str, cache: str) -> Vocabulary:
    """The checkpoint's own tokenizer, the one that is named, or the built-in one.

    `rows` of the embedding bound how many tokens it may know; `parent` is the folder that a
    product starts from. Raises Unsupported where there are too few rows.
    """
    named = getattr(spec, "tokenizer", "auto")
    if isinstance(spec, Checkpoint):
        from efficientllm.models.checkpoint import tokenizer_folder  # which needs torch

        vocabulary = load_vocabulary(tokenizer_folder(spec))
    elif isinstance(spec, Product):
        vocabulary = load_vocabulary(Path(parent))
    elif named != "auto":
        vocabulary = load_vocabulary(Path(named).expanduser())
    else:
        vocabulary = builtin_vocabulary(rows, Path(cache))
    if vocabulary.size > rows:
        raise Unsupported(
            f"the tokenizer knows {vocabulary.size} tokens, the model has {rows} embedding rows;"
            " give model.vocab or another tokenizer"
        )
    return vocabulary
