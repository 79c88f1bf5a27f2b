"""The service in a thread of the test, on loopback, with a real client."""

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image

from runtime.config import ServiceConfig
from runtime.service.app import create_app
from runtime.service.state import Service

TOKEN = "a token for tests"


@contextmanager
def serving(bundle: Path, **options: Any) -> Iterator[tuple[httpx.Client, Service]]:
    """A client of a running service, and the service itself."""
    app = create_app(ServiceConfig(bundle, **{"threads": 1, **options}))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        headers = {"Authorization": f"Bearer {TOKEN}"} if "token" in options else {}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30, trust_env=False) as client:
            yield client, app.state.service
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


def wait_until(true: Any, timeout_s: float = 10.0) -> None:
    """Returns once it is true; AssertionError where that takes too long."""
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)
