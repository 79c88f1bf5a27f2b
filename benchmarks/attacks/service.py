"""The service that is attacked, in a separate process, and what all cases send to it."""

import base64
import http.client
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "attack"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
LARGE = (2400, 1600)  # width and height of a picture whose JSON has more than 2.4 MB
JSON = {**AUTHORIZED, "Content-Type": "application/json"}


class Skipped(Exception):
    """Raised by a case that cannot be run on this machine."""


class Service:
    """The service in a separate process, and a client that asks all the time whether it lives.

    It is started with `options` and the variables `environment`. It may open so many `files`, if that is given. The
    times of the client are added to `live_ms`.
    """

    def __init__(
        self,
        bundle: Path,
        *options: str,
        environment: Mapping[str, str] | None = None,
        files: int | None = None,
        live_ms: list[float] | None = None,
    ) -> None:
        command = [sys.executable, "-m", "runtime", "serve", str(bundle), "--port", "0", *options]
        if files is not None:
            command = ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh", *command]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "PLAUDIT_TOKEN": TOKEN, **(environment or {})},
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.bundle = bundle
        line = self.process.stdout.readline()
        self.port = int(line.rpartition(":")[2].partition(";")[0])
        self.live_ms: list[float] = [] if live_ms is None else live_ms
        self.ended = threading.Event()
        self._known_peak = 0  # of processes that have ended: of this one, or of others of the same case
        while self.ask("GET", "/health/ready")[0] != 200:
            time.sleep(0.1)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self.ended.wait(0.02):
            start = time.perf_counter()
            status, _ = self.ask("GET", "/health/live")
            self.live_ms.append(1000 * (time.perf_counter() - start) if status == 200 else float("inf"))

    def ask(
        self, method: str, path: str, body: bytes | Iterable[bytes] = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Return status and body; the status is 0 if there is no answer. A body in parts is sent without a length."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body or None, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def score(self, token: str = TOKEN) -> int:
        """Return the status of a valid request."""
        return self.ask("POST", "/v1/score", scoring(picture()), JSON | {"Authorization": f"Bearer {token}"})[0]

    def reload(self, token: str = TOKEN) -> tuple[int, bytes]:
        return self.ask("POST", "/admin/reload", b"", {"Authorization": f"Bearer {token}"})

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """Return a connection from an address of loopback."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60, source_address=(source, 0))

    @contextmanager
    def another(
        self, *options: str, environment: Mapping[str, str] | None = None, files: int | None = None
    ) -> Iterator["Service"]:
        """Run another service of the same bundle, whose times and peak memory count as this one's."""
        other = Service(self.bundle, *options, environment=environment, files=files, live_ms=self.live_ms)
        try:
            yield other
        finally:
            other.stop()
            self._known_peak = max(self._known_peak, other.peak_bytes)

    @property
    def peak_bytes(self) -> int:
        """Return the largest resident set of the serving process since `forget_peak`."""
        return max(self._known_peak, self._memory("VmHWM"))

    @property
    def resident_bytes(self) -> int:
        return self._memory("VmRSS")

    def _memory(self, field: str) -> int:
        with suppress(FileNotFoundError):
            if found := re.search(rf"{field}:\s*(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text()):
                return 1024 * int(found[1])
        return 0

    def forget_peak(self) -> None:
        """Start measuring the largest resident set again."""
        self._known_peak = 0
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def terminate(self) -> None:
        """Ask the process to end."""
        self._known_peak = self.peak_bytes
        self.process.terminate()

    def stop(self) -> int:
        """End the process, and return its exit code."""
        self.ended.set()
        self.terminate()
        return self.process.wait(60)


def picture(width: int = 300, height: int = 200) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.effect_noise((width, height), 50).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def scoring(*pictures: bytes) -> bytes:
    """Return the JSON of a request to score pictures."""
    images = [base64.b64encode(data).decode() for data in pictures]
    return json.dumps({"prompt": "a cat", "images": images}).encode()


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
