"""The service in a thread of the test, on loopback, with a real client."""

import base64
import io
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image
from waiting import wait_until

from runtime.config import ServiceConfig
from runtime.service.answering.state import Service
from runtime.service.app import create_app
from runtime.service.network.listening import Server, listen

TOKEN = "a token for tests"
PATIENCE_S = 60.0  # of what runs beside the tests there is no saying


class Running(NamedTuple):
    """A service, and a client of it."""

    client: httpx.Client
    service: Service


@contextmanager
def serving(bundle: Path, **options: Any) -> Iterator[Running]:
    """The service until the block ends; its deadline is a generous one unless the options name another."""
    config = ServiceConfig(bundle, **{"threads": 1, "deadline_s": PATIENCE_S, **options})
    app = create_app(config)
    socket = listen("127.0.0.1", 0)
    port = socket.getsockname()[1]
    server = Server(app, config, app.state.service.drain)
    thread = threading.Thread(target=server.run, args=([socket],))
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        assert server.started
        headers = {"Authorization": f"Bearer {TOKEN}"} if "tokens" in options else {}
        url, timeout_s = f"http://127.0.0.1:{port}", 2 * PATIENCE_S
        with httpx.Client(base_url=url, headers=headers, timeout=timeout_s, trust_env=False) as client:
            yield Running(client, app.state.service)
    finally:
        server.should_exit = True
        thread.join()


def small_picture(seed: int) -> bytes:
    """A PNG of a few kilobytes that looks like no other."""
    shade = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(shade).resize((96, 80), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def form(pictures: list[bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    """The pictures as the files of a multipart form."""
    return [("images", (f"{i}.png", data)) for i, data in enumerate(pictures)]


def decoder_processes(service: Service) -> list[subprocess.Popen[bytes]]:
    """The processes that decode for the service now."""
    return [worker.child.process for worker in service.decoders._pool._workers if worker.child is not None]
