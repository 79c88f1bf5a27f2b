"""Answer a query of a catalogue: make one vector of likes and dislikes, and find its hits. Knows no HTTP."""

import asyncio

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
    """The hits as JSON, best first. Raise InputError for a picture that cannot be used, an unknown column and the
    like."""
    given = [*asked.likes, *asked.dislikes]
    found = await asyncio.gather(*(_vector(engine, job, catalogue, like) for like in given))
    vectors = np.array([vector for vector, _ in found], np.float32).reshape(-1, catalogue.identity.dim)
    exclude = [image_id for _, image_id in found if image_id is not None]

    def search() -> list[dict[str, object]]:
        weights = ([like.weight for like in side] for side in (asked.likes, asked.dislikes))
        query = mixed_query(vectors[: len(asked.likes)], vectors[len(asked.likes) :], *weights)
        wish = Wish(**asked.model_dump(exclude={"likes", "dislikes", "front"}), exclude=exclude)
        hits = catalogue.front(query, wish) if asked.front else find(catalogue, query, wish)
        return [hit_json(hit) | {"thumbnail": f"{THUMBNAILS}/{hit.id}"} for hit in hits]

    return await engine.search(search)


async def _vector(engine: Engine, job: Job, catalogue: Catalogue, like: Like) -> tuple[Float32s, str | None]:
    """The unit vector (d,), and for a picture its id."""
    if like.text is not None:
        if not engine.has_text_tower:
            raise InputError(
                "this service's bundle has no tower for texts; give pictures, ids or vectors, or export the head again"
                " with --text-search"
            )
        return (await engine.embed_prompts(job, [like.text]))[0], None
    if like.vector is not None:
        if len(like.vector) != (dim := catalogue.identity.dim):
            raise InputError(
                f"got a vector of {len(like.vector)} numbers; wanted {dim}, as the catalogue's vectors have"
            )
        return unit_vector(np.array(like.vector), "got"), like.id
    if like.id is not None:
        named = like.id
        return await engine.search(lambda: (catalogue.vector_of(named), catalogue.id_of(named)))
    picture = picture_of(like.image) if like.image is not None else UrlPicture(url=str(like.url))
    outcome = await engine.embed_named(job, picture)
    if isinstance(outcome, ImageError):
        raise outcome
    return outcome
