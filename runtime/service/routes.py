"""The routes: each reads a request, asks the engine, and gives one item for each picture."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic.json_schema import models_json_schema

from embed.inputs.images import ImageError
from embed.spec import InputError
from runtime.scoring.scorer import softmax
from runtime.service import requests as shapes
from runtime.service.engine import Engine
from runtime.service.errors import Problem
from runtime.service.requests import JSON, MULTIPART, Picture, UrlPicture
from runtime.service.similar import find_hits
from runtime.service.state import Service

ERRORS = {
    400: "The body cannot be read",
    401: "The token is missing or wrong",
    408: "The body arrived too slowly",
    413: "Too many bytes or items",
    415: "A body of another type",
    422: "A field is wrong; the message says which",
    429: "Too much is waiting; try again after the seconds in Retry-After",
    504: "Not done by the deadline",
}
# A body of more is parsed in a thread: base64 of 4 MB takes some 10 ms.
THREAD_BYTES = 1 << 20

FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
TEXTS = {"type": "array", "items": {"type": "string"}}

Value = TypeVar("Value")


def add_routes(app: FastAPI, service: Service) -> None:
    """Add every route of the service to its application."""
    errors = {status: {"model": shapes.ErrorAnswer, "description": text} for status, text in ERRORS.items()}
    forms = {"images": FILES, "urls": TEXTS}

    def post(path: str, request: str, answer: type, form: Mapping[str, Any] | None = None) -> Callable[..., Any]:
        extra = shapes.request_body(request, form)
        return app.post(path, response_model=answer, responses=errors, openapi_extra=extra)  # type: ignore[arg-type]

    @post("/v1/score", "ScoreRequest", shapes.ScoreAnswer, {**forms, "prompts": TEXTS})
    async def score(request: Request) -> Response:
        """Score pictures under a prompt, or each under its own; higher is preferred."""
        prompts, pictures = await read_score_request(request, service)
        with service.gate.admit(items=len(pictures)):
            async with service.room.use() as engine:
                outcomes = await engine.score(prompts_for(engine, prompts, len(pictures)), pictures)
                request.state.log = service.count(outcomes)
                return answer(engine, items=[item(outcome) for outcome in outcomes])

    @post("/v1/rank", "ScoreRequest", shapes.RankAnswer, {**forms, "prompts": TEXTS})
    async def rank(request: Request) -> Response:
        """Rank pictures under one prompt, with the probability that each is the preferred one of all."""
        prompts, pictures = await read_score_request(request, service)
        if len(prompts) > 1:
            raise Problem(422, "invalid request", f"got {len(prompts)} prompts; wanted one to rank under")
        with service.gate.admit(items=len(pictures)):
            async with service.room.use() as engine:
                outcomes = await engine.score(prompts_for(engine, prompts, len(pictures)), pictures)
                request.state.log = service.count(outcomes)
                items, order = ranked(outcomes)
                return answer(engine, items=items, order=order)

    @post("/v1/embed", "EmbedRequest", shapes.EmbedAnswer, {**forms, "prompts": TEXTS})
    async def embed(request: Request) -> Response:
        """Unit vectors of pictures and prompts; the cosine of two is their dot product."""
        prompts, pictures = await read_embed_request(request, service)
        with service.gate.admit(items=len(prompts) + len(pictures)):
            async with service.room.use() as engine:
                if prompts and engine.scorer.bundle.tokenizer_config is None:
                    raise Problem(422, "invalid request", "this bundle's head reads no text: it has no text tower")
                images, texts = await asyncio.gather(engine.embed_images(pictures), engine.embed_prompts(prompts))
                request.state.log = service.count([*images, *texts])
                return answer(engine, images=[vector_item(v) for v in images], prompts=[vector_item(v) for v in texts])

    if service.config.catalogue is not None:

        @post("/v1/similar", "SimilarRequest", shapes.SimilarAnswer)
        async def similar(request: Request) -> Response:
            """Find popular pictures of the catalogue that are like what the query likes and unlike what it dislikes."""
            wish = await read_json_request(request, shapes.SimilarRequest)
            named = [*wish.likes, *wish.dislikes]
            check_count(len(named), service)
            shapes.check_prompts(
                [like.text for like in named if like.text is not None], service.config.max_prompt_chars
            )
            with service.gate.admit(items=len(named)):
                async with service.room.use() as engine:
                    try:
                        hits = await find_hits(engine, wish)
                    except InputError as error:
                        raise Problem(422, "invalid request", str(error)) from None
                    assert engine.catalogue is not None
                    return answer(engine, catalogue=engine.catalogue.manifest["version"], hits=hits)

    if service.config.token is not None and service.config.may_reload:

        @app.post("/admin/reload", responses=errors)  # type: ignore[arg-type]
        async def reload() -> dict[str, str]:
            """Load bundle and catalogue anew from their paths; the old ones stay in force where that fails."""
            try:
                # Whoever asked may go away; what is begun is finished.
                engine = await asyncio.shield(asyncio.create_task(service.reload()))
            except (InputError, OSError) as error:
                raise Problem(422, "reload failed", str(error)) from None
            return engine.names_itself

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @app.get(
        "/health/ready", responses={503: {"model": shapes.ErrorAnswer, "description": "This process cannot serve"}}
    )
    async def ready() -> dict[str, str]:
        """The bundle's reference gives its scores through the real session, and a decoder decodes."""
        try:
            await service.ready()
        except Exception as error:
            raise Problem(503, "not ready", str(error)) from None
        return {"status": "ready", **service.room.engine.names_itself}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counters, gauges and histograms for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.openapi = lambda: openapi(app, service)  # type: ignore[method-assign]


