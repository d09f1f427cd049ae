"""Whether enough trials were made, as the protocol asks for precision."""

from __future__ import annotations

from efficientllm.analysis.table import rows
from efficientllm.record import Record
from efficientllm.spec.protocol import Protocol


def precise(records: list[Record], protocol: Protocol) -> bool:
    """Whether a case's trials reach the protocol's precision in time and in energy.

    The slowest-to-settle point decides. Metrics that nothing measured ask for nothing; how
    steady one run was says nothing here.
    """
    limits = protocol.limits
    if protocol.trials is not None or limits.time_half_width is None:
        return True
    targets = {
        "step_p50_s": limits.time_half_width,
        "ttft_s": limits.time_half_width,
        "tpot_s": limits.time_half_width,
        "j_per_token": limits.energy_half_width,
    }
    for row in rows(records):
        for key, target in targets.items():
            interval = row.cell(key).interval
            if interval is None or target is None or row.cell(key).invalid:
                continue
            half_width = interval.half_width if interval.basis == "trials" else None
            if half_width is None or half_width > target:
                return False
    return True
