"""The routes: each reads a request, asks the engine, and gives one item for each picture."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from embed.arrays import Float32s
from embed.inputs.images import ImageError
from embed.spec import InputError
from runtime.scoring.scorer import softmax
from runtime.service import requests as shapes
from runtime.service.engine import Engine
from runtime.service.network.errors import Problem, invalid
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

    def post(path: str, request: type[BaseModel], answer: type[BaseModel], **form: object) -> Callable[..., Any]:
        extra = shapes.request_body(request, form)
        return app.post(path, response_model=answer, responses=errors, openapi_extra=extra)  # type: ignore[arg-type]

    async def scored(
        request: Request, prompts: Sequence[str], pictures: Sequence[Picture]
    ) -> tuple[Engine, list[dict[str, float] | ImageError]]:
        async with service.work(request, len(pictures), size_of(pictures)) as (engine, job):
            outcomes = await engine.score(job, prompts_for(engine, prompts, len(pictures)), pictures)
            request.state.log = service.count(outcomes)
            return engine, outcomes

    @post("/v1/score", shapes.ScoreRequest, shapes.ScoreAnswer, images=FILES, urls=TEXTS, prompts=TEXTS)
    async def score(request: Request) -> Response:
        """Score pictures under a prompt, or each under its own; higher is preferred."""
        engine, outcomes = await scored(request, *await read_items(request, service, shapes.ScoreRequest))
        return answer(engine, items=[item(outcome) for outcome in outcomes])

    @post("/v1/rank", shapes.ScoreRequest, shapes.RankAnswer, images=FILES, urls=TEXTS, prompts=TEXTS)
    async def rank(request: Request) -> Response:
        """Rank pictures under one prompt, with the probability that each is the preferred one of all."""
        prompts, pictures = await read_items(request, service, shapes.ScoreRequest)
        if len(prompts) > 1:
            raise invalid(f"got {len(prompts)} prompts; wanted one to rank under")
        engine, outcomes = await scored(request, prompts, pictures)
        items, order = ranked(outcomes)
        return answer(engine, items=items, order=order)

    @post("/v1/embed", shapes.EmbedRequest, shapes.EmbedAnswer, images=FILES, urls=TEXTS, prompts=TEXTS)
    async def embed(request: Request) -> Response:
        """Unit vectors of pictures and prompts; the cosine of two is their dot product."""
        prompts, pictures = await read_items(request, service, shapes.EmbedRequest)
        async with service.work(request, len(prompts) + len(pictures), size_of(pictures)) as (engine, job):
            if prompts and engine.scorer.bundle.tokenizer_config is None:
                raise invalid("this bundle's head reads no text: it has no text tower")
            both = engine.embed_images(job, pictures), engine.embed_prompts(job, prompts)
            images, texts = await asyncio.gather(*both)
            request.state.log = service.count([*images, *texts])
            return answer(engine, images=[item(v) for v in images], prompts=[item(v) for v in texts])

    if service.config.catalogue is not None:

        @post("/v1/similar", shapes.SimilarRequest, shapes.SimilarAnswer)
        async def similar(request: Request) -> Response:
            """Find popular pictures of the catalogue that are like what the query likes and unlike what it dislikes."""
            wish = await read_json_request(request, shapes.SimilarRequest)
            named = [*wish.likes, *wish.dislikes]
            check_count(len(named), service)
            texts = [like.text for like in named if like.text is not None]
            shapes.check_prompts(texts, service.config.max_prompt_chars)
            size_bytes = sum(len(like.image or "") for like in named)
            async with service.work(request, len(named), size_bytes) as (engine, job):
                assert engine.catalogue is not None
                try:
                    hits = await find_hits(engine, job, engine.catalogue, wish)
                except InputError as error:
                    raise invalid(str(error)) from None
                return answer(engine, catalogue=engine.catalogue.manifest["version"], hits=hits)

    if service.config.guarded["/admin/"] and service.config.may_reload:

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

    app.openapi = cache(lambda: openapi(app, service))  # type: ignore[method-assign]


def openapi(app: FastAPI, service: Service) -> dict[str, object]:
    """The description of the API, with the requests' schemas, which FastAPI cannot see."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    models = (shapes.ScoreRequest, shapes.EmbedRequest, shapes.SimilarRequest)
    _, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    schema["components"]["schemas"].update(definitions["$defs"])
    if guarded := tuple(prefix for prefix, tokens in service.config.guarded.items() if tokens):
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in schema["paths"].items():
            for operation in operations.values() if path.startswith(guarded) else ():
                operation["security"] = [{"token": []}]
    return schema