def openapi(app: FastAPI, service: Service) -> dict[str, Any]:
    """The description of the API, with the requests' schemas, which FastAPI cannot see."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        models = (shapes.ScoreRequest, shapes.EmbedRequest, shapes.SimilarRequest)
        _, definitions = models_json_schema(
            [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
        )
        schema["components"]["schemas"].update(definitions["$defs"])
        if service.config.token is not None:
            schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            for path, operations in schema["paths"].items():
                for operation in operations.values() if path.startswith(("/v1/", "/admin/")) else ():
                    operation["security"] = [{"token": []}]
        app.openapi_schema = schema
    return app.openapi_schema


async def read_score_request(request: Request, service: Service) -> tuple[list[str], list[Picture]]:
    """None, one or as many prompts as there are pictures, and the pictures; Problem where they are too many."""
    prompts, pictures = await read_items(request, service, shapes.ScoreRequest)
    check_count(len(pictures), service)
    if len(prompts) not in (0, 1, len(pictures)):
        raise Problem(
            422, "invalid request", f"got {len(prompts)} prompts for {len(pictures)} pictures; wanted one, or as many"
        )
    shapes.check_prompts(prompts, service.config.max_prompt_chars)
    return prompts, pictures


async def read_embed_request(request: Request, service: Service) -> tuple[list[str], list[Picture]]:
    """Prompts and pictures to embed; Problem where they are none or too many."""
    prompts, pictures = await read_items(request, service, shapes.EmbedRequest)
    check_count(len(pictures) + len(prompts), service)
    shapes.check_prompts(prompts, service.config.max_prompt_chars)
    return prompts, pictures


async def read_items(request: Request, service: Service, model: Any) -> tuple[list[str], list[Picture]]:
    """The prompts and pictures of a form, or of a JSON body of that model."""
    if is_form(request):
        files, texts = await shapes.read_form(request, service.config.max_items)
        return texts.get("prompts", []), form_pictures(files, texts)
    asked = await read_json_request(request, model)
    return asked.prompts, await decoded(asked.images, service)


async def read_json_request(request: Request, model: Any) -> Any:
    """The body as that model; Problem where it is something else."""
    kind = media_type(request)
    if kind != JSON:
        raise Problem(415, "wrong type", f"got a body of type {kind[:100] or 'none'}; wanted {JSON}")
    body = await request.body()
    return await in_thread_if_large(len(body), lambda: shapes.read_json(model, body))


async def decoded(given: Sequence[str | UrlPicture], service: Service) -> list[Picture]:
    """The pictures' bytes, once they are known to be not too many; there may be none."""
    check_count(len(given), service, least=0)
    size = sum(len(picture) for picture in given if isinstance(picture, str))
    return await in_thread_if_large(size, lambda: [shapes.picture_of(picture) for picture in given])


async def in_thread_if_large(size_bytes: int, compute: Callable[[], Value]) -> Value:
    return await asyncio.to_thread(compute) if size_bytes > THREAD_BYTES else compute()


def form_pictures(files: Mapping[str, list[bytes]], texts: Mapping[str, list[str]]) -> list[Picture]:
    """The files of a form, then what its URLs name."""
    return [*files.get("images", []), *(UrlPicture(url=url[:2048]) for url in texts.get("urls", []))]


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_form(request: Request) -> bool:
    return media_type(request) == MULTIPART


def check_count(count: int, service: Service, least: int = 1) -> None:
    """Nothing, or Problem where there are fewer items than `least`, or too many."""
    if count < least:
        raise Problem(422, "invalid request", "nothing to do: wanted at least one item")
    if count > service.config.max_items:
        raise Problem(413, "too many items", f"got {count}, at most {service.config.max_items} allowed in one request")


def prompts_for(engine: Engine, prompts: Sequence[str], count: int) -> Sequence[str | None]:
    """A prompt for each picture; Problem where the head needs one and there is none."""
    if not prompts and engine.scorer.reads_text:
        raise Problem(422, "invalid request", "this bundle's head scores pictures under a prompt; give one")
    return prompts if len(prompts) == count else [prompts[0] if prompts else None] * count


def item(outcome: dict[str, Any] | ImageError) -> dict[str, Any]:
    return shapes.item_error(outcome) if isinstance(outcome, ImageError) else {"ok": True, **outcome}


def vector_item(outcome: Any) -> dict[str, Any]:
    if isinstance(outcome, ImageError):
        return shapes.item_error(outcome)
    return {"ok": True, "embedding": outcome.tolist()}


def ranked(outcomes: Sequence[dict[str, Any] | ImageError]) -> tuple[list[dict[str, Any]], list[int]]:
    """Items with rank and probability, and the numbers of the good ones, the preferred first; ties keep their order."""
    items = [item(outcome) for outcome in outcomes]
    good = [i for i, one in enumerate(items) if one["ok"]]
    order = sorted(good, key=lambda i: -items[i]["score"])
    scores = [items[i].get("calibrated_score", items[i]["score"]) for i in order]
    for place, (i, probability) in enumerate(zip(order, softmax(np.array(scores)), strict=True), start=1):
        items[i] |= {"rank": place, "probability": float(probability)}
    return items, order


def answer(engine: Engine, **fields: Any) -> Response:
    return JSONResponse({**fields, **engine.names_itself})
