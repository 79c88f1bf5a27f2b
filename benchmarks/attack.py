"""Attack the service with one fault at a time, and check that it still answers others.

    python benchmarks/attack.py BUNDLE [--only filters,reload]

It starts `python -m runtime serve` on loopback, with a token and a small catalogue, and runs each case against it, or
against another one that the case starts; every case is limited in time and bytes. A case passes if its requests are
refused as they should be, /health/live is answered within --live-ms all the time, the peak memory of the process is at
most --memory times that under load alone, and a picture is scored afterwards. The load is one of small pictures; for
cases that send large ones or reload, it is one that does the same. The exit code is 1 if a case fails.
`--only` runs the cases whose names contain one of these texts. Some cases damage the bundle, so a copy is used. A full
disk is a small file system, which needs root to be mounted; without root this case is left out, with a message. The
last line of stdout is one JSON document. tests/embed/inputs/test_decoding.py covers a decoder that gives wrong answers.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
# This folder holds files named like our packages, so it comes last.
sys.path[:1] = [str(HERE.parent)]
sys.path += [str(HERE)]

from benchmarks.attacks import bodies, connections, operators, processes  # noqa: E402
from benchmarks.attacks.service import JSON, LARGE, Service, Skipped, picture, scoring  # noqa: E402
from benchmarks.pages import make_catalogue  # noqa: E402

PICTURES = 500  # of the catalogue

Attack = Callable[[Service], str | None]
Groups = list[tuple[Callable[[Service], None], dict[str, Attack]]]


def small_load(service: Service) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: service.score(), range(200)))


def large_load(service: Service) -> None:
    """Send as many large pictures at once as the cases of this group do, in the usual way."""
    body = scoring(picture(*LARGE))
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: service.ask("POST", "/v1/score", body, JSON), range(32)))


def reload_under_load(service: Service) -> None:
    """Reload twice, because each time the old engine serves until the new one is loaded."""
    with ThreadPoolExecutor(1) as threads:
        loaded = threads.submit(small_load, service)
        service.reload()
        service.reload()
        loaded.result()


# Each load, alone, and the cases whose memory is compared with it.
GROUPS: Groups = [
    (
        small_load,
        {
            "a head without end": connections.endless_head,
            "bodies that are announced and never sent": connections.announced_bodies,
            "silent connections": connections.silent_connections,
            "silent connections, and few open files": connections.few_open_files,
            "a body for an unknown path": connections.unknown_paths,
            "JSON of very many values": bodies.many_values,
            "forms in odd character sets": bodies.odd_forms,
            "filters of huge numbers and many parentheses": bodies.odd_filters,
            "a TIFF with huge tiles": bodies.slow_tiff,
            "one decoder stopped under load": lambda service: processes.stopped(service, 1),
            "all decoders stopped under load": lambda service: processes.stopped(service, 100),
            "decoders killed again and again under load": processes.killed,
            "a bundle overwritten in place": processes.overwritten,
            "starts that cannot be": operators.wrong_starts,
            "an end with bodies under way": operators.draining,
        },
    ),
    (
        large_load,
        {
            "large bodies without a length": connections.chunked_bodies,
            "a full temporary folder": bodies.full_disk,
            "decoders as a thief would find them": processes.confined,
        },
    ),
    (
        reload_under_load,
        {
            "twelve reloads, some at once": processes.reloaded,
            "messages that could name paths": operators.told_places,
            "tokens old, new, for /admin and wrong": operators.tokens,
        },
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--only", default="", help="run only cases whose names contain one of these texts")
    parser.add_argument("--live-ms", type=float, default=250)
    parser.add_argument("--memory", type=float, default=1.2)
    options = parser.parse_args()
    chosen = [
        (load, {name: case for name, case in cases.items() if any(part in name for part in options.only.split(","))})
        for load, cases in GROUPS
    ]
    if not any(cases for _, cases in chosen):
        names = ", ".join(name for _, cases in GROUPS for name in cases)
        parser.error(f"no case has a name with {options.only!r}; there are: {names}")
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(options.bundle, Path(folder, "bundle"))  # a copy, because cases damage it
        make_catalogue(copy, Path(folder, "catalogue"), PICTURES)
        service = Service(copy, "--catalogue", str(Path(folder, "catalogue")))
        sys.exit(attack(service, chosen, options.live_ms, options.memory))


def attack(service: Service, groups: Groups, most_live_ms: float, most_memory: float) -> int:
    """Run the cases against one service, print the results, stop it, and return the exit code."""
    found: dict[str, dict[str, object]] = {}
    try:
        for load, cases in groups:
            if cases:
                load(service)
            alone_bytes = service.peak_bytes
            for name, case in cases.items():
                one = found[name] = outcome(service, case, alone_bytes, most_live_ms, most_memory)
                verdict = "FAILED" if one["wrong"] else "-" if one["skipped"] else "ok"
                figures = f"/health/live {one['live_ms']:6.1f} ms  memory {one['memory']:.2f}"
                print(f"{verdict:7} {name:45} {figures}  {one['wrong'] or one['skipped'] or ''}".rstrip(), flush=True)
            service.forget_peak()
    finally:
        code = service.stop()
    live_ms, memory = (max(float(str(one[field])) for one in found.values()) for field in ("live_ms", "memory"))
    print(f"/health/live {live_ms:.0f} ms at most; memory {memory:.2f} of that under load alone; exit code {code}")
    machine = {"python": platform.python_version(), "cores": os.cpu_count(), "processor": platform.processor()}
    print(json.dumps({"cases": found, "memory": memory, "exit_code": code, "machine": machine}))
    return int(any(one["wrong"] for one in found.values()) or code != 0)


def outcome(
    service: Service, case: Attack, alone_bytes: int, most_live_ms: float, most_memory: float
) -> dict[str, object]:
    """Run one case, and return what is wrong, or why it was skipped, and its figures."""
    service.live_ms.clear()
    service.forget_peak()
    start, skipped = time.monotonic(), None
    try:
        wrong = case(service) or (f"afterwards {status}" if (status := service.score()) != 200 else None)
    except Skipped as reason:
        wrong, skipped = None, f"not run: {reason}"
    seen = len(service.live_ms)
    while len(service.live_ms) == seen:  # the request that is under way may be the slowest
        time.sleep(0.01)
    live_ms, memory = max(service.live_ms, default=float("inf")), service.peak_bytes / alone_bytes
    if live_ms > most_live_ms:
        wrong = wrong or f"/health/live took {live_ms:.0f} ms"
    if memory > most_memory:
        wrong = wrong or f"it took {memory:.2f} times the memory"
    figures = {"live_ms": round(live_ms, 1), "memory": round(memory, 3), "seconds": round(time.monotonic() - start, 1)}
    return {"wrong": wrong, "skipped": skipped, **figures}


if __name__ == "__main__":
    main()
