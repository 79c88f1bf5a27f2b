"""Cases of a service that is started, told and ended in the wrong way, or by the wrong person."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

from benchmarks.attacks.service import AUTHORIZED, JSON, ROOT, TOKEN, Service, picture, scoring

DRAIN_S = 4
END_S = DRAIN_S + 10.0  # how long ending may take in all: --drain, and the deadline of a request


def told_places(service: Service) -> str | None:
    """Damage and remove files of the bundle and the catalogue, reload, and look for paths in all answers."""
    home = service.bundle.parent
    odd = [{"likes": [{"id": "/nobody"}]}, {"likes": [{"text": "a"}], "where": "nothing = 1"}]
    answers = [service.ask("POST", "/v1/similar", json.dumps(body).encode(), JSON) for body in odd]
    answers += [service.ask("GET", f"/v1/thumbnails/{name}", headers=AUTHORIZED) for name in ("nobody", "0.jpg")]
    answers += [service.ask("POST", "/v1/score", scoring(b"no picture"), JSON), service.ask("GET", "/nothing")]
    for name in ("bundle/head.onnx", "bundle/bundle.json", "catalogue/manifest.json"):
        file = home / name
        whole = file.read_bytes()
        try:
            file.write_bytes(b"{}")
            answers.append(service.reload())
            file.unlink()
            answers.append(service.reload())
        finally:
            file.write_bytes(whole)
    statuses = [status for status, _ in answers]
    if any(status == 0 or status >= 500 for status in statuses) or statuses[-6:] != [422] * 6:
        return f"answered {statuses}"
    places = [str(place).encode() for place in (home, ROOT, sys.prefix, Path.home())]
    told = [answer for _, answer in answers if any(place in answer for place in places)]
    return f"answered {told[0][:300]!r}" if told else None


def wrong_starts(service: Service) -> str | None:
    """Start services that cannot be: each ends with code 2 and one line, before it looks at the bundle."""
    nothing = str(service.bundle.parent / "nothing")
    port = str(service.port)
    starts: list[tuple[list[str], str | None, str]] = [  # options, token, and what the line says
        (["--host", "0.0.0.0"], None, "there is no token"),
        (["--port", "99999"], TOKEN, "wanted 0 to 65,535"),
        (["--port", port], TOKEN, f"cannot listen on 127.0.0.1:{port}"),
        (["--port", "0"], "\n", "is empty"),
        (["--port", "0"], "a\x01b", "which a header cannot carry"),
    ]

    def start(options: list[str], token: str | None, wanted: str) -> str | None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PLAUDIT_")}
        environment |= {} if token is None else {"PLAUDIT_TOKEN": token}
        command = [sys.executable, "-m", "runtime", "serve", nothing, *options]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
        lines = [line for line in done.stderr.splitlines() if " is at work: " not in line]  # said every few seconds
        right = done.returncode == 2 and len(lines) == 1 and wanted in lines[0]
        return None if right and not done.stdout else f"{options} ended with {done.returncode}: {done.stderr[-300:]!r}"

    with ThreadPoolExecutor(2) as threads:
        wrong = [one for one in threads.map(start, *zip(*starts, strict=True)) if one]
    return "; ".join(wrong) or None


def tokens(service: Service) -> str | None:
    """Ask with two tokens that are both valid while they are exchanged, with that of /admin, and with wrong ones."""
    environment = {"PLAUDIT_TOKEN": " new \nold\n", "PLAUDIT_ADMIN_TOKEN": "\tkeeper\n"}
    wanted = {"new": (200, 401), "old": (200, 401), "keeper": (401, 200), "new old": (401, 401), "": (401, 401)}
    with service.another(environment=environment) as own:
        found = {token: (own.score(token), own.reload(token)[0]) for token in wanted}
    return None if found == wanted else f"scoring and reloading got {found}"


def draining(service: Service) -> str | None:
    """End a service while one client sends the rest of its body late, and another never does."""
    body = scoring(picture())
    with service.another("--drain", str(DRAIN_S)) as own, own.connect() as stranger:
        head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        stranger.sendall(head.encode() + b"{")
        late = HTTPConnection("127.0.0.1", own.port, timeout=60)
        late.request("POST", "/v1/score", body[:100], JSON | {"Content-Length": str(len(body))})
        if not within(10, lambda: b"plaudit_pending_bytes 101.0" in own.ask("GET", "/metrics")[1]):
            return "the bodies did not begin to arrive"
        start = time.monotonic()
        own.terminate()
        not_ready = within(DRAIN_S / 2, lambda: own.ask("GET", "/health/ready")[0] == 503)
        others = set[int]()
        while time.monotonic() - start < DRAIN_S / 2:  # the listener stays
            others |= {own.score(), own.ask("GET", "/health/live")[0]}
        own.ended.set()  # from now on it may be gone
        closed = within(END_S, lambda: own.ask("GET", "/health/live")[0] == 0)
        late.send(body[100:])
        answered = late.getresponse().status
        late.close()
        code = own.process.wait(60)
        seconds = time.monotonic() - start
    found = f"not ready {not_ready}, others {others}, closed {closed}, the late one {answered}, code {code}"
    right = not_ready and closed and (others, answered, code) == ({200}, 200, 0)
    return None if right and DRAIN_S <= seconds < END_S else f"{found} after {seconds:.1f} s"


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Whether something holds before the time has passed."""
    end = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < end:
        time.sleep(0.02)
    return held
