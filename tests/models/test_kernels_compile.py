"""Our kernels as a compiler sees them: an interpreter takes what no card would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from efficientllm.models.attend_cached import ROOM
from tests.models.kernels import with_triton


@with_triton
def test_every_kernel_compiles_for_cards_and_fits_into_their_memory(tmp_path: Path) -> None:
    program = Path(__file__).with_name("compile_kernels.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    found = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=600,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    made = [line.split() for line in found.stdout.splitlines()]
    kernels = {"_part", "_merge", "_keep", "_choose", "_tiles", "_look", "_read", "_branch"}
    kernels |= {"_multiply", "_multiply_each", "_queries", "_means", "_asking", "_asked", "_added"}
    kernels |= {"_gate", "_gate_gradient", "_cross", "_merge_gated"}
    assert {(name, card) for name, card, _ in made} == {
        (name, card) for name in kernels for card in ("80", "90")
    }
    # A data centre's cards have 227 KB, of which compilers take more than on those of 99.
    for _, card, shared in made:
        assert int(shared) <= (ROOM if card == "80" else 2 * ROOM)
