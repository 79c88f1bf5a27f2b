"""What the figures were measured on, and with. Reads the card's properties and changes none."""

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
    """Card, processor and versions."""
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
    """What the driver says of the first card; nothing where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(CARD)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return dict(zip(CARD, map(str.strip, lines[0].split(",")), strict=False)) if lines else {}


def installed(name: str) -> str | None:
    """The version of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
