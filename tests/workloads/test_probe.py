"""Known answers are only as good as what they count."""

from __future__ import annotations

import pytest

from efficientllm.spec.workload import Probe as Spec
from efficientllm.workloads.probe import Probe
from tests import tiny


def probe(check: str, naps: list[float]) -> Probe:
    return Probe(Spec(check=check), tiny.CPU, naps.append)


def test_a_sleep_asks_for_what_it_counts() -> None:
    naps: list[float] = []
    work = probe("sleep", naps)
    for _ in range(4):
        work.unit("sleep")
    assert work.counts("sleep", 4)["asked_s"] == pytest.approx(sum(naps))


def test_a_product_counts_two_flops_a_multiply_add() -> None:
    work = probe("product", [])
    work.unit("product")
    assert work.counts("product", 3) == {"flops": 3 * 2 * 512**3}


def test_a_copy_counts_bytes_read_and_bytes_written() -> None:
    work = probe("copy", [])
    work.unit("copy")
    assert work.counts("copy", 2) == {"bytes": 2 * 2 * (1 << 26)}


def test_a_square_wave_rests_after_every_load() -> None:
    naps: list[float] = []
    work = probe("square", naps)
    rested = []
    for _ in range(4):
        work.unit("square")
        rested.append(len(naps))
    assert rested == [0, 1, 1, 2]


def test_doing_nothing_counts_nothing() -> None:
    naps: list[float] = []
    work = probe("idle", naps)
    work.unit("idle")
    assert work.counts("idle", 1) == {}
    assert naps == [0.1]


@pytest.mark.parametrize("check", ["sleep", "product", "copy", "idle", "square"])
def test_a_probe_has_one_window_and_can_be_closed(check: str) -> None:
    work = probe(check, [])
    assert work.windows == (check,)
    assert work.budget is None
    work.close()
    assert "_a" not in vars(work)
