"""Cases of what happens to the service's own processes, files and memory."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from benchmarks.attacks.service import JSON, LARGE, Service, decoders, picture, scoring, under_load
from embed.process.child import HARMLESS

ALLOWED = {*HARMLESS, "OPENBLAS_NUM_THREADS"}  # the variables of a decoder
RELOADS, AT_ONCE = 8, 4
GROWTH = 1.1  # the largest ratio of the memory after all reloads to that after the first two
FREED_S = 5.0  # how long the memory of the last engine may take to be free


def confined(service: Service) -> str | None:
    """Look at the decoders while they decode: their variables, the limit of their memory and their privileges."""
    if "PLAUDIT_TOKEN" not in variables(service.process.pid):
        return "the service itself has no token in its environment"
    pids, limited = decoders(service), set[int]()
    body = scoring(*[picture(*LARGE)] * 8)
    with ThreadPoolExecutor(1) as threads:
        answered = threads.submit(service.ask, "POST", "/v1/score", body, JSON)
        while not answered.done():
            limited |= {pid for pid in pids if is_limited(pid)}
    given = {name for pid in pids for name in variables(pid)}
    privileged = [pid for pid in pids if "NoNewPrivs:\t1" not in Path(f"/proc/{pid}/status").read_text()]
    if given - ALLOWED:
        return f"decoders have the variables {sorted(given - ALLOWED)}"
    if privileged:
        return f"{len(privileged)} of {len(pids)} decoders may gain privileges"
    if limited != set(pids) or not pids:
        return f"the memory of only {len(limited)} of {len(pids)} decoders was limited while they decoded"
    return None if answered.result()[0] == 200 else f"answered {answered.result()[0]}"


def variables(pid: int) -> set[str]:
    """Return the names of the variables with which a process was started."""
    found = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return {entry.partition(b"=")[0].decode() for entry in found if entry}


def is_limited(pid: int) -> bool:
    """Whether the address space of a process is limited now."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line for line in lines if line.startswith("Max address space")).split()[3] != "unlimited"


def stopped(service: Service, count: int) -> str | None:
    """Stop decoders, as a debugger would: they neither answer nor end."""

    def strike() -> None:
        for pid in decoders(service)[:count]:
            os.kill(pid, signal.SIGSTOP)

    return under_load(service, strike)


def killed(service: Service) -> str | None:
    """Kill decoders one after another, as a system without memory would."""

    def strike() -> None:
        for _ in range(10):
            for pid in decoders(service):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)

    return under_load(service, strike)


def overwritten(service: Service) -> str | None:
    """Truncate the weights in place, reload, which must be refused, and restore the weights."""
    weights = service.bundle / "weights.bin"
    data = weights.read_bytes()
    try:
        with open(weights, "r+b") as file:
            file.truncate(1000)
        status, answer = service.reload()
        others = service.score()
    finally:
        weights.write_bytes(data)
    refused = status == 422 and b"weights.bin" in answer
    return None if refused and others == 200 else f"the reload got {status}, others {others}"


def reloaded(service: Service) -> str | None:
    """Reload twelve times, the last four at once, and compare memory with that after the first two."""
    statuses = {service.reload()[0] for _ in range(2)}
    after_two = service.resident_bytes
    statuses |= {service.reload()[0] for _ in range(RELOADS - 2)}
    with ThreadPoolExecutor(AT_ONCE) as threads:
        statuses |= {status for status, _ in threads.map(lambda _: service.reload(), range(AT_ONCE))}
    deadline = time.monotonic() + FREED_S
    while (last := service.resident_bytes) > GROWTH * after_two and time.monotonic() < deadline:
        time.sleep(0.1)
    if statuses != {200}:
        return f"the reloads got {statuses}"
    return None if last <= GROWTH * after_two else f"{after_two >> 20} MB after two reloads, {last >> 20} after twelve"
