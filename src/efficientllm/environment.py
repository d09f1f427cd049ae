"""The environment of workers: built explicitly, from a list of names.

Tokens and keys never reach a worker.
"""

from __future__ import annotations

import os
from pathlib import Path

_PASSED = [
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "USER",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "SSL_CERT_FILE",
    "CC",
    "CXX",
]
_TUNING = (
    *("OMP_", "MKL_", "KMP_", "CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_TF32", "PYTORCH_", "TORCH"),
    *("TRITON_", "CUTE_DSL_", "FLASH_ATTENTION_", "NCCL_", "MALLOC_", "LD_PRELOAD"),
)


def child_environment(gpu_uuid: str | None) -> dict[str, str]:
    """The whole environment of a worker that uses this device and no other."""
    kept = {k: v for k, v in os.environ.items() if k in _PASSED or k.startswith(_TUNING)}
    fixed = {
        "CUDA_VISIBLE_DEVICES": gpu_uuid or "",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",  # no tokenizer has run where workers are forked
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
    }
    return _triton_cache() | kept | fixed


def tuning(environment: dict[str, str]) -> dict[str, str]:
    """The variables that can change a number, for the record; paths and devices stay out."""
    hidden = ("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_PATH")
    return {
        k: v
        for k, v in sorted(environment.items())
        if k.startswith(_TUNING) and k not in hidden and "/" not in v
    }


def _triton_cache() -> dict[str, str]:
    """Triton's own default folder for compiled kernels, said aloud.

    Inductor sets TRITON_CACHE_DIR to a folder of its own as soon as it compiles a kernel in
    this process, and not when it finds all of them in its cache. Kernels that are not its own
    would then be looked for elsewhere in a study's second trial than its first has put them.
    Where no home can be written, Inductor chooses.
    """
    home = Path(os.environ.get("TRITON_HOME") or os.path.expanduser("~"))  # noqa: PTH111 - no error
    return {"TRITON_CACHE_DIR": str(home / ".triton" / "cache")} if os.access(home, os.W_OK) else {}
