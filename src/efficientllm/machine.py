"""The machine: what it is, what is installed, which device is free. No torch.

A machine is a *class* (device product and count, power limit, CPU, memory): records of
one class may be compared. The single card is kept apart as a salted hash of its UUID, so
that comparisons can pair within one card and an export can be published. NVML is asked
here and in `meters/` only, and a device is always found by UUID: NVML's order and CUDA's
differ as soon as somebody sets CUDA_VISIBLE_DEVICES.

The sampler, which starts with every trial, imports this for NVML alone: what only `describe`
and `software` need, they import themselves.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from efficientllm.record import Machine

from efficientllm import control_group
from efficientllm.failure import DeviceError as DeviceError
from efficientllm.provenance import own_code

PACKAGES = (
    *("torch", "transformers", "peft", "torchao", "triton", "liger-kernel", "safetensors"),
    *("flash-attn-4", "nvidia-cutlass-dsl"),
)
SMALL_PROCESS_BYTES = 2 << 30
MOST_NVML_USES = 10_000


class Gpu(NamedTuple):
    """A card as NVML describes it right now. `number` is NVML's, for people only."""

    number: int
    uuid: str
    product: str
    memory_bytes: int
    free_bytes: int
    power_limit_w: float | None
    busy_share: float
    foreign_bytes: int
    driver: str
    mig: bool
    capability: tuple[int, int] | None = None

    @property
    def idle(self) -> bool:
        """Nothing computes there and nothing large lies in its memory."""
        return self.busy_share < 0.05 and self.foreign_bytes < SMALL_PROCESS_BYTES


class NoNvml(RuntimeError):
    """NVML cannot be used here; the text says why."""


@contextmanager
def nvml() -> Iterator[Any]:
    """The pynvml module, initialized, or NoNvml."""
    try:
        import pynvml
    except ImportError as error:
        raise NoNvml("the Python package nvidia-ml-py is not installed") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoNvml(f"no NVIDIA driver here ({error})") from error
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def close_nvml() -> None:
    """End every use of NVML in this process.

    torch's check for a device begins one and never ends it; its files would stay open, and
    pass into every fork.
    """
    try:
        import pynvml
    except ImportError:
        return
    try:
        pynvml.nvmlInit()
        for _ in range(MOST_NVML_USES):  # they are counted; the one too many raises
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return


def gpus() -> list[Gpu]:
    """Every card that NVML shows and CUDA_VISIBLE_DEVICES leaves; [] without a driver."""
    try:
        with nvml() as n:
            found = [_gpu(n, i) for i in range(n.nvmlDeviceGetCount())]
    except NoNvml:
        return []
    return _visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _gpu(n: Any, index: int) -> Gpu:
    handle = n.nvmlDeviceGetHandleByIndex(index)
    memory = memory_v2(n, handle)
    return Gpu(
        number=index,
        uuid=_text(n.nvmlDeviceGetUUID(handle)),
        product=_text(n.nvmlDeviceGetName(handle)),
        memory_bytes=memory.total,
        free_bytes=memory.free,
        power_limit_w=_ask(n, lambda: n.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3),
        busy_share=_ask(n, lambda: n.nvmlDeviceGetUtilizationRates(handle).gpu / 100) or 0.0,
        foreign_bytes=memory.used,
        driver=_text(n.nvmlSystemGetDriverVersion()),
        mig=bool(_ask(n, lambda: n.nvmlDeviceGetMigMode(handle)[0])),
        capability=_ask(n, lambda: tuple(n.nvmlDeviceGetCudaComputeCapability(handle))),
    )


def memory_v2(n: Any, handle: Any) -> Any:
    """NVML's memory without what the driver reserves (v1 counts that as used)."""
    try:
        return n.nvmlDeviceGetMemoryInfo(handle, version=n.nvmlMemory_v2)
    except (n.NVMLError, TypeError, AttributeError):
        return n.nvmlDeviceGetMemoryInfo(handle)


