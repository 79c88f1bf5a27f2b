"""The one place that imports onnxruntime: without its telemetry, and with what to do where it is not installed."""

import importlib
import io
import logging
import os
from contextlib import redirect_stdout
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from types import ModuleType

from embed.spec import InputError

logger = logging.getLogger(__name__)


def require_onnxruntime(module: str = "onnxruntime") -> ModuleType:
    """onnxruntime, or the submodule asked for. Raise InputError with the pip line that mends it if it is not installed,
    or if two packages of it fight, which they do in one folder; of two folders the first on the path wins.
    """
    # Since 1.29 it sends word of every session to its maker, unless this was set before it is first imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found.append(str(distribution(name).locate_file("onnxruntime")))
        except PackageNotFoundError:
            continue
    if len(found) != len(set(found)):
        raise InputError(
            "both onnxruntime and onnxruntime-gpu are installed and overwrite each other's files; run:"
            " pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'plaudit[cpu]' (or 'plaudit[gpu]')"
        )
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"onnxruntime cannot be imported ({error}); run: pip install 'plaudit[cpu]' (or 'plaudit[gpu]' for CUDA)"
        ) from None


@cache
def load_cuda_libraries() -> None:
    """Load CUDA and cuDNN from where pip installs them, beside torch or by themselves, if they are there.

    onnxruntime itself looks only where the system's libraries are, and does not start on CUDA without them.
    """
    with redirect_stdout(io.StringIO()) as said:  # it prints what it misses; a session that does not start says more
        require_onnxruntime().preload_dlls()
    logger.info("CUDA's libraries are loaded. %s", said.getvalue().strip())
