"""The command that serves a bundle over HTTP."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed.console import command, say
from embed.spec import InputError

if TYPE_CHECKING:
    from runtime.service.state import ServiceConfig

TOKEN_VARIABLE = "PLAUDIT_TOKEN"


def add_commands(commands: Any) -> None:
    """Add this module's command to those of `python -m runtime`."""
    serve = command(
        commands, "serve", serve_bundle, "serve scores over HTTP until SIGTERM; SIGHUP loads the bundle anew"
    )
    serve.add_argument("bundle", type=Path, metavar="BUNDLE", help="a folder made by `python -m export onnx`")
    serve.add_argument("--catalogue", type=Path, help="serve /v1/similar from it")
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves the whole network (%(default)s)")
    serve.add_argument("--port", type=int, default=8000, help="0 for any that is free (%(default)s)")
    serve.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"holds the bearer token to ask for (else ${TOKEN_VARIABLE})"
    )
    serve.add_argument(
        "--allow-url-host",
        action="append",
        default=[],
        metavar="HOST",
        help="fetch pictures from there; may be given often",
    )
    serve.add_argument("--provider", action="append", help="cpu, cuda, tensorrt, ... (the best installed)")
    serve.add_argument("--precision", help="one of the bundle's (its first)")
    serve.add_argument("--threads", type=int, help="inside every run on the CPU (1 to 4, all cores for a lone run)")
    serve.add_argument(
        "--streams", type=int, metavar="N", help="runs side by side (cores / threads on a CPU, 1 elsewhere)"
    )
    serve.add_argument("--engine-cache", type=Path, metavar="FOLDER", help="where TensorRT keeps what it compiles")
    serve.add_argument("--decoders", type=int, help="processes that decode pictures (half the cores, at least 2)")
    serve.add_argument("--deadline", type=float, metavar="SECONDS", help="answer 504 beyond (10)")
    serve.add_argument("--max-batch", type=int, metavar="ITEMS", help="run together (8 on a CPU, 32 elsewhere)")
    serve.add_argument("--max-queue", type=int, metavar="ITEMS", help="under way at once; answer 429 beyond (256)")
    serve.add_argument("--max-items", type=int, metavar="N", help="of one request (64)")
    serve.add_argument("--max-body-mb", type=float, metavar="MB", help="of one request (32)")
    serve.add_argument("--max-picture-mb", type=float, metavar="MB", help="of one picture's file (16)")
    serve.add_argument("--max-megapixels", type=float, metavar="MP", help="of one picture (33)")
    serve.add_argument("--max-prompt-chars", type=int, metavar="N", help="of one prompt (2000)")
    serve.add_argument("--engine", choices=("local", "ray"), default="local", help="ray: replicas on a Ray cluster")
    serve.add_argument("--replicas", type=int, default=1, help="with --engine ray (%(default)s)")


def serve_bundle(args: argparse.Namespace) -> dict[str, Any]:
    """Serve until told to stop."""
    try:
        from runtime.service import state  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; run: pip install 'plaudit[cpu,serve]'") from None
    config = service_config(args)
    if args.engine == "ray":
        from runtime.service.ray import serve_on_ray

        serve_on_ray(config, args.host, args.port, args.replicas)
    else:
        serve_locally(args, config)
    return {"bundle": str(args.bundle), "stopped": True}


def service_config(args: argparse.Namespace) -> "ServiceConfig":
    """The configuration that the options describe; its own defaults where they say nothing."""
    from embed.inputs.images import Limits
    from runtime.service.state import LIMITS, ServiceConfig

    def whole(number: float | None, unit: int, default: int) -> int:
        return default if number is None else int(number * unit)

    given = {
        "threads": args.threads,
        "streams": args.streams,
        "decoders": args.decoders,
        "deadline_s": args.deadline,
        "max_batch": args.max_batch,
        "max_queue": args.max_queue,
        "max_items": args.max_items,
        "max_body_bytes": args.max_body_mb and int(args.max_body_mb * 2**20),
        "max_prompt_chars": args.max_prompt_chars,
        "providers": args.provider and tuple(args.provider),
    }
    return ServiceConfig(
        bundle=args.bundle,
        catalogue=args.catalogue,
        precision=args.precision,
        engine_cache=args.engine_cache,
        limits=Limits(
            whole(args.max_picture_mb, 2**20, LIMITS.max_bytes), whole(args.max_megapixels, 10**6, LIMITS.max_pixels)
        ),
        url_hosts=tuple(args.allow_url_host),
        token=read_token(args.token_file),
        **{name: value for name, value in given.items() if value is not None},
    )


def read_token(path: Path | None) -> str | None:
    """The token in the file, or in the environment; None where there is neither."""
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


def serve_locally(args: argparse.Namespace, config: "ServiceConfig") -> None:
    """Serve from this process until SIGTERM or SIGINT; what is under way is answered first."""
    import uvicorn

    from runtime.service.app import create_app

    app = create_app(config)
    log_json_lines()
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=args.host,
            port=args.port,
            log_config=None,
            access_log=False,  # runtime.service.front writes that line
            timeout_keep_alive=75,  # longer than load balancers keep theirs, or they send on what is just being closed
            timeout_graceful_shutdown=int(config.deadline_s) + 5,
            server_header=False,
        )
    )
    say(args, f"serving {args.bundle} on {args.host}:{args.port}; stop with Ctrl-C")
    server.run()
