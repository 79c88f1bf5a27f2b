"""`python -m runtime serve`."""

import ipaddress
import logging
import os
import sys
import webbrowser
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from embed.options import Option, OptionsFile, Range
from embed.spec import InputError
from runtime.config import RequestLimits, ServiceConfig, VotingConfig

TOKEN_VARIABLE, ADMIN_VARIABLE = "PLAUDIT_TOKEN", "PLAUDIT_ADMIN_TOKEN"


def serve(
    bundle: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Range(0, 65_535)] = 8000,
    token_file: Path | None = None,
    admin_token_file: Path | None = None,
    no_token: bool = False,
    open: bool = False,
    drain_s: Annotated[float, Option("--drain"), Range(0)] = 0.0,
    service: partial[ServiceConfig],
    limits: RequestLimits,
    voting: VotingConfig,
    engine: Literal["local", "ray"] = "local",
    replicas: Annotated[int, Range(1)] = 1,
    config: Annotated[Path | None, OptionsFile()] = None,
) -> dict[str, object]:
    """Serve scores over HTTP until SIGTERM.

    SIGHUP loads the bundle and the catalogue again.

    Example:
        plaudit runtime serve bundle --catalogue catalogue --port 8000

    Args:
        bundle: A folder made by `python -m export onnx`.
        host: The address to listen on. 0.0.0.0 serves the whole network.
        port: The port to listen on, or 0 for any that is free.
        token_file: A file with the bearer token that requests need, or with several, one on each line. By default they
            are read from $PLAUDIT_TOKEN, if it is set.
        admin_token_file: A file with the tokens for /admin, if they differ. By default they are read from
            $PLAUDIT_ADMIN_TOKEN, if it is set.
        no_token: Require no token, even if --host lets other machines in.
        open: Show the pages in a browser. This implies --pages.
        drain_s: For so many seconds after SIGTERM, accept requests while /health/ready answers 503, so that a load
            balancer notices.
        engine: Where the service runs: local is in this process, ray is as replicas on a Ray cluster.
        replicas: The number of replicas for --engine ray.
        config: A TOML file with these options, such as `port = 80` or `allow-url-host = ["a.example"]`. Options can
            also be given as variables, such as $PLAUDIT_SERVE_PORT, with white space between several values. The
            command line overrides variables, and variables override the file. Tokens cannot be given in these ways.
    """
    # One query's matrix products are small, and BLAS threads that share them would busily wait for each other, which
    # takes twice the processor time. The variable is read when numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from runtime.service.answering import state  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; run: pip install 'plaudit[cpu,serve]'") from None
    tokens = read_tokens(token_file, TOKEN_VARIABLE)
    require_token(host, tokens, no_token)
    admin_tokens = read_tokens(admin_token_file, ADMIN_VARIABLE)
    shown = {"pages": True} if open else {}
    given = shown | {"limits": limits, "voting": voting, "tokens": tokens, "admin_tokens": admin_tokens}
    whole = service(bundle=bundle, **given)
    if engine == "ray":
        from runtime.service.ray import serve_on_ray

        serve_on_ray(whole, host, port, replicas)
    else:
        serve_locally(whole, host, port, drain_s, open)
    return {"bundle": str(bundle), "stopped": True}


def read_tokens(path: Path | None, variable: str) -> tuple[str, ...]:
    """The tokens in the file, one on each line, or without a file those in the environment variable. White space around
    tokens is removed."""
    text = os.environ.get(variable) if path is None else path.read_text(encoding="utf-8")
    if text is None:
        return ()
    if not text.strip():
        raise InputError(f"{path or '$' + variable} is empty; wanted a bearer token")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def require_token(host: str, tokens: tuple[str, ...], no_token: bool) -> None:
    """Raise InputError if other machines are let in without a token and without --no-token, or if both are given."""
    if tokens and no_token:
        raise InputError(
            f"--no-token was given together with a token, in a file or in ${TOKEN_VARIABLE}; leave one of them out"
        )
    try:
        alone = ipaddress.ip_address(host).is_loopback
    except ValueError:
        alone = host == "localhost"
    if not (alone or tokens or no_token):
        raise InputError(
            f"--host {host} lets other machines in, but there is no token: put one into ${TOKEN_VARIABLE} or"
            " --token-file, or give --no-token if your network keeps strangers out"
        )


def log_json_lines() -> None:
    """Write every log line of this process to stderr as a JSON object."""
    from runtime.service.network.front import JsonLines

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def serve_locally(config: ServiceConfig, host: str, port: int, drain_s: float, open: bool = False) -> None:
    """Serve from this process until SIGTERM or SIGINT. Requests under way are answered first.

    With `open`, a browser shows the pages.
    """
    from runtime.service.app import create_app
    from runtime.service.network.listening import Server, listen

    with closing(listen(host, port)) as socket:  # listen before loading, so that a port in use fails at once
        app = create_app(config)
        log_json_lines()
        where = f"[{host}]" if ":" in host else host
        port = socket.getsockname()[1]
        print(f"serving {config.bundle} on {where}:{port}; stop with Ctrl-C", flush=True)
        if config.pages:
            page = f"http://{'127.0.0.1' if host == '0.0.0.0' else '[::1]' if host == '::' else where}:{port}/"
            print(f"pages on {page}", flush=True)
            if open:  # the socket already listens, so the browser waits until the service is ready
                webbrowser.open(page)
        Server(app, config, app.state.service.drain, drain_s).run([socket])
