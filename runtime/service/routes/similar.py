"""A query of the service to a catalogue: likes and dislikes to one vector, one vector to hits. Knows no HTTP."""

import asyncio
from collections.abc import Sequence
from functools import partial

import numpy as np

from embed.arrays import Float32s
from embed.inputs.images import ImageError
from embed.spec import InputError
from runtime.catalogue.queries import find, mixed_query, unit_vector
from runtime.catalogue.reader import Catalogue, hit_json
from runtime.config import Wish
from runtime.service.answering.engine import Engine
from runtime.service.answering.requests import Like, SimilarRequest, UrlPicture, picture_of
from runtime.service.network.turns import Job

THUMBNAILS = "/v1/thumbnails"


async def find_hits(engine: Engine, job: Job, catalogue: Catalogue, asked: SimilarRequest) -> list[dict[str, object]]:
    """The hits as JSON, best first; raise InputError for a picture that cannot be used, an unknown column and so on."""
    sides = (_vectors(engine, job, catalogue, side) for side in (asked.likes, asked.dislikes))
    likes, dislikes = await asyncio.gather(*sides)

    def search() -> list[dict[str, object]]:
        weights = ([like.weight for like in side] for side in (asked.likes, asked.dislikes))
        query = mixed_query(likes, dislikes, *weights)
        exclude = [catalogue.id_of(like.id) for like in asked.likes if like.id is not None]
        wish = Wish(**asked.model_dump(exclude={"likes", "dislikes", "front"}), exclude=exclude)
        hits = catalogue.front(query, wish) if asked.front else find(catalogue, query, wish)
        return [hit_json(hit) | {"thumbnail": f"{THUMBNAILS}/{hit.id}"} for hit in hits]

    return await engine.search(search)


async def _vectors(engine: Engine, job: Job, catalogue: Catalogue, likes: Sequence[Like]) -> Float32s:
    """(n, d) float32 unit vectors."""
    found = await asyncio.gather(*(_vector(engine, job, catalogue, like) for like in likes))
    return np.array(found, np.float32).reshape(-1, catalogue.identity.dim)


async def _vector(engine: Engine, job: Job, catalogue: Catalogue, like: Like) -> Float32s:
    if like.text is not None:
        if not engine.has_text_tower:
            raise InputError("this service's bundle reads no text; wanted pictures, ids or vectors")
        return (await engine.embed_prompts(job, [like.text]))[0]
    if like.id is not None:
        return await engine.search(partial(catalogue.vector_of, like.id))
    if like.vector is not None:
        if len(like.vector) != (dim := catalogue.identity.dim):
            raise InputError(f"got a vector of {len(like.vector)} numbers; the catalogue's have {dim}")
        return unit_vector(np.array(like.vector), "got")
    picture = picture_of(like.image) if like.image is not None else UrlPicture(url=str(like.url))
    (outcome,) = await engine.embed_images(job, [picture])
    if isinstance(outcome, ImageError):
        raise outcome
    return outcome
