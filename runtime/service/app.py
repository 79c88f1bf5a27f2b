"""The service: scores, vectors and similar popular pictures over HTTP.

    POST /v1/score  /v1/rank  /v1/embed  /v1/similar     JSON, or multipart forms
    GET  /v1/thumbnails/ID                               a small version of a picture of the catalogue
    POST /admin/reload                                   load bundle and catalogue again; only if there is a token
    GET  /v1/catalogue   POST /v1/browse                 the catalogue's contents, and a ranking by a measure
    GET  /  /compare  /look                              pages for people, with --pages
    GET  /health/live  /health/ready  /metrics  /openapi.json  /docs

Each picture gets its own answer, `ok` or an error. The parts: front (limits, deadline, log), routes,
requests (shapes), reading (of bodies), errors, state, engine (batches).
"""

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import RedirectResponse

from embed.process.confinement import protections
from runtime.config import ServiceConfig
from runtime.service.answering.reading import fault_texts
from runtime.service.answering.state import Service
from runtime.service.docs.page import add_docs
from runtime.service.network.errors import Problem, invalid
from runtime.service.network.front import Front, log
from runtime.service.pages.page import add_pages
from runtime.service.routes.main import add_routes


def create_app(config: ServiceConfig) -> FastAPI:
    """The ASGI application, with its bundle loaded and checked and its processes started.

    Raise BundleError or InputError if the bundle or another part of the configuration cannot be served.
    """
    service = Service(config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        log.info("serving", extra={"fields": service.started})
        log.info("decoders are confined", extra={"fields": {"by": protections("bytes")}})
        # The first check of readiness runs in the background.
        tasks = {asyncio.ensure_future(quietly(service.ready()))}
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGHUP"):

            def hang_up() -> None:
                tasks.add(asyncio.ensure_future(quietly(service.reload())))

            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hang_up)
        yield
        await service.close()

    app = FastAPI(
        title="plaudit",
        version=version("plaudit"),
        description="Scores pictures under prompts by what a community likes, and finds similar, popular pictures.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(
        Front,
        gate=service.gate,
        turns=service.turns,
        metrics=service.metrics,
        tracing=service.tracing,
        config=config,
        routes=app.router.routes,
    )
    if config.origins:  # outermost: pages can also read refusals, and browsers first ask without a token
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("Authorization", "Content-Type", "If-None-Match", "X-Request-Id"),
            expose_headers=("ETag", "Retry-After", "X-Request-Id"),
        )
    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(HTTPException, _answer_problem)
    app.add_exception_handler(RequestValidationError, _answer_problem)
    add_routes(app, service)
    add_docs(app)
    if config.pages:
        add_pages(app, config)
    else:
        app.add_api_route("/", _to_docs, methods=["GET", "HEAD"], include_in_schema=False)
    return app


async def quietly(work: Awaitable[object]) -> None:
    """Run something that nobody waits for. Its failure was logged, or will be reported to the next caller."""
    with contextlib.suppress(Exception):
        await work


async def _to_docs() -> Response:
    return RedirectResponse("docs")  # who opens the bare address wants to know what is here


async def _answer_problem(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        hint = ": /docs shows the routes that this service has" if error.status_code == 404 else ""
        error = Problem(error.status_code, "bad request", f"{error.detail}{hint}", error.headers)
    if isinstance(error, RequestValidationError):
        error = invalid(*fault_texts(error.errors()))
    assert isinstance(error, Problem)
    request.state.reason = error.reason
    return error.answer(request.state.request_id)
