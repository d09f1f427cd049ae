"""Peaks: a card gets its own maker's figures, and an unknown one gets none."""

from __future__ import annotations

from pathlib import Path

import pytest

from efficientllm.catalog.peaks import declared, machine_named, peak_of, peaks
from efficientllm.spec.document import SpecError

SHEET = """\
id: mine
match: []
memory_gib: 24
bandwidth_tb_s: 0.5
power_w: 200
peak: {bf16: 100}
source: a sheet
"""


@pytest.mark.parametrize(
    ("product", "machine"),
    [
        ("NVIDIA H200", "h200-141gb"),
        ("NVIDIA H200 NVL", "h200-nvl-141gb"),
        ("NVIDIA GH200 480GB", "gh200-96gb"),
        ("NVIDIA B200", "b200-192gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie-80gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA L40S", "l40s-48gb"),
        ("NVIDIA L4", "l4-24gb"),
        ("NVIDIA A10", "a10-24gb"),
        ("NVIDIA GeForce RTX 4090", "rtx4090-24gb"),
        ("NVIDIA GeForce RTX 3090", "rtx3090-24gb"),
        ("Tesla V100-SXM2-32GB", "v100-32gb"),
        ("Tesla T4", "t4-16gb"),
    ],
)
def test_names_as_drivers_report_them_find_their_card(product: str, machine: str) -> None:
    found = peak_of(product)
    assert found is not None
    assert found.id == machine


@pytest.mark.parametrize(
    "product",
    [
        "NVIDIA H20",
        "NVIDIA H800",
        "NVIDIA L40",
        "NVIDIA A40",
        "NVIDIA A10G",
        "NVIDIA T4G",
        "NVIDIA GB200",
        "NVIDIA GH200 144G HBM3e",
        "NVIDIA RTX A4000",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A10-24Q",
        "AMD Instinct MI300X",
        "AMD EPYC 9654 96-Core Processor",
        "",
    ],
)
def test_another_card_has_no_peak_rather_than_a_similar_ones(product: str) -> None:
    assert peak_of(product) is None


def test_a_machine_is_named_by_its_id_in_any_case() -> None:
    assert machine_named("H200-141GB").memory_gib == 139.8
    with pytest.raises(SpecError, match="--on: no machine 'h100-80g'; did you mean h100-80gb"):
        machine_named("h100-80g")


def test_peaks_are_in_base_units_and_missing_ones_are_none() -> None:
    h200 = machine_named("h200-141gb")
    assert h200.flops("bf16") == 989e12
    assert h200.bytes_per_s == pytest.approx(4.8e12)
    assert machine_named("v100-32gb").flops("bf16") is None


def test_figures_are_dense_and_in_order() -> None:
    for peak in peaks():
        assert peak.source
        fast, slow = peak.peak.get("bf16") or peak.peak["fp16"], peak.peak["float32"]
        assert fast / slow < 35, peak.id  # dense tensor cores over plain ones; sparse doubles it
        for eight in ("fp8", "int8"):
            if eight in peak.peak:
                assert peak.peak[eight] / fast == pytest.approx(2.0, rel=0.02) or (
                    peak.id.startswith(("rtx", "t4")) and peak.peak[eight] / fast <= 4.02
                ), peak.id


def test_ids_and_names_are_used_once() -> None:
    ids = [peak.id for peak in peaks()]
    names = [name for peak in peaks() for name in peak.match]
    assert len(set(ids)) == len(ids)
    assert len(set(names)) == len(names)


def test_a_declared_peak_is_shown_as_declared(tmp_path: Path) -> None:
    path = tmp_path / "peak.yaml"
    path.write_text(SHEET)
    found = declared(path)
    assert found.declared
    assert found.flops("bf16") == 1e14
    assert not any(peak.declared for peak in peaks())


@pytest.mark.parametrize(
    "text",
    ["", "[]", "just words", "id: x", "id: [", "\x00", "id: &a x", SHEET.replace("100", "0")],
)
def test_a_file_that_declares_no_peak_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "peak.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=r"peak\.yaml"):
        declared(path)
    with pytest.raises(SpecError, match=r"nothing\.yaml: cannot be read"):
        declared(tmp_path / "nothing.yaml")
