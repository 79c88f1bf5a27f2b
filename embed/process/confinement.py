"""What a process gives up for good before it reads a stranger's bytes: privileges, writing files, the network.

Landlock is in Linux since 5.13; the package `landlockpy` of the extra `hardened` sets it up. It binds the calling
thread and threads that start later, and keeps them from reading other processes. It also limits TCP, signals and
abstract sockets, if the kernel's version can, but neither UDP nor sockets that are files.
"""

import ctypes
import os
import sys
import sysconfig
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Reach = Literal["bytes", "files", "all"]  # only its input and its own code; also all files, to read; no limit

PR_SET_NO_NEW_PRIVS = 38
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")


def protections(reach: Reach) -> dict[str, int]:
    """Return what `confine` enforces on this machine: each protection and, for Landlock, the kernel's version of it."""
    if not sys.platform.startswith("linux"):
        return {}
    landlock = _landlock_version() if reach != "all" else 0
    return {"no_new_privs": 1} | ({"landlock": landlock} if landlock else {})


def confine(reach: Reach) -> None:
    """Take from this process, for good, everything beyond `reach`, as far as this machine can enforce it."""
    found = protections(reach)
    if "no_new_privs" in found:
        ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if "landlock" in found:
        _restrict(reach)


def _landlock_version() -> int:
    if find_spec("landlockpy") is None:
        return 0
    import landlockpy

    try:
        return int(landlockpy.abi_version())
    except landlockpy.LandlockError:  # it is forbidden, as in some containers
        return 0


def _restrict(reach: Reach) -> None:
    from landlockpy import AccessFS, Ruleset, Scope

    read = AccessFS.READ_FILE | AccessFS.READ_DIR
    with Ruleset(scoped=Scope.SIGNAL | Scope.ABSTRACT_UNIX_SOCKET) as rules:
        for path in _files() if reach == "files" else _code():
            with suppress(OSError):  # a path that is missing or cannot be opened needs no rule
                # For a path that is not a folder, the kernel refuses the right to list it.
                rules.allow_path(path, read if os.path.isdir(path) else AccessFS.READ_FILE)
        rules.allow_path(os.devnull, AccessFS.READ_FILE | AccessFS.WRITE_FILE)
        rules.restrict()


def _files() -> list[str]:
    """Return all paths except other processes, whose environment root could read in spite of Landlock."""
    return [f"/{name}" for name in os.listdir("/") if name != "proc"] + [f"/proc/{os.getpid()}"]


def _code() -> set[str]:
    """Return the paths of Python, libraries and this package, which are also imported later, and of this process."""
    python = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    installed = {path for path in sys.path if path.endswith(("site-packages", "dist-packages"))}
    return {*python, *installed, *LIBRARIES, str(Path(__file__).parents[1]), f"/proc/{os.getpid()}"}
