"""`python -m runtime serve`."""

import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from embed.options import Range
from embed.spec import InputError
from runtime.config import RequestLimits, ServiceConfig

TOKEN_VARIABLE = "PLAUDIT_TOKEN"


def serve(
    bundle: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Range(0, 65_535)] = 8000,
    token_file: Path | None = None,
    service: partial[ServiceConfig],
    limits: RequestLimits,
    engine: Literal["local", "ray"] = "local",
    replicas: Annotated[int, Range(1)] = 1,
) -> dict[str, object]:
    """Serve scores over HTTP until SIGTERM.

    SIGHUP loads the bundle and the catalogue anew.

    Args:
        bundle: A folder made by `python -m export onnx`.
        host: The address to listen on. 0.0.0.0 serves the whole network.
        port: The port to listen on, or 0 for any that is free.
        token_file: A file with the bearer token to ask for. By default the token is in $PLAUDIT_TOKEN, if it is set.
        engine: Where the service runs: local is this process, ray are replicas on a Ray cluster.
        replicas: The replicas of --engine ray.
    """
    try:
        from runtime.service import state  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; run: pip install 'plaudit[cpu,serve]'") from None
    config = service(bundle=bundle, limits=limits, token=read_token(token_file))
    if engine == "ray":
        from runtime.service.ray import serve_on_ray

        serve_on_ray(config, host, port, replicas)
    else:
        serve_locally(config, host, port)
    return {"bundle": str(bundle), "stopped": True}


def read_token(path: Path | None) -> str | None:
    """The token in the file, or else in the environment, or None."""
    if path is None:
        return os.environ.get(TOKEN_VARIABLE)
    token = path.read_text(encoding="utf-8").strip()
    if not token:
        raise InputError(f"{path} is empty; wanted the bearer token to ask for")
    return token


def log_json_lines() -> None:
    """Every log line of this process as one JSON object on stderr."""
    from runtime.service.front import JsonLines

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def serve_locally(config: ServiceConfig, host: str, port: int) -> None:
    """Serve from this process until SIGTERM or SIGINT; what is under way is answered first."""
    import uvicorn

    from runtime.service.app import create_app

    app = create_app(config)
    log_json_lines()
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,  # runtime.service.front writes that line
            timeout_keep_alive=75,  # longer than load balancers keep theirs, or they send on what is just being closed
            timeout_graceful_shutdown=int(config.deadline_s) + 5,
            server_header=False,
        )
    )
    print(f"serving {config.bundle} on {host}:{port}; stop with Ctrl-C", flush=True)
    server.run()
