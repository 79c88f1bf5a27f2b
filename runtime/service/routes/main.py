"""The main routes. Each reads a request, calls the engine, and answers with one item for each picture."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from embed.arrays import Float32s, softmax
from embed.inputs.images import ImageError
from embed.spec import InputError
from runtime.scoring.outputs import Output
from runtime.scoring.sources import for_each
from runtime.service.answering import requests as shapes
from runtime.service.answering.engine import Engine
from runtime.service.answering.overviews import BrowseAnswer, BrowseRequest, CatalogueAnswer
from runtime.service.answering.reading import Items, read_items, read_json_request, read_similar
from runtime.service.answering.requests import ERRORS, Picture, described
from runtime.service.answering.state import Service
from runtime.service.network.errors import Problem, invalid
from runtime.service.network.front import log
from runtime.service.routes.browse import Browser
from runtime.service.routes.openai import EmbeddingsRequest, add_openai_routes
from runtime.service.routes.similar import THUMBNAILS, find_hits
from runtime.service.routes.thumbnails import TYPICAL_BYTES, Thumbnails, ThumbnailSize
from runtime.service.routes.trainers import SHAPES, add_dialects

Values = dict[str, Any]  # numbers by name, and those of each output under `outputs`
THUMBNAIL_SECONDS = 86_400  # how long browsers keep one; the content of an id never changes


def add_routes(app: FastAPI, service: Service) -> None:
    """Add every route of the service to its application."""

    async def scored(request: Request, items: Items) -> tuple[Engine, list[Values | ImageError]]:
        prompts, pictures, asked, given = items
        size_bytes = size_of(pictures) + size_of([source for source in given if source is not None])
        async with service.work(request, len(pictures), size_bytes) as (engine, job):
            named = engine.scorer.named
            try:
                outputs = named.chosen(asked)
            except InputError as error:
                raise invalid(f"outputs: {error}") from None
            try:
                sources: Sequence[Picture | None] = for_each(given, len(pictures), named)
            except InputError as error:
                raise invalid(f"source: {error}") from None
            outcomes = await engine.score(job, prompts_for(engine, prompts, len(pictures), asked), pictures, sources)
            request.state.log = service.count(outcomes)
            return engine, [values_of(outcome, outputs, asked is not None) for outcome in outcomes]

    @app.post("/v1/score", **described(shapes.ScoreRequest, shapes.ScoreAnswer, shapes.SCORE_FORM))
    async def score(request: Request) -> Response:
        """Score pictures under a prompt, or each under its own. Higher is preferred.

        A bundle with several outputs gives the first head's score, unless others are requested by name.
        """
        engine, outcomes = await scored(request, await read_items(request, service.config, shapes.ScoreRequest))
        return answer(engine, items=[item(outcome) for outcome in outcomes])

    @app.post("/v1/rank", **described(shapes.ScoreRequest, shapes.RankAnswer, shapes.SCORE_FORM))
    async def rank(request: Request) -> Response:
        """Rank pictures under one prompt, with the probability that each is the preferred one of all.

        They are ranked by the first requested output.
        """
        given = await read_items(request, service.config, shapes.ScoreRequest)
        if len(given.prompts) > 1:
            raise invalid(f"got {len(given.prompts)} prompts; wanted one to rank under")
        engine, outcomes = await scored(request, given)
        items, order = ranked(outcomes)
        return answer(engine, items=items, order=order)

    @app.post("/v1/embed", **described(shapes.EmbedRequest, shapes.EmbedAnswer, shapes.ITEM_FORM))
    async def embed(request: Request) -> Response:
        """Compute unit vectors of pictures and prompts. The cosine of two vectors is their dot product."""
        prompts, pictures, *_ = await read_items(request, service.config, shapes.EmbedRequest)
        async with service.work(request, len(prompts) + len(pictures), size_of(pictures)) as (engine, job):
            if prompts and not engine.has_text_tower:
                raise invalid(
                    "this service's bundle has no tower for texts; send only images, or export the head again with"
                    " --text-search"
                )
            found = asyncio.gather(*(engine.embed_named(job, picture) for picture in pictures))
            images, texts = await asyncio.gather(found, engine.embed_prompts(job, prompts))
            request.state.log = service.count([*images, *texts])
            return answer(engine, images=[item(v) for v in images], prompts=[item(v) for v in texts])

    add_openai_routes(app, service)
    add_dialects(app, service)
    if service.config.catalogue is not None:
        add_search_routes(app, service)
    if service.config.voting.votes is not None:
        try:
            from runtime.service.routes.compare import add_compare_routes
        except ModuleNotFoundError as error:
            raise InputError(f"{error.name} is not installed; run: pip install 'plaudit[votes]'") from None
        add_compare_routes(app, service)

    if service.config.guarded["/admin/"] and service.config.may_reload:

        @app.post("/admin/reload", responses=ERRORS)
        async def reload() -> dict[str, str]:
            """Load bundle and catalogue again from their paths. If that fails, the old ones stay in use."""
            try:
                # The client may disconnect; a reload that has begun is finished.
                engine = await asyncio.shield(asyncio.create_task(service.reload()))
            except (InputError, OSError) as error:
                raise Problem(422, "reload failed", service.told(error)) from None
            return engine.names_itself

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "live"}

    @app.get(
        "/health/ready", responses={503: {"model": shapes.ErrorAnswer, "description": "This process cannot serve"}}
    )
    async def ready() -> dict[str, str]:
        """Whether the service can serve: the bundle's reference gives the right scores, and a decoder works."""
        try:
            await service.ready()
        except Exception as error:
            raise Problem(503, "not ready", service.told(error)) from None
        return {"status": "ready", **service.room.engine.names_itself}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counters, gauges and histograms for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    document = openapi(app, service)
    app.openapi = lambda: document  # type: ignore[method-assign]
    for route in app.routes:
        if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")  # added after the description, which would otherwise list each twice


