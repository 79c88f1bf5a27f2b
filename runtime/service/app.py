"""The service: scores, vectors and similar popular pictures over HTTP.

    POST /v1/score  /v1/rank  /v1/embed  /v1/similar     JSON, or multipart forms (not /v1/similar)
    POST /admin/reload                                   load bundle and catalogue anew; only where there is a token
    GET  /health/live  /health/ready  /metrics  /openapi.json  /docs

Pictures are answered one by one, each with `ok` or an error. The parts: front (limits, deadline, log), routes,
requests (shapes), errors, state, engine (batches).
"""

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from embed.process.confinement import protections
from runtime.config import ServiceConfig
from runtime.service import routes
from runtime.service.network.errors import Problem
from runtime.service.network.front import Front, log
from runtime.service.state import Service


def create_app(config: ServiceConfig) -> FastAPI:
    """The ASGI application, its bundle loaded and proven and its processes started.

    Raise BundleError or InputError where what is to be served cannot be.
    """
    service = Service(config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        log.info("decoders are confined", extra={"fields": {"by": protections("bytes")}})
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGHUP"):
            tasks = set()

            def hang_up() -> None:
                tasks.add(asyncio.ensure_future(reload_quietly(service)))

            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hang_up)
        yield
        await service.close()

    app = FastAPI(
        title="plaudit",
        version=version("plaudit"),
        description="What a community applauds: scores of pictures under prompts, and similar popular pictures.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.service = service
    app.add_middleware(
        Front,
        gate=service.gate,
        metrics=service.metrics,
        tracing=service.tracing,
        config=config,
        routes=app.router.routes,
    )
    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(HTTPException, _answer_problem)
    routes.add_routes(app, service)
    return app


async def reload_quietly(service: Service) -> None:
    """`Service.reload`, for callers that nobody answers to: a failure stands in the log."""
    with contextlib.suppress(Exception):
        await service.reload()


async def _answer_problem(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = Problem(error.status_code, "bad request", str(error.detail), error.headers)
    assert isinstance(error, Problem)
    request.state.reason = error.reason
    return error.answer(request.state.request_id)