async def read_items(
    request: Request, service: Service, model: type[shapes.ScoreRequest | shapes.EmbedRequest]
) -> tuple[list[str], list[Picture]]:
    """The prompts and pictures of a form, or of a JSON body of that model; raise Problem for too few or too many."""
    if media_type(request) == MULTIPART:
        prompts, pictures = await shapes.read_form(request, service.config.max_items)
    else:
        asked = await read_json_request(request, model)
        prompts, pictures = asked.prompts, await decoded(asked.images, service)
    if model is shapes.EmbedRequest:
        check_count(len(pictures) + len(prompts), service)
    else:
        check_count(len(pictures), service)
        if len(prompts) not in (0, 1, len(pictures)):
            raise invalid(f"got {len(prompts)} prompts for {len(pictures)} pictures; wanted one, or as many")
    shapes.check_prompts(prompts, service.config.max_prompt_chars)
    return prompts, pictures


async def read_json_request(request: Request, model: type[shapes.Model]) -> shapes.Model:
    """The body as that model; raise Problem where it is something else."""
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


def size_of(pictures: Sequence[Picture]) -> int:
    """Bytes of all pictures that are there; those to fetch have none yet."""
    return sum(len(picture) for picture in pictures if isinstance(picture, bytes))


async def in_thread_if_large(size_bytes: int, compute: Callable[[], Value]) -> Value:
    return await asyncio.to_thread(compute) if size_bytes > THREAD_BYTES else compute()


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_count(count: int, service: Service, least: int = 1) -> None:
    """Raise Problem where there are fewer items than `least`, or too many."""
    if count < least:
        raise invalid("nothing to do: wanted at least one item")
    if count > service.config.max_items:
        raise Problem(413, "too many items", f"got {count}, at most {service.config.max_items} allowed in one request")


def prompts_for(engine: Engine, prompts: Sequence[str], count: int) -> Sequence[str | None]:
    """A prompt for each picture; raise Problem where the head needs one and there is none."""
    if not prompts and engine.scorer.reads_text:
        raise invalid("this bundle's head scores pictures under a prompt; give one")
    return prompts if len(prompts) == count else [prompts[0] if prompts else None] * count


def item(outcome: Mapping[str, float] | Float32s | ImageError) -> dict[str, object]:
    """Scores, a vector or an error as an item of an answer; never with bytes of a picture beyond its first few."""
    if isinstance(outcome, ImageError):
        message = str(outcome).encode("utf-8", "backslashreplace").decode()
        return {"ok": False, "error": {"stage": outcome.stage, "reason": outcome.reason, "message": message[:500]}}
    if isinstance(outcome, np.ndarray):
        return {"ok": True, "embedding": outcome.tolist()}
    return {"ok": True, **outcome}


def ranked(outcomes: Sequence[Mapping[str, float] | ImageError]) -> tuple[list[dict[str, object]], list[int]]:
    """Items with rank and probability, and the numbers of the good ones, the preferred first; ties keep their order."""
    items = [item(outcome) for outcome in outcomes]
    good = {i: outcome for i, outcome in enumerate(outcomes) if not isinstance(outcome, ImageError)}
    order = sorted(good, key=lambda i: -good[i]["score"])
    scores = [good[i].get("calibrated_score", good[i]["score"]) for i in order]
    for place, (i, probability) in enumerate(zip(order, softmax(np.array(scores)), strict=True), start=1):
        items[i] |= {"rank": place, "probability": float(probability)}
    return items, order


def answer(engine: Engine, **fields: object) -> Response:
    return JSONResponse({**fields, **engine.names_itself})
