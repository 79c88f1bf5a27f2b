"""Vectors in the format of OpenAI's clients, and also of pictures, in the format of infinity.

    POST /v1/embeddings     vectors of texts, or of pictures by `modality`, in JSON or in base64
    GET  /v1/models         the only model

Unlike in /v1/embed, a single bad picture is an error of the whole request.
"""

import asyncio
import base64
import re
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from embed.arrays import Float32s
from embed.inputs.images import ImageError
from runtime.service.answering.engine import Engine
from runtime.service.answering.reading import check_count, check_prompts, in_thread_if_large, read_json_request
from runtime.service.answering.requests import (
    ERRORS,
    Closed,
    ErrorAnswer,
    Picture,
    described,
    example,
    picture_of,
    url_picture,
)
from runtime.service.answering.state import Service
from runtime.service.network.errors import Problem, invalid
from runtime.service.network.turns import Job

Encoding = Literal["float", "base64"]


class EmbeddingsRequest(Closed):
    """Texts or pictures to turn into vectors."""

    model_config = example(input=["a red square", "a dog"], encoding_format="float")
    input: Annotated[
        str | Annotated[list[str], Field(min_length=1, fail_fast=True)],
        Field(description="one or several: texts, or pictures as data: addresses, base64 or URLs"),
    ]
    model: Annotated[str | None, Field(description="optional; the model that GET /v1/models names")] = None
    modality: Literal["text", "image"] = "text"
    encoding_format: Annotated[Encoding, Field(description="base64 holds little-endian 32-bit floats")] = "float"
    dimensions: Annotated[int | None, Field(ge=1, description="optional; it must be the length of the vectors")] = None
    user: Annotated[str | None, Field(description="ignored")] = None

    @property
    def inputs(self) -> list[str]:
        """The inputs as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


class EmbeddingItem(BaseModel):
    """One vector of unit length."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """The number of tokens that the text tower read. Pictures have none."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """One vector for each input, in their order."""

    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: Usage


class Model(BaseModel):
    """The bundle that is served."""

    id: str
    object: Literal["model"]
    created: Annotated[int, Field(description="when it was loaded, in seconds since 1970")]
    owned_by: str


class ModelsAnswer(BaseModel):
    """The list of models, which has one entry."""

    object: Literal["list"]
    data: list[Model]


def add_openai_routes(app: FastAPI, service: Service) -> None:
    """Add the routes for OpenAI's clients."""
    about = described(EmbeddingsRequest, EmbeddingsAnswer)
    unknown = {"model": ErrorAnswer, "description": "There is no such model"}
    about["responses"] = {**ERRORS, 404: unknown}

    @app.post("/v1/embeddings", **about)
    async def embeddings(request: Request) -> Response:
        """Compute unit vectors of texts or pictures, in the format of OpenAI's clients."""
        asked = await read_json_request(request, EmbeddingsRequest)
        check_count(len(asked.inputs), service.config)
        if asked.model not in (None, service.model):
            raise Problem(404, "unknown model", f"got {asked.model[:100]!r}; this service has {service.model!r}")
        if asked.modality == "text":
            check_prompts(asked.inputs, service.config.max_prompt_chars)
        size_bytes = 0 if asked.modality == "text" else sum(map(len, asked.inputs))
        async with service.work(request, len(asked.inputs), size_bytes) as (engine, job):
            _require_dimensions(engine, asked.dimensions)
            found, tokens = await (_texts if asked.modality == "text" else _pictures)(engine, job, asked.inputs)
            request.state.log = service.count(found)
        faults = [f"input {i}: {one}" for i, one in enumerate(found) if isinstance(one, ImageError)]
        if faults:
            raise invalid(*faults)
        vectors = [_encoded(one, asked.encoding_format) for one in found if not isinstance(one, ImageError)]
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": service.model, "usage": usage})

    @app.get("/v1/models", response_model=ModelsAnswer, responses={401: ERRORS[401]})
    async def models() -> Response:
        """The model of /v1/embeddings."""
        created = int(service.room.engine.loaded_at)
        model = {"id": service.model, "object": "model", "created": created, "owned_by": "plaudit"}
        return JSONResponse({"object": "list", "data": [model]})


def _require_dimensions(engine: Engine, dimensions: int | None) -> None:
    dim = engine.scorer.identity.dim
    if dimensions not in (None, dim):
        raise invalid(f"dimensions: got {dimensions}; wanted {dim}, since this model's vectors cannot be shortened")


async def _texts(engine: Engine, job: Job, texts: Sequence[str]) -> tuple[Sequence[Float32s | ImageError], int]:
    """The vectors of texts, and the number of their tokens."""
    if not engine.has_text_tower:
        raise invalid(
            "modality: this service's bundle has no tower for texts; wanted image, or a bundle that was exported with"
            " --text-search"
        )
    return await asyncio.gather(engine.embed_prompts(job, texts), asyncio.to_thread(engine.scorer.count_tokens, texts))


async def _pictures(engine: Engine, job: Job, texts: Sequence[str]) -> tuple[Sequence[Float32s | ImageError], int]:
    pictures = await in_thread_if_large(sum(map(len, texts)), lambda: list(map(_picture, texts)))
    return await engine.embed_images(job, pictures), 0


def _picture(text: str) -> Picture:
    return url_picture(text) if re.match("https?://", text, re.IGNORECASE) else picture_of(text)


def _encoded(vector: Float32s, encoding: Encoding) -> list[float] | str:
    if encoding == "float":
        numbers: list[float] = vector.tolist()
        return numbers
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
