"""NSA's kernels beside flash-linear-attention's, step by step of a training.

    pip install flash-linear-attention
    python benchmarks/sparse.py [--batch 2] [--length 16384] [--heads 16] [--size 64] [--rounds 5]

The compressed and the selected branch alone, on random numbers, in bf16 and with one key/value
head. A round times each step once (a few calls between two events), so that a change of the
clock meets all alike, and who is first changes from round to round. A number is the median of
rounds, a ratio that of the ratios within rounds, with the least and the greatest beside it.
Ours looks, chooses and reads in one step.
The gradients of both are taken from the same outputs; how far apart they lie (as a norm) stands
beside them. Theirs is tuned before the first round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from fla.ops.nsa.compression import parallel_nsa_compression_bwd, parallel_nsa_compression_fwd
from fla.ops.nsa.parallel import parallel_nsa_bwd, parallel_nsa_fwd, parallel_nsa_topk
from torch import Tensor

from efficientllm.catalog.shape import Sparse
from efficientllm.models.sparse_chosen_kernel import chosen_gradients
from efficientllm.models.sparse_means_kernel import means_gradients
from efficientllm.models.sparse_reference import means_of
from efficientllm.models.sparse_rows_kernel import attend_branches

SIZES = Sparse(block=64, selected=16, window=512)
CALLS = 5
FORWARD, MEANS, CHOSEN = "both branches", "gradients of means", "gradients of chosen blocks"

Call = Callable[[], tuple[Tensor, ...]]


def steps(batch: int, length: int, heads: int, size: int) -> dict[str, tuple[Call, Call]]:
    """What training calls, theirs and ours, each on what came before it."""
    half = {"device": "cuda", "dtype": torch.bfloat16}
    q, down = (torch.randn(batch, length, heads, size, **half) for _ in range(2))
    k, v = (torch.randn(batch, length, 1, size, **half) for _ in range(2))
    means = means_of(k.transpose(1, 2), v.transpose(1, 2), SIZES)
    block_k, block_v = (x.transpose(1, 2).contiguous() for x in means)
    block = {"block_size": SIZES.block, "scale": size**-0.5}

    def theirs() -> tuple[Tensor, ...]:
        looked = {"q": q, "k": block_k, "TK": length, **block}
        compressed, lse = parallel_nsa_compression_fwd(v=block_v, **looked)
        chosen = parallel_nsa_topk(lse=lse, block_counts=SIZES.selected, **looked)
        read = {"block_indices": chosen, "block_counts": SIZES.selected}
        out, out_lse = parallel_nsa_fwd(q=q, k=k, v=v, **read, **block)
        return compressed, out, lse, out_lse, chosen

    compressed, out, lse, out_lse, chosen = theirs()
    looked = {"q": q, "k": block_k, "v": block_v, "o": compressed, "lse": lse, "do": down}
    read = {"q": q, "k": k, "v": v, "o": out, "lse": out_lse, "do": down}
    read |= {"block_indices": chosen, "block_counts": SIZES.selected}
    means_too = (block_k, block_v)
    return {
        FORWARD: (
            lambda: defined(theirs()),
            lambda: defined(attend_branches(q, k, v, means_too, SIZES.block, SIZES.selected)),
        ),
        MEANS: (
            lambda: parallel_nsa_compression_bwd(**looked, **block),
            lambda: means_gradients(q, *means_too, compressed, lse, down, SIZES.block),
        ),
        CHOSEN: (
            lambda: parallel_nsa_bwd(**read, **block),
            lambda: added(q, k, v, out, out_lse, down, chosen, SIZES.block),
        ),
    }


def defined(found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What the branches gave, less the sums over means of queries that have none behind them."""
    compressed, out, looked, *rest = found
    return compressed, out, looked[:, SIZES.block - 1 :], *rest


def added(q: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Our gradients of q, k and v, with nothing to add that of q to."""
    dq = torch.zeros_like(q)
    return dq, *chosen_gradients(q, *rest, dq)


def times(pair: tuple[Call, Call], *, turned: bool) -> list[float]:
    """Milliseconds of both, of the second first where `turned`."""
    found = [milliseconds(call) for call in (pair[::-1] if turned else pair)]
    return found[::-1] if turned else found


def milliseconds(call: Call) -> float:
    """Of one call, of CALLS in a row."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(CALLS):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / CALLS


def apart(theirs: Call, ours: Call) -> Iterator[str]:
    """How far ours lies from theirs, tensor by tensor; of choices the part that differs."""
    for one, other in zip(ours(), theirs(), strict=True):
        if other.is_floating_point():
            away = (one.float() - other.float()).norm() / other.float().norm()
        else:
            one, other = (x.sort(dim=-1).values for x in (one, other))
            away = (one != other).float().mean()
        yield f"{float(away):.1e}"


def told(numbers: list[float], digits: int) -> str:
    """The median with the least and the greatest."""
    median, least, most = statistics.median(numbers), min(numbers), max(numbers)
    return f"{median:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


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
    torch.manual_seed(0)
    found = steps(asked.batch, asked.length, asked.heads, asked.size)
    away = {name: ", ".join(apart(*pair)) for name, pair in found.items()}
    rounds = [
        {name: times(pair, turned=number % 2 == 1) for name, pair in found.items()}
        for number in range(asked.rounds)
    ]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {vars(asked)}\n")
    print("| step | theirs (ms) | ours (ms) | theirs / ours | apart |")
    print("| --- | ---: | ---: | ---: | --- |")
    for name in found:
        theirs, ours = zip(*(each[name] for each in rounds), strict=True)
        ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
        numbers = told(list(theirs), 3), told(list(ours), 3), told(ratios, 2)
        print("|", " | ".join([name, *numbers, away[name]]), "|")


if __name__ == "__main__":
    main()
