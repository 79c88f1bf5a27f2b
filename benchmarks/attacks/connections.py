"""Cases of strangers who open connections and never end what they begin."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from socket import socket
from threading import Barrier

from benchmarks.attacks.service import JSON, LARGE, TOKEN, Service, picture, scoring


def endless_head(service: Service) -> str | None:
    sent = 0
    with service.connect() as stranger:
        try:
            stranger.sendall(b"GET / HTTP/1.1\r\nx: ")
            while sent < 32 << 20:
                stranger.sendall(b"a" * 65_536)
                sent += 65_536
        except OSError:
            pass
    return None if sent < 4 << 20 else f"{sent} bytes of one head were read"


def announced_bodies(service: Service) -> str | None:
    with ExitStack() as stack:
        for _ in range(16):
            stranger = stack.enter_context(service.connect())
            stranger.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 33000000\r\n")
            stranger.sendall(f"Authorization: Bearer {TOKEN}\r\n\r\n".encode())
        statuses = {service.score() for _ in range(5)}
    return None if statuses == {200} else f"others got {statuses}"


def chunked_bodies(service: Service) -> str | None:
    """Send sixteen bodies of more than 2.4 MB without a length, all of which are half sent at the same time."""
    body = scoring(picture(*LARGE))
    if len(body) < 2_400_000:
        return f"the body has only {len(body)} bytes"
    together = Barrier(16)

    def send(_: int) -> int:
        def parts() -> Iterator[bytes]:
            yield body[: len(body) // 2]
            together.wait(60)
            yield body[len(body) // 2 :]

        return service.ask("POST", "/v1/score", parts(), JSON)[0]

    with ThreadPoolExecutor(16) as threads:
        statuses = list(threads.map(send, range(16)))
    return None if set(statuses) == {200} else f"answered {statuses}"


def silent_connections(service: Service) -> str | None:
    with ExitStack() as stack:
        silent = [stack.enter_context(service.connect()) for _ in range(800)]
        if (status := service.score()) != 200:
            return f"others got {status}"
        time.sleep(12)  # longer than sending a header may take
        still = sum(not ended(stranger) for stranger in silent)
    return f"{still} of {len(silent)} were open after 12 s" if still else None


def ended(stranger: socket) -> bool:
    """Whether the other side has closed the connection."""
    stranger.settimeout(0)
    try:
        return stranger.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def few_open_files(service: Service) -> str | None:
    """Open a hundred silent connections from one address to a service that may open 64 files; others are answered."""
    with service.another(files=64) as own, ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(own.connect("127.0.0.2"))
        statuses = {own.score() for _ in range(5)}
    return None if statuses == {200} else f"others got {statuses}"


def unknown_paths(service: Service) -> str | None:
    with service.connect() as stranger:
        stranger.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 33000000\r\n\r\n")
        said = stranger.recv(12)
    return None if said == b"HTTP/1.1 404" else f"said {said!r}"
