"""Held-out text: how well a model predicts it, per document, so that intervals can be had.

Windows of `length` tokens move by half their length, and each token is scored in the
window where it has the most context before it: at least length / 2 tokens once the
document has that many. Every token of every document is scored exactly once, the first
one after an end-of-document token. With prompts, only responses are scored.

Bits per byte divide by the UTF-8 bytes of the scored text, so models with different
tokenizers compare; perplexity per token compares within one tokenizer only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from efficientllm.device import Device, to_device
from efficientllm.documents import Document
from efficientllm.models.language_model import LanguageModel
from efficientllm.record import Scores, Unsupported
from efficientllm.workloads.text import Corpus
from efficientllm.workloads.vocabulary import Vocabulary

LOGIT_BYTES = 1 << 28
SHARED_BY = 32


class Window(NamedTuple):
    """Tokens of one document, and from which of them on (up to the end) to score."""

    document: int
    tokens: list[int]
    first_scored: int


def score(
    face: LanguageModel,
    corpus: Corpus,
    vocabulary: Vocabulary,
    *,
    max_bytes: int,
    length: int,
    device: Device,
    alive: Callable[[], None] = lambda: None,
) -> Scores:
    """Negative log-likelihood in nats, tokens and bytes of each held-out document.

    `alive` is called after each batch of windows: long text may take long.
    """
    documents = limited(corpus.documents, max_bytes)
    windows = [w for i, d in enumerate(documents) for w in windows_of(i, d, vocabulary, length)]
    nll, tokens = [0.0] * len(documents), [0] * len(documents)
    rows = max(1, LOGIT_BYTES // (4 * length * face.head().weight.shape[0]))
    with torch.inference_mode():
        for start in range(0, len(windows), rows):
            batch = windows[start : start + rows]
            for window, value in zip(batch, _nll(face, batch, device), strict=True):
                nll[window.document] += value
                tokens[window.document] += len(window.tokens) - window.first_scored
            alive()
    if not all(map(math.isfinite, nll)):
        bad = sum(not math.isfinite(value) for value in nll)
        raise Unsupported(f"the loss of {bad} of {len(nll)} held-out documents is not finite")
    return Scores(
        nll=tuple(nll),
        tokens=tuple(tokens),
        bytes=tuple(len(d.text.encode()) for d in documents),
        text_sha256=corpus.sha256,
        source=f"{corpus.source}, held out",
    )


def limited(documents: tuple[Document, ...], max_bytes: int) -> list[Document]:
    """At most `max_bytes` in all, from as many documents as give each a fair length.

    Each document is cut to the same share, so that the interval rests on many documents
    and not on one long one; what is cut is the same for every model.
    """
    share = max_bytes // max(1, min(len(documents), SHARED_BY))
    kept: list[Document] = []
    left = max_bytes
    for document in documents:
        text = document.text.encode()[: min(share, left)].decode("utf-8", "ignore")
        if text:
            kept.append(document._replace(text=text))
            left -= len(text.encode())
    return kept


def windows_of(
    number: int, document: Document, vocabulary: Vocabulary, length: int
) -> list[Window]:
    """The windows in which one document is scored."""
    prompt, text = vocabulary.encode([document.prompt, document.text])
    tokens = [vocabulary.end, *prompt, *text]
    scored = 1 + len(prompt)
    windows: list[Window] = []
    while scored < len(tokens):
        # The document's first window is whole; later ones score their second half.
        start = 0 if scored < length else scored - length // 2
        end = min(start + length, len(tokens))
        windows.append(Window(number, tokens[start:end], scored - start))
        scored = end
    return windows


def _nll(face: LanguageModel, batch: list[Window], device: Device) -> list[float]:
    """Sums over each window's scored tokens. Padding stands after everything scored."""
    longest = max(len(window.tokens) for window in batch)
    tokens = torch.zeros(len(batch), longest, dtype=torch.long)
    scored = torch.zeros(len(batch), longest - 1, dtype=torch.bool)
    for row, window in enumerate(batch):
        tokens[row, : len(window.tokens)] = torch.tensor(window.tokens)
        scored[row, window.first_scored - 1 : len(window.tokens) - 1] = True
    tokens, scored = to_device(tokens, device), to_device(scored, device)
    hidden = face.hidden(tokens)[:, :-1]
    losses = torch.stack([_row_losses(face, h, t) for h, t in zip(hidden, tokens, strict=True)])
    return [float(x) for x in (losses * scored).sum(dim=1).double().cpu()]


def _row_losses(face: LanguageModel, hidden: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(face.head()(hidden).float(), tokens[1:], reduction="none")
