"""The listening socket, and uvicorn's server on it, which drains before it ends."""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from embed.spec import InputError
from runtime.config import ServiceConfig
from runtime.service.network.connections import bounded
from runtime.service.network.front import log

BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raise InputError if the port is taken, or the address does not belong to this machine."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        what = error.strerror or str(error)
        raise InputError(f"cannot listen on {host}:{port}: {what}; choose another --port or --host") from None


class Server(uvicorn.Server):
    """At SIGTERM it calls `drain`, continues for `drain_s` seconds, then answers requests under way and ends. SIGINT
    ends it at once.

    uvicorn's own server ends by the signal, which a process manager would take for a crash.
    """

    def __init__(self, app: ASGIApp, config: ServiceConfig, drain: Callable[[], None], drain_s: float = 0.0) -> None:
        connection = bounded(config.max_connections, config.max_per_address, config.trusted_proxies)
        if connection.max_connections < config.max_connections:
            fields = {"connections": connection.max_connections, "wanted": config.max_connections}
            log.warning("this process may open too few files: raise `ulimit -n`", extra={"fields": fields})
        super().__init__(
            uvicorn.Config(
                app,
                http=connection,
                log_config=None,
                access_log=False,  # runtime.service.network.front writes the log
                timeout_keep_alive=75,  # longer than load balancers', which would use closing connections
                timeout_graceful_shutdown=int(config.deadline_s) + 5,
                server_header=False,
                proxy_headers=bool(config.trusted_proxies),
                forwarded_allow_ips=list(config.trusted_proxies),
            )
        )
        self._drain = drain
        self._drain_s = drain_s

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT while the block runs; raise KeyboardInterrupt at its end after SIGINT."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop, interrupted = asyncio.get_running_loop(), False

        def end() -> None:
            self.force_exit, self.should_exit = self.should_exit, True

        def terminate() -> None:
            self._drain()
            loop.call_later(self._drain_s, end)

        def interrupt() -> None:
            nonlocal interrupted
            interrupted = True
            end()

        loop.add_signal_handler(signal.SIGTERM, terminate)
        loop.add_signal_handler(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            loop.remove_signal_handler(signal.SIGINT)
        if interrupted:
            raise KeyboardInterrupt
