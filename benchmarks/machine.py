"""What a benchmark runs on."""

import platform
from typing import Any

import torch

from spin_native.version import __version__


def environment() -> dict[str, Any]:
    """Versions and hardware, which are also printed."""
    found = {
        "spin_native": __version__,
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "bf16": torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }
    print(" ".join(f"{name}={value}" for name, value in found.items()), flush=True)
    return found
