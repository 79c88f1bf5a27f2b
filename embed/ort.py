"""The only place that imports onnxruntime: without its telemetry, and with advice if it is not installed."""

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
    """Import onnxruntime or one of its submodules.

    Raise InputError, with the pip command that helps, if it is not installed or if two packages of it are installed in
    the same folder and overwrite each other. If they are in two folders, the first on the path is used.
    """
    # Since 1.29 it reports every session to its maker unless this variable is set before the first import.
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
    """Load the libraries of CUDA and cuDNN that pip has installed, if there are any.

    onnxruntime alone looks only in the system's folders, and its sessions do not start on CUDA without these libraries.
    """
    with redirect_stdout(io.StringIO()) as said:  # it prints what it misses; a session that does not start says more
        require_onnxruntime().preload_dlls()
    logger.info("CUDA's libraries are loaded. %s", said.getvalue().strip())
