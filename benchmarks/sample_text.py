"""A sample of a text folder, small enough to carry to a machine without a network.

    python benchmarks/sample_text.py FOLDER OUT.jsonl --train 38000000 --held-out 2000000

Documents of all files, in the order of their names, are shuffled once (`--seed`). Then each is
taken if it fits into what is left for its split, counted in UTF-8 bytes of text; one that is too
long is passed over and shorter ones behind it still get in. Same folder, limits and seed: same
bytes. Rows that state no split count as `train`.

This made the text of `results/h100-80gb-attention-small*.jsonl` (English novels, PEPs and EIPs,
431 documents). Known lie: passing over what is too long makes the last documents short ones.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from efficientllm.documents import documents_in, text_files
from efficientllm.spec.text import Files


def sample(folder: Path, train: int, held_out: int, seed: int) -> list[dict[str, str]]:
    """Rows of `text` and `split`; at most so many bytes of training and of other text."""
    spec = Files(kind="files", path=str(folder))
    rows = [
        {"text": document.text, "split": split or "train"}
        for path in text_files(folder)
        for document, split in documents_in(path, path.name, spec)
    ]
    random.Random(seed).shuffle(rows)
    taken, left = [], {True: train, False: held_out}
    for row in rows:
        trained, size = row["split"] == "train", len(row["text"].encode())
        if size <= left[trained]:
            left[trained] -= size
            taken.append(row)
    return taken


def main() -> None:
    """Write the sample as JSON lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=38_000_000, help="bytes of training text")
    parser.add_argument("--held-out", type=int, default=2_000_000, help="bytes of other splits")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = sample(args.folder, args.train, args.held_out, args.seed)
    with args.out.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"{len(rows)} documents, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
