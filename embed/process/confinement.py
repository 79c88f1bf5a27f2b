"""What a process gives up for good before strangers' bytes reach it: privileges, files to write, the network.

Landlock, which Linux has since 5.13, is asked for by the package `landlockpy` of the extra `hardened`. It ties the
thread that asks and those that come after it, and keeps it from looking into other processes. It covers TCP, signals
and abstract sockets as far as the kernel's version of it does, and neither UDP nor sockets that are files.
"""

import ctypes
import os
import sys
import sysconfig
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Reach = Literal["bytes", "files", "all"]  # what it is sent and its own code; any file to read; what any process may

PR_SET_NO_NEW_PRIVS = 38
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")


def protections(reach: Reach) -> dict[str, int]:
    """What `confine` puts in force on this machine: by name, with the version of Landlock that the kernel has."""
    if not sys.platform.startswith("linux"):
        return {}
    landlock = _landlock_version() if reach != "all" else 0
    return {"no_new_privs": 1} | ({"landlock": landlock} if landlock else {})


def confine(reach: Reach) -> None:
    """Take everything beyond `reach` from this process, for good, as far as this machine can."""
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
    except landlockpy.LandlockError:  # forbidden, as in some containers
        return 0


def _restrict(reach: Reach) -> None:
    from landlockpy import AccessFS, Ruleset, Scope

    read = AccessFS.READ_FILE | AccessFS.READ_DIR
    with Ruleset(scoped=Scope.SIGNAL | Scope.ABSTRACT_UNIX_SOCKET) as rules:
        for path in _files() if reach == "files" else _code():
            with suppress(OSError):  # what is not there, or cannot be opened, needs no rule
                # The kernel refuses rights to list what is no folder.
                rules.allow_path(path, read if os.path.isdir(path) else AccessFS.READ_FILE)
        rules.allow_path(os.devnull, AccessFS.READ_FILE | AccessFS.WRITE_FILE)
        rules.restrict()


def _files() -> list[str]:
    """All but other processes, whose environment root may read in spite of Landlock."""
    return [f"/{name}" for name in os.listdir("/") if name != "proc"] + [f"/proc/{os.getpid()}"]


def _code() -> set[str]:
    """Where Python, libraries and this package lie, which are imported late, too, and where a process is measured."""
    python = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    installed = {path for path in sys.path if path.endswith(("site-packages", "dist-packages"))}
    return {*python, *installed, *LIBRARIES, str(Path(__file__).parents[1]), f"/proc/{os.getpid()}"}
