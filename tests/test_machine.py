"""The machine: which card is meant, what class it is, and nothing that names it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from efficientllm import machine
from efficientllm.machine import DeviceError, Gpu, choose_gpu, describe
from efficientllm.record import Machine


def gpu(number: int, uuid: str, **changes: object) -> Gpu:
    """An idle card that does not exist."""
    card = Gpu(
        number=number,
        uuid=uuid,
        product="NVIDIA H200",
        memory_bytes=150_109_880_320,
        free_bytes=149_000_000_000,
        power_limit_w=700.0,
        busy_share=0.0,
        foreign_bytes=0,
        driver="580.1",
        mig=False,
    )
    return card._replace(**changes)


CARDS = [gpu(0, "GPU-aaaa-0"), gpu(1, "GPU-aabb-1"), gpu(2, "GPU-cccc-2"), gpu(10, "GPU-dddd-10")]


@pytest.mark.parametrize(
    ("variable", "numbers"),
    [
        (None, [0, 1, 2, 10]),
        ("0", [0]),
        ("2,0", [2, 0]),  # in the order asked for
        (" 1 , 2 ", [1, 2]),
        ("10", [10]),  # and not 1 and 0
        ("GPU-cccc-2", [2]),
        ("GPU-c", [2]),  # a prefix that fits one
        ("GPU-aa", []),  # two fit
        ("GPU-aab", [1]),
        ("", []),
        ("-1", []),
        ("7", []),
        ("0,-1,1", [0]),  # the first bad entry ends it
        ("0,,1", [0]),
        ("1,GPU-zzzz,2", [1]),
        ("MIG-cccc", []),
        ("NoDevFiles", []),
    ],
)
def test_the_visible_devices_variable_means_what_cuda_means(
    variable: str | None, numbers: list[int]
) -> None:
    assert [card.number for card in machine._visible(CARDS, variable)] == numbers


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> type:
    """A host whose cards a test decides."""

    class Host:
        @staticmethod
        def has(cards: Sequence[Gpu]) -> None:
            monkeypatch.setattr(machine, "gpus", lambda: list(cards))

    return Host


def test_the_first_idle_card_is_chosen(host: type) -> None:
    host.has([gpu(0, "a", busy_share=0.9), gpu(1, "b", foreign_bytes=3 << 30), gpu(2, "c")])
    chosen = choose_gpu(None)
    assert chosen is not None
    assert chosen.uuid == "c"


def test_a_display_on_a_card_does_not_make_it_busy(host: type) -> None:
    host.has([gpu(0, "a", foreign_bytes=1 << 30, busy_share=0.03)])
    assert choose_gpu(None) is not None


def test_a_busy_card_is_never_chosen_silently(host: type) -> None:
    host.has([gpu(0, "a", busy_share=0.05), gpu(1, "b", foreign_bytes=2 << 30)])
    with pytest.raises(DeviceError, match=r"all 2 GPUs are busy; wait, or choose one with --gpu N"):
        choose_gpu(None)
    chosen = choose_gpu(1)
    assert chosen is not None
    assert chosen.uuid == "b"


def test_a_number_counts_among_visible_cards(host: type) -> None:
    host.has([gpu(5, "f"), gpu(3, "d")])
    chosen = choose_gpu(1)
    assert chosen is not None
    assert chosen.uuid == "d"


@pytest.mark.parametrize("wanted", [-1, 1, 99])
def test_a_card_that_is_not_there_is_an_error(host: type, wanted: int) -> None:
    host.has([gpu(0, "a")])
    with pytest.raises(DeviceError, match=rf"--gpu {wanted}: there is no such GPU \(1 visible\)"):
        choose_gpu(wanted)


def test_without_any_card_the_cpu_is_meant_unless_a_card_was_asked_for(host: type) -> None:
    host.has([])
    assert choose_gpu(None) is None
    with pytest.raises(DeviceError, match="none is visible"):
        choose_gpu(0)


# Classes and cards


@pytest.fixture(autouse=True)
def _own_salt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_two_cards_of_one_product_are_one_class_and_two_blocks() -> None:
    one, two = describe(CARDS[0]), describe(CARDS[1])
    assert one.name == two.name
    assert one.card != two.card
    assert one.device == "NVIDIA H200"
    assert one.device_kind == "cuda"


@pytest.mark.parametrize(
    "change",
    [{"product": "NVIDIA H100 PCIe"}, {"power_limit_w": 500.0}, {"memory_bytes": 80 << 30}],
    ids=["product", "power limit", "memory"],
)
def test_what_changes_the_numbers_changes_the_class(change: dict[str, object]) -> None:
    assert describe(gpu(0, "a", **change)).name != describe(gpu(0, "a")).name


def test_a_class_is_named_in_plain_letters() -> None:
    for found in (describe(None), describe(gpu(0, "a", product="NVIDIA <b>/../x\0 (R)"))):
        assert set(found.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")
        assert not found.name.startswith((".", "-"))


def test_an_unknown_power_limit_stays_unknown() -> None:
    found = describe(gpu(0, "a", power_limit_w=None))
    assert found.power_limit_w is None
    assert "0w" not in found.name


def test_a_cpu_is_described_without_a_card_of_its_own() -> None:
    found = describe(None)
    assert (found.device_kind, found.power_limit_w) == ("cpu", None)
    assert found.cpu_cores == len(os.sched_getaffinity(0))
    assert found.device_memory_bytes == found.memory_bytes == machine.memory_bytes()


def test_a_card_is_told_apart_without_being_named() -> None:
    card = gpu(0, "GPU-12345678-1234-1234-1234-123456789012")
    found = describe(card).card
    assert found == describe(card).card
    assert len(found) == 12
    assert found not in card.uuid
    assert card.uuid not in describe(card).model_dump_json()


def test_another_machine_gives_the_same_card_another_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = describe(CARDS[0]).card
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another"))
    assert describe(CARDS[0]).card != here


def test_the_salt_is_made_once_and_kept(tmp_path: Path) -> None:
    describe(None)
    folder = tmp_path / "config" / "efficientllm"
    salt = (folder / "salt").read_text()
    assert len(salt) == 32
    describe(None)
    assert (folder / "salt").read_text() == salt
    assert [path.name for path in folder.iterdir()] == ["salt"]


def test_two_first_runs_at_once_agree_on_one_salt(tmp_path: Path) -> None:
    code = """
