"""A query of the service to a catalogue: likes and dislikes to one vector, one vector to hits. Knows no HTTP."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from embed.arrays import Float32s
from embed.inputs.images import ImageError
from embed.spec import InputError
from runtime.catalogue.queries import find, mixed_query
from runtime.catalogue.reader import Catalogue, hit_json
from runtime.config import Wish
from runtime.service.engine import Engine
from runtime.service.requests import Like, SimilarRequest, UrlPicture, picture_of


async def find_hits(engine: Engine, asked: SimilarRequest) -> list[dict[str, Any]]:
    """The hits as JSON, best first; InputError for a picture that cannot be used, an unknown column, id and so on."""
    catalogue = engine.catalogue
    assert catalogue is not None
    likes, dislikes = await asyncio.gather(_vectors(engine, asked.likes), _vectors(engine, asked.dislikes))

    def search() -> list[dict[str, Any]]:
        query = mixed_query(likes, dislikes)
        named = [like.id for like in asked.likes if like.id is not None]
        exclude = [catalogue.rows["image_id"][catalogue.row_of(name)].as_py() for name in named]
        if asked.front:
            hits = catalogue.front(query, asked.min_percentile, asked.where, exclude)
        else:
            wish = Wish(
                asked.k,
                asked.popularity_weight,
                asked.min_percentile,
                asked.where,
                asked.dedup,
                asked.group_by,
                asked.per_group,
                exclude,
            )
            hits = find(catalogue, query, wish)
        return [hit_json(hit) for hit in hits]

    return await engine.search(search)


async def _vectors(engine: Engine, likes: Sequence[Like]) -> Float32s:
    """(n, d) float32 unit vectors."""
    assert engine.catalogue is not None
    found = await asyncio.gather(*(_vector(engine, engine.catalogue, like) for like in likes))
    return np.array(found, np.float32).reshape(-1, engine.catalogue.vectors.shape[1])


async def _vector(engine: Engine, catalogue: Catalogue, like: Like) -> Float32s:
    if like.text is not None:
        if engine.scorer.bundle.tokenizer_config is None:
            raise InputError("this service's bundle reads no text; wanted pictures, ids or vectors")
        return (await engine.embed_prompts([like.text]))[0]
    if like.id is not None:
        name = like.id
        return await engine.search(lambda: catalogue.vectors[catalogue.row_of(name)].astype(np.float32))
    if like.vector is not None:
        return _unit(np.array(like.vector), catalogue.vectors.shape[1])
    picture = picture_of(like.image) if like.image is not None else UrlPicture(url=str(like.url))
    (outcome,) = await engine.embed_images([picture])
    if isinstance(outcome, ImageError):
        raise outcome
    return outcome


def _unit(vector: np.ndarray, dim: int) -> Float32s:
    if len(vector) != dim:
        raise InputError(f"got a vector of {len(vector)} numbers; the catalogue's have {dim}")
    largest = np.abs(vector).max()
    if not largest > 0:
        raise InputError("got a vector without a direction")
    vector = vector / largest  # or the square of a large number would overflow
    unit: Float32s = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit
