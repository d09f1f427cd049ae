"""Where training with NSA spends its time, and what our gradients of means save.

    python benchmarks/sparse.py [--batch 2] [--length 16384] [--heads 16] [--size 64] [--rounds 5]

The kernels of the compressed and the selected branch, alone, on random numbers, in bf16 and
with one key/value head. A round times each once (a few calls between two events), so that a
change of the clock meets all alike; a number is the median of rounds, with the least and the
greatest beside it. The last line is flash-linear-attention's gradients of the compressed branch
against ours, round by round, and how far apart they lie (as a norm).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator

import torch
from fla.ops.nsa.compression import parallel_nsa_compression_bwd, parallel_nsa_compression_fwd
from fla.ops.nsa.parallel import parallel_nsa_bwd, parallel_nsa_fwd, parallel_nsa_topk
from torch import Tensor

from efficientllm.catalog.shape import Sparse
from efficientllm.models.sparse_means_kernel import means_gradients
from efficientllm.models.sparse_reference import means_of

SIZES = Sparse(block=64, selected=16, window=512)
CALLS = 5
THEIRS, OURS = "compressed, gradients, flash-linear-attention's", "compressed, gradients, ours"

Kernels = dict[str, Callable[[], object]]


def kernels(batch: int, length: int, heads: int, size: int) -> Kernels:
    """What training calls, in its order, each on what those before it gave."""
    half = {"device": "cuda", "dtype": torch.bfloat16}
    q, down = (torch.randn(batch, length, heads, size, **half) for _ in range(2))
    k, v = (torch.randn(batch, length, 1, size, **half) for _ in range(2))
    means = means_of(k.transpose(1, 2), v.transpose(1, 2), SIZES)
    block_k, block_v = (x.transpose(1, 2).contiguous() for x in means)
    block = {"block_size": SIZES.block, "scale": size**-0.5}
    compress = {"q": q, "k": block_k, "v": block_v, **block}
    compressed, lse = parallel_nsa_compression_fwd(TK=length, **compress)
    choose = {"q": q, "k": block_k, "lse": lse, "TK": length, "block_counts": SIZES.selected}
    chosen = parallel_nsa_topk(**choose, **block)
    select = {"q": q, "k": k, "v": v, "block_indices": chosen, "block_counts": SIZES.selected}
    out, out_lse = parallel_nsa_fwd(**select, **block)
    given = {"o": compressed, "lse": lse, "do": down}
    return {
        "compressed, forward": lambda: parallel_nsa_compression_fwd(TK=length, **compress),
        "choice": lambda: parallel_nsa_topk(**choose, **block),
        "selected, forward": lambda: parallel_nsa_fwd(**select, **block),
        "selected, gradients": lambda: parallel_nsa_bwd(
            o=out, lse=out_lse, do=down, **select, **block
        ),
        THEIRS: lambda: parallel_nsa_compression_bwd(**compress, **given),
        OURS: lambda: means_gradients(q, block_k, block_v, compressed, lse, down, SIZES.block),
    }


def milliseconds(call: Callable[[], object]) -> float:
    """Of one call, of CALLS in a row."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(CALLS):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / CALLS


def errors(found: Kernels) -> Iterator[float]:
    """How far our gradients lie from theirs, for q, keys and values."""
    for ours, theirs in zip(found[OURS](), found[THEIRS](), strict=True):
        assert isinstance(ours, Tensor)
        assert isinstance(theirs, Tensor)
        yield float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def main() -> None:
    """Time everything and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("batch", 2), ("length", 16384), ("heads", 16), ("size", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("these kernels run on an NVIDIA GPU")
    found = kernels(asked.batch, asked.length, asked.heads, asked.size)
    apart = ", ".join(f"{error:.1e}" for error in errors(found))  # tunes and compiles as well
    rounds = [
        {name: milliseconds(call) for name, call in found.items()} for _ in range(asked.rounds)
    ]
    print(f"{torch.cuda.get_device_name()}, {asked.batch} x {asked.length:,}, {asked}\n")
    print("| kernel | ms | least to greatest |\n| --- | ---: | ---: |")
    for name in found:
        times = [each[name] for each in rounds]
        print(f"| {name} | {statistics.median(times):.3f} | {min(times):.3f} to {max(times):.3f} |")
    ratios = [each[THEIRS] / each[OURS] for each in rounds]
    told = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"\ntheirs takes {told} times as long as ours; q, k, v apart by {apart}")


if __name__ == "__main__":
    main()
