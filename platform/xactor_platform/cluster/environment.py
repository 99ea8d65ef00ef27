"""Describe the machine and the software that measured figures depend on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "diffusers", "ray", "deepspeed", "webdataset", "numpy", "pyarrow")


def environment() -> dict[str, Any]:
    """Return the machine, its load and the versions of the main packages, for a results file."""
    return {
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        **packages(),
    }


def packages() -> dict[str, str]:
    """Return the versions of those PACKAGES that are installed, by name.

    Ray and DeepSpeed may be missing, because they are not needed to run a model.
    """
    return {name: found for name in PACKAGES if (found := _version(name))}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