def _ask(n: Any, question: Any) -> Any:
    """What NVML answers, or None where this card does not support the question."""
    try:
        return question()
    except n.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _visible(found: list[Gpu], variable: str | None) -> list[Gpu]:
    """Apply CUDA_VISIBLE_DEVICES (indices or UUID prefixes; the first bad entry ends it)."""
    if variable is None:
        return found
    kept: list[Gpu] = []
    for entry in (part.strip() for part in variable.split(",")):
        chosen = [
            g for g in found if entry and (str(g.number) == entry or g.uuid.startswith(entry))
        ]
        if len(chosen) != 1:
            break
        kept.append(chosen[0])
    return kept


def choose_gpu(wanted: int | None) -> Gpu | None:
    """The card to measure on: the one asked for, else an idle one; None without any.

    A busy card is never chosen silently: two measurements on one card are two wrong ones.
    """
    cards = gpus()
    if wanted is not None:
        if not 0 <= wanted < len(cards):
            seen = f"{len(cards)} visible" if cards else "none is visible"
            raise DeviceError(f"--gpu {wanted}: there is no such GPU ({seen})")
        return cards[wanted]
    if not cards:
        return None
    idle = [card for card in cards if card.idle]
    if not idle:
        raise DeviceError(
            f"all {len(cards)} GPUs are busy; wait, or choose one with --gpu N and accept that"
            " its numbers are flagged SHARED_DEVICE"
        )
    return idle[0]


def describe(gpu: Gpu | None) -> Machine:
    """The machine with the device that will be measured."""
    from efficientllm.record import Machine

    cpu, cores, memory = _cpu_name(), len(os.sched_getaffinity(0)), memory_bytes()
    if gpu is None:
        name = f"cpu {cpu} {cores} cores {memory / 2**30:.0f}g"
        return Machine(
            name=_slug(name),
            device=cpu,
            device_kind="cpu",
            device_count=1,
            device_memory_bytes=memory,
            power_limit_w=None,
            cpu=cpu,
            cpu_cores=cores,
            memory_bytes=memory,
            card=_salted(_machine_id()),
        )
    watts = f" {gpu.power_limit_w:.0f}w" if gpu.power_limit_w else ""
    return Machine(
        name=_slug(f"{gpu.product} {gpu.memory_bytes / 2**30:.0f}g{watts} {cpu} {cores} cores"),
        device=gpu.product,
        device_kind="cuda",
        device_count=1,
        device_memory_bytes=gpu.memory_bytes,
        power_limit_w=gpu.power_limit_w,
        cpu=cpu,
        cpu_cores=cores,
        memory_bytes=memory,
        card=_salted(gpu.uuid),
    )


def software(gpu: Gpu | None) -> dict[str, str]:
    """Versions that can change a number: interpreter, kernel, driver, libraries, our own code."""
    from importlib import metadata

    versions = {"python": platform.python_version(), "kernel": platform.release().split("-")[0]}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if gpu is not None:
        versions["driver"] = gpu.driver
    return versions | own_code()


def memory_bytes() -> int:
    """Memory this process may use: the machine's, or less where a control group says so."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *control_group.limits()])


def _cpu_name() -> str:
    name = control_group.first_line(Path("/proc/cpuinfo"), r"model name\s*:\s*(.+)")
    return (name or "").strip() or platform.machine()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text("ascii").strip()
    except OSError:
        return platform.node()


def _salted(identity: str) -> str:
    """A hash that is stable on this machine and says nothing elsewhere."""
    return hashlib.sha256(f"{_salt()}:{identity}".encode()).hexdigest()[:12]


def _salt() -> str:
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "efficientllm"
    path = folder / "salt"
    temporary = path.with_name(f"salt.{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            temporary.write_text(secrets.token_hex(16), "ascii")
            with suppress(FileExistsError):  # whole or not at all: two first runs agree on one
                os.link(temporary, path)
            temporary.unlink()
        return path.read_text("ascii")
    except OSError:
        return platform.node()
