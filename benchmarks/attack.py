"""Attack the service with one fault at a time, and check that it still answers others.

    python benchmarks/attack.py BUNDLE

It starts `python -m runtime serve` on loopback, with a token, and runs each case against it; every case is limited in
time and bytes. A case passes if its requests are refused as they should be, /health/live is answered within --live-ms
all the time, and a picture is scored afterwards. The exit code is 1 if a case fails. The peak memory of the process in
each case is compared with its peak under load alone. One case damages the bundle, so a copy is used. The last line of
stdout is one JSON document. tests/embed/inputs/test_decoding.py covers a decoder that gives wrong answers.
"""

import argparse
import base64
import http.client
import io
import json
import os
import platform
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
TOKEN = "attack"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
JSON = {**AUTHORIZED, "Content-Type": "application/json"}


class Service:
    """The service in a separate process, and a client that asks all the time whether it lives."""

    def __init__(self, bundle: Path, *options: str) -> None:
        command = [sys.executable, "-m", "runtime", "serve", str(bundle), "--port", "0", *options]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "PLAUDIT_TOKEN": TOKEN}, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.bundle = bundle
        line = self.process.stdout.readline()
        self.port = int(line.rpartition(":")[2].partition(";")[0])
        self.live_ms: list[float] = []
        self.ended = threading.Event()
        while self.ask("GET", "/health/ready")[0] != 200:
            time.sleep(0.1)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self.ended.wait(0.02):
            start = time.perf_counter()
            status, _ = self.ask("GET", "/health/live")
            self.live_ms.append(1000 * (time.perf_counter() - start) if status == 200 else float("inf"))

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Return status and body; the status is 0 if there is no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body or None, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def score(self) -> int:
        """Return the status of a valid request."""
        asked = {"prompt": "a cat", "images": [base64.b64encode(picture()).decode()]}
        return self.ask("POST", "/v1/score", json.dumps(asked).encode(), JSON)[0]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    @property
    def peak_bytes(self) -> int:
        """Return the largest resident set of the serving process since `forget_peak`."""
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        return 1024 * int(found[1]) if found else 0

    def forget_peak(self) -> None:
        """Start measuring the largest resident set again."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def stop(self) -> int:
        self.ended.set()
        self.process.terminate()
        return self.process.wait(60)


def picture() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.effect_noise((300, 200), 50).convert("RGB").save(file, "JPEG")
    return file.getvalue()


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


def silent_connections(service: Service) -> str | None:
    with ExitStack() as stack:
        silent = [stack.enter_context(service.connect()) for _ in range(800)]
        if (status := service.score()) != 200:
            return f"others got {status}"
        time.sleep(12)  # longer than sending a header may take
        still = sum(not ended(stranger) for stranger in silent)
    return f"{still} of {len(silent)} were open after 12 s" if still else None


def ended(stranger: socket.socket) -> bool:
    """Whether the other side has closed the connection."""
    stranger.settimeout(0)
    try:
        return stranger.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def many_values(service: Service) -> str | None:
    bodies = [
        b'{"prompt":"a","images":[' + b"1," * 500_000 + b"1]}",
        b'{"prompt":"a","images":[' + b'"",' * 300_000 + b'""]}',
        b"{" + b",".join(b'"k%d":1' % i for i in range(100_000)) + b"}",
        b'{"images":' + b"[" * 1_000_000,
        b'{"prompt":' + b"1" * 30_000_000 + b"}",
    ]
    statuses = {service.ask("POST", "/v1/score", body, JSON)[0] for body in bodies}
    return None if statuses == {422} else f"answered {statuses}"


def odd_forms(service: Service) -> str | None:
    body = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n--x--\r\n'
    kinds = [
        "multipart/form-data; boundary=x; charset=undefined",
        "multipart/form-data",
        "multipart/form-data; boundary=",
    ]
    found = {service.ask("POST", "/v1/score", body, {**AUTHORIZED, "Content-Type": kind})[0] // 100 for kind in kinds}
    return None if found == {4} else f"answered with {found}"


def slow_tiff(service: Service) -> str | None:
    data = zlib.compress(bytes(16 << 21))
    tags = {256: (4, 4096), 257: (4, 16), 258: (3, 8), 259: (3, 8), 262: (3, 1), 277: (3, 1),
            322: (4, 16), 323: (4, 1 << 21), 324: (4, 8), 325: (4, len(data))}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in sorted(tags.items()))
    tiff = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
    images = [base64.b64encode(one).decode() for one in (tiff, picture())]
    status, answer = service.ask("POST", "/v1/score", json.dumps({"prompt": "a", "images": images}).encode(), JSON)
    good = [item["ok"] for item in json.loads(answer)["items"]] if status == 200 else status
    return None if good == [False, True] else f"answered {good}"


def decoders(service: Service) -> list[int]:
    """Return the process ids of the current decoders, each of which is the child of a thread."""
    tasks = Path(f"/proc/{service.process.pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def under_load(service: Service, strike: Callable[[], object]) -> str | None:
    """Return what is wrong with the answers to others while `strike` is called; all of them must be answered."""
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(service.score) for _ in range(60)]
        strike()
        statuses = {future.result() for future in asked}
    return None if statuses <= {200, 429} else f"others got {statuses}"


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
        status, answer = service.ask("POST", "/admin/reload", b"", AUTHORIZED)
        others = service.score()
    finally:
        weights.write_bytes(data)
    refused = status == 422 and b"weights.bin" in answer
    return None if refused and others == 200 else f"the reload got {status}, others {others}"


def unknown_paths(service: Service) -> str | None:
    with service.connect() as stranger:
        stranger.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 33000000\r\n\r\n")
        said = stranger.recv(12)
    return None if said == b"HTTP/1.1 404" else f"said {said!r}"


CASES: dict[str, Callable[[Service], str | None]] = {
    "a head without end": endless_head,
    "bodies that are announced and never sent": announced_bodies,
    "silent connections": silent_connections,
    "JSON of very many values": many_values,
    "forms in odd character sets": odd_forms,
    "a TIFF with huge tiles": slow_tiff,
    "a body for an unknown path": unknown_paths,
    "one decoder stopped under load": lambda service: stopped(service, 1),
    "all decoders stopped under load": lambda service: stopped(service, 100),
    "decoders killed again and again under load": killed,
    "a bundle overwritten in place": overwritten,
}


def load_alone(service: Service) -> None:
    """Load the service, to compare the memory of the cases with this."""
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: service.score(), range(200)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--live-ms", type=float, default=250)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(options.bundle, Path(folder, "bundle"))  # a copy, because a case damages it
        sys.exit(attack(copy, options.live_ms))


def attack(bundle: Path, most_live_ms: float) -> int:
    """Run every case against one service, print the results, and return the exit code."""
    service = Service(bundle)
    found: dict[str, dict[str, object]] = {}
    try:
        load_alone(service)
        alone_bytes = service.peak_bytes
        for name, case in CASES.items():
            service.live_ms.clear()
            service.forget_peak()
            wrong = case(service) or (f"afterwards {status}" if (status := service.score()) != 200 else None)
            live_ms = max(service.live_ms, default=float("inf"))
            if live_ms > most_live_ms:
                wrong = wrong or f"/health/live took {live_ms:.0f} ms"
            memory = service.peak_bytes / alone_bytes
            found[name] = {"wrong": wrong, "live_ms": round(live_ms, 1), "memory": round(memory, 3)}
            said = f"{name:45} /health/live {live_ms:6.1f} ms  memory {memory:.2f}  {wrong or ''}"
            print(f"{'FAILED' if wrong else 'ok':7} {said}", flush=True)
    finally:
        code = service.stop()
    memory = max(float(str(case["memory"])) for case in found.values())
    print(f"peak memory {memory:.2f} of that under load alone; exit code {code} after SIGTERM")
    machine = {"python": platform.python_version(), "cores": os.cpu_count(), "processor": platform.processor()}
    print(json.dumps({"cases": found, "memory": memory, "exit_code": code, "machine": machine}))
    return int(any(one["wrong"] for one in found.values()) or code != 0)


if __name__ == "__main__":
    main()
