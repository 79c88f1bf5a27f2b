"""Describe the machine and the software of a measurement. The card's settings are read and not changed."""

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from on_gpu.common import Context

CARD = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm")
PACKAGES = ("open_clip_torch", "timm", "transformers", "onnx", "pyarrow", "pillow", "numpy", "faiss-cpu")


def measure(context: Context) -> dict[str, object]:
    """Return card, processor and versions."""
    import torch

    from embed.ort import require_onnxruntime

    ort = require_onnxruntime()
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    found: dict[str, object] = {
        **card(),
        "device": context.device,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "onnxruntime": ort.__version__,
        "providers": ort.get_available_providers(),
        "processor": processor[1] if processor else platform.machine(),
        "cpus": os.cpu_count(),
        "cpus_allowed": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in PACKAGES},
    }
    for name, value in found.items():
        context.say(f"{name}: {value}")
    return found


def card() -> dict[str, str]:
    """Return what the driver says about the first card, or nothing without a driver."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(CARD)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return dict(zip(CARD, map(str.strip, lines[0].split(",")), strict=False)) if lines else {}


def installed(name: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
