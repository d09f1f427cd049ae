"""Every fast kernel against a float32 reference: output and each gradient, as a table.

    python benchmarks/gradients.py [--only WORD] [--out FILE.json]

A number from a kernel whose gradients were not checked is not published: two library kernels
gave wrong gradients on Hopper with this compiler, and cuDNN gives NaN through a dense mask.
The reference is the plain formula in float32 on the very same inputs, which the fast path
reads in its own type: the error is the kernel's rounding, not that of the inputs. The checks
themselves stand in `checks.py`.

Error of a tensor: the length of (fast - reference) over that of the reference, in the worst
tile of 16 consecutive tokens (all of their values together). Over the whole tensor, or by the
largest difference over the largest value, a wrong tail is not seen: with the gradient of the
last 16 of 2,048 keys at zero both are smaller than rounding. Vector by vector, a sound kernel
seems wrong: in dq of a document's first tokens the terms cancel (0.27 was seen in one).

Tolerances: bf16 0.02, float32 1e-4. They were set beforehand and then held against flash and
packed attention on a CPU, 256 to 2,048 tokens: rounding gave at most 0.010 and 2.3e-6, one
vector at zero at least 0.14, the last 16 keys at least 0.61, everything times 1.03 gives 0.03.
GPU kernels were not part of that. A NaN fails. Exit status 1 if a row fails.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import measuring
from check import Check
from checks import CHECKS
from efficientllm.record import Unsupported
from efficientllm.techniques.build import DTYPE_NAMES

TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-4}
TILE = 16
SHORT = 0.01  # of the root mean square of all tiles: a shorter one counts as that long


def error(found: Tensor, right: Tensor) -> float:
    """Relative error of the worst tile; NaN if any value is not finite."""
    a, b = (x.detach().double().reshape(x.shape if x.ndim > 1 else (1, -1)) for x in (found, right))
    if a.shape != b.shape or not a.isfinite().all():
        return math.nan
    length = _tiles(b)
    floor = SHORT * length.square().mean().sqrt()
    return float((_tiles(a - b) / length.clamp_min(floor)).max())


def _tiles(x: Tensor) -> Tensor:
    """Lengths of x [..., T, D] over every TILE of T: [..., ceil(T / TILE)]."""
    padded = F.pad(x, (0, 0, 0, -x.shape[-2] % TILE))
    tiles = padded.reshape(*x.shape[:-2], -1, TILE * x.shape[-1])
    lengths: Tensor = torch.linalg.vector_norm(tiles, dim=-1)
    return lengths


def errors(check: Check) -> dict[str, float]:
    """Errors of the output and of the gradient of every input that asks for one."""
    learned = [name for name, x in check.inputs.items() if x.requires_grad]
    out = check.fast(**check.inputs)
    if not learned:
        return {"out": error(out, check.reference(**check.inputs))}
    generator = torch.Generator(out.device).manual_seed(1)
    pull = torch.randn(out.shape, generator=generator, device=out.device).to(out.dtype)
    fast = torch.autograd.grad(out, [check.inputs[n] for n in learned], pull)
    exact = {n: x.detach().float() if n in learned else x for n, x in check.inputs.items()}
    for name in learned:
        exact[name].requires_grad_()
    right = check.reference(**exact)
    slow = torch.autograd.grad(right, [exact[n] for n in learned], pull.float())
    gradients = zip(learned, fast, slow, strict=True)
    return {"out": error(out, right)} | {f"d {n}": error(a, b) for n, a, b in gradients}


def row(
    name: str, make: Callable[[torch.device, torch.dtype], Check], dtype: torch.dtype
) -> dict[str, Any]:
    """One check in one type: its errors and a verdict."""
    found: dict[str, Any] = {"kernel": name, "dtype": DTYPE_NAMES[dtype], "shape": "", "errors": {}}
    most = found["tolerance"] = TOLERANCE[dtype]
    torch.manual_seed(0)
    try:
        check = make(measuring.device().torch, dtype)
        found |= {"shape": check.shape, "errors": errors(check)}
    except Unsupported as why:
        return found | {"verdict": f"not here: {why}"}
    except Exception as broken:  # a row, not the table's end; a compiler's errors are many
        return found | {"verdict": f"FAILED: {str(broken).strip().splitlines()[0][:160]}"}
    right = all(e <= most for e in found["errors"].values())  # a NaN is not
    return found | {"verdict": "ok" if right else "FAILED"}


def line(found: dict[str, Any]) -> str:
    """A row as Markdown."""
    measured = ", ".join(f"{name} {value:.1e}" for name, value in found["errors"].items())
    cells = [found["kernel"], found["dtype"], found["shape"], measured or "-"]
    return "| " + " | ".join([*cells, f"{found['tolerance']:.0e}", found["verdict"]]) + " |"


def main() -> None:
    """Run every check in every type."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="checks with this word in their name")
    parser.add_argument("--out", type=Path, help="file for the same as JSON")
    args = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    product, _ = measuring.card()
    print(f"{product}, torch {torch.__version__}\n")
    print("| kernel | dtype | shape | errors | tolerance | verdict |")
    print("|" + " --- |" * 6)
    rows = []
    for name, make in CHECKS.items():
        for dtype in TOLERANCE if args.only in name else ():
            rows.append(row(name, make, dtype))
            print(line(rows[-1]), flush=True)
    if args.out:
        facts = {"device": product, "torch": torch.__version__, "rows": rows}
        args.out.write_text(json.dumps(facts, indent=1))
    sys.exit(any(found["verdict"].startswith("FAILED") for found in rows))


if __name__ == "__main__":
    main()