import os
from efficientllm.machine import _salted
ready, go = os.pipe()
told, tell = os.pipe()
for _ in range(12):
    if os.fork() == 0:
        os.close(go)
        os.read(ready, 1)
        os.write(tell, _salted("x").encode())
        os._exit(0)
os.close(go)
for _ in range(12):
    os.wait()
answers = os.read(told, 10_000)
print(len({answers[i : i + 12] for i in range(0, len(answers), 12)}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "1"


def test_a_home_that_cannot_be_written_still_has_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/dev/null")
    assert len(describe(None).card) == 12


def test_nothing_that_names_the_host_or_the_user_is_in_a_machine() -> None:
    shown = describe(None).model_dump_json() + str(machine.software(None))
    for secret in (os.uname().nodename, str(Path.home())):
        assert len(secret) < 3 or secret not in shown


# Memory


def test_memory_is_what_the_strictest_limit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine.memory_bytes()
    monkeypatch.setattr(machine.control_group, "limits", lambda: iter([1 << 60, 1 << 28]))
    assert machine.memory_bytes() == min(before, 1 << 28)
    monkeypatch.setattr(machine.control_group, "limits", lambda: iter([1 << 60]))
    assert machine.memory_bytes() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# Software


def test_software_names_what_can_change_a_number() -> None:
    found = machine.software(gpu(0, "a"))
    assert {"python", "kernel", "torch", "transformers", "efficientllm", "driver"} <= set(found)
    assert found["driver"] == "580.1"
    assert "driver" not in machine.software(None)


def test_nvml_is_closed_however_often_it_was_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own check opens it and forgets about it."""
    uses = [3]

    class Closed(Exception):
        pass

    def end() -> None:
        if not uses[0]:
            raise Closed
        uses[0] -= 1

    begin = lambda: uses.__setitem__(0, uses[0] + 1)  # noqa: E731
    library = SimpleNamespace(nvmlInit=begin, nvmlShutdown=end, NVMLError=Closed)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    machine.close_nvml()
    assert uses == [0]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    machine.close_nvml()


def test_a_host_without_a_driver_has_no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert machine.gpus() == []
    with pytest.raises(machine.NoNvml, match="nvidia-ml-py is not installed"), machine.nvml():
        pass


def test_a_machine_is_a_plain_part_of_a_record() -> None:
    found = describe(CARDS[0])
    assert Machine.model_validate_json(found.model_dump_json()) == found
