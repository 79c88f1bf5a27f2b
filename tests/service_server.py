"""The service in a thread of the test, on loopback, with a real client."""

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from runtime.service import create_app
from runtime.service_state import Service, ServiceConfig

TOKEN = "a token for tests"


@contextmanager
def serving(bundle: Path, **options: Any) -> Iterator[tuple[httpx.Client, Service]]:
    """A client of a running service, and the service itself."""
    app = create_app(ServiceConfig(bundle, threads=1, **options))
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


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()
