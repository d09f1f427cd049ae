"""Before a trial: the card as empty as it should be, and a word about who else is there."""

from __future__ import annotations

from efficientllm import clock, machine

MEMORY_WAIT_S = 60.0
SMALL_SHARE = 0.05
SEEN_BYTES = 64 << 20


def wait_for_memory(gpu: machine.Gpu | None) -> dict[str, str]:
    """Let the memory of a worker that has just ended be returned; notes about what stays."""
    if gpu is None:
        return {}
    start = clock.now_ns()
    while True:
        now = next((card for card in machine.gpus() if card.uuid == gpu.uuid), None)
        if now is None:
            raise machine.DeviceError(f"GPU {gpu.number} ({gpu.product}) is not there any more")
        small = now.foreign_bytes < SMALL_SHARE * now.memory_bytes
        if small or clock.seconds_since(start) > MEMORY_WAIT_S:
            break
        clock.sleep(0.5)
    if now.foreign_bytes <= SEEN_BYTES:
        return {}
    gib = now.foreign_bytes / 2**30
    note = "shared_device" if now.foreign_bytes < machine.SMALL_PROCESS_BYTES else "crowded_device"
    return {note: f"{gib:.2f} GiB of the card were in use before the trial"}