def add_search_routes(app: FastAPI, service: Service) -> None:
    """Add the routes for a service with a catalogue."""
    config = service.config
    thumbnails = Thumbnails(service.decoders, service.fetcher, config.images_root, config.limits.max_bytes)

    @app.post("/v1/similar", **described(shapes.SimilarRequest, shapes.SimilarAnswer, shapes.SIMILAR_FORM))
    async def similar(request: Request) -> Response:
        """Find popular pictures of the catalogue that are like the query's likes and unlike its dislikes."""
        asked = await read_similar(request, config)
        named = [*asked.likes, *asked.dislikes]
        size_bytes = sum(len(like.image or "") for like in named)
        async with service.work(request, len(named), size_bytes) as (engine, job):
            assert engine.catalogue is not None
            try:
                hits = await find_hits(engine, job, engine.catalogue, asked)
            except InputError as error:
                raise invalid(service.told(error)) from None
            return answer(engine, catalogue=engine.catalogue.manifest["version"], hits=hits)

    browser = Browser(config.scores, config.beside)
    browser.check(service.room.engine.scorer)

    @app.get("/v1/catalogue", response_model=CatalogueAnswer, responses=ERRORS)
    async def about(request: Request) -> Response:
        """Describe the catalogue: its size, its columns with their values, and the measures by which it can be
        ranked."""
        async with service.work(request, 1, 0) as (engine, _):
            assert engine.catalogue is not None
            try:
                found = await browser.about(engine)
            except (InputError, OSError) as error:
                raise invalid(service.told(error)) from None
            version, report = engine.catalogue.manifest["version"], config.report is not None
            return answer(engine, catalogue=version, report=report, **found)

    @app.post("/v1/browse", **described(BrowseRequest, BrowseAnswer))
    async def browse(request: Request) -> Response:
        """Rank the whole catalogue by a measure: its popularity, a column, or a score of the head."""
        asked = await read_json_request(request, BrowseRequest)
        async with service.work(request, 1, 0) as (engine, _):
            assert engine.catalogue is not None
            try:
                found = await browser.page(engine, asked)
            except (InputError, OSError) as error:
                raise invalid(service.told(error)) from None
            return answer(engine, catalogue=engine.catalogue.manifest["version"], **found)

    refused: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (401, 422, 429, 500, 504)}
    picture = {"description": "The picture", "content": {"image/webp": {}}}
    missing = {"model": shapes.ErrorAnswer, "description": "The catalogue has no such picture, or it cannot be read"}

    @app.get(
        THUMBNAILS + "/{id}",
        response_class=Response,
        responses=refused | {200: picture, 304: {"description": "The picture has not changed"}, 404: missing},
    )
    async def thumbnail(request: Request, id: str, size: ThumbnailSize = ThumbnailSize.medium) -> Response:
        """A small version of a picture of the catalogue, by its id. Its longer side has at most `size` pixels."""
        async with service.work(request, 1, TYPICAL_BYTES) as (engine, job):
            try:
                found = await thumbnails.get(engine, job, id, size)
            except ImageError as error:
                request.state.log = service.count([error])
                fields = {"request_id": request.state.request_id, "error": str(error)}
                log.warning("no thumbnail", extra={"fields": fields})
                raise Problem(404, "no picture", f"the catalogue's picture cannot be read: {error.reason}") from None
        if found is None:
            raise Problem(404, "unknown id", "the catalogue has no picture with that id")
        request.state.log = service.count([found])
        tag = f'"{hashlib.sha256(found).hexdigest()[:32]}"'
        headers = {"ETag": tag, "Cache-Control": f"private, max-age={THUMBNAIL_SECONDS}"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(found, headers=headers, media_type="image/webp")


def openapi(app: FastAPI, service: Service) -> dict[str, object]:
    """The description of the API, with the schemas of requests, which FastAPI does not know."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    models: list[type[BaseModel]] = [shapes.ScoreRequest, shapes.EmbedRequest, shapes.SimilarRequest]
    models += [BrowseRequest, EmbeddingsRequest]
    if service.config.voting.votes is not None:
        from runtime.service.routes.compare import SHAPES as OF_VOTES

        models += OF_VOTES
    models += [model for dialect in service.config.dialects for model in SHAPES[dialect]]
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


def size_of(pictures: Sequence[Picture]) -> int:
    """The bytes of all pictures that are in the request. Pictures to fetch count as 0."""
    return sum(len(picture) for picture in pictures if isinstance(picture, bytes))


def prompts_for(
    engine: Engine, prompts: Sequence[str], count: int, asked: Sequence[str] | None = None
) -> Sequence[str | None]:
    """A prompt for each picture. Raise Problem if a requested output needs a prompt and there is none."""
    if not prompts and engine.scorer.named.needs_prompt(asked):
        raise invalid("this bundle's head scores pictures under a prompt; give one")
    # The requested outputs ignore the prompt, but others that are computed with them may read it.
    none = "" if engine.scorer.reads_text else None
    return prompts if len(prompts) == count else [prompts[0] if prompts else none] * count


def values_of(
    outcome: Mapping[str, float] | ImageError, outputs: Sequence[Output], by_name: bool
) -> Values | ImageError:
    """The values of the first output, and with `by_name` also those of each output under its name."""
    if isinstance(outcome, ImageError):
        return outcome
    each = {output.name: {value: outcome[there] for value, there in output.values.items()} for output in outputs}
    return {**each[outputs[0].name], **({"outputs": each} if by_name else {})}


def item(outcome: Values | Float32s | tuple[Float32s, str] | ImageError) -> dict[str, object]:
    """An item of an answer: scores, a vector (with the id, for a picture) or an error."""
    if isinstance(outcome, ImageError):
        error = {"stage": outcome.stage, "reason": outcome.reason, "message": shapes.message_of(outcome)}
        return {"ok": False, "error": error}
    if isinstance(outcome, np.ndarray):
        return {"ok": True, "embedding": outcome.tolist()}
    if isinstance(outcome, tuple):
        return {"ok": True, "embedding": outcome[0].tolist(), "id": outcome[1]}
    return {"ok": True, **outcome}


def ranked(outcomes: Sequence[Values | ImageError]) -> tuple[list[dict[str, object]], list[int]]:
    """Items with rank and probability, and the numbers of the good ones, the preferred one first. Ties keep their
    order."""
    items = [item(outcome) for outcome in outcomes]
    good = {i: outcome for i, outcome in enumerate(outcomes) if not isinstance(outcome, ImageError)}
    order = sorted(good, key=lambda i: -good[i]["score"])
    scores = [good[i].get("calibrated_score", good[i]["score"]) for i in order]
    for place, (i, probability) in enumerate(zip(order, softmax(np.array(scores)), strict=True), start=1):
        items[i] |= {"rank": place, "probability": float(probability)}
    return items, order


def answer(engine: Engine, **fields: object) -> Response:
    return JSONResponse({**fields, **engine.names_itself})
