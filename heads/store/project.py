"""Move a cache into a cosine head's own space, by multiplying its vectors with the head's matrices.

In that space the cosine of picture and prompt orders as the head does, so that an index can hold the vectors and a
bundle can encode queries. The space has its own identity, so that vectors of different spaces are not mixed by mistake.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from embed.cache.store import EMBEDDINGS, Cache, CacheWriter
from embed.progress import Progress, silent
from embed.spec import SIDES, Identity, InputError, require_same_identity
from heads.models import Cosine, Head

PROJECTED = " projected by a head"  # the end of the model's name in such an identity


def require_cosine(head: Head, name: str) -> Cosine:
    """The head itself, if it has a space. Raise InputError otherwise."""
    if not isinstance(head, Cosine):
        raise InputError(f"{name} is a {type(head).__name__.lower()} head; only a cosine head has a space of its own")
    return head


def projected_identity(identity: Identity, head: Cosine) -> Identity:
    """The identity of the head's space, made from that of the backbone."""
    digest = hashlib.sha256(identity.weights.encode())
    for matrix in (head.image_residual, head.text_residual):
        digest.update(matrix.detach().numpy().tobytes())
    return replace(identity, model=identity.model + PROJECTED, weights=digest.hexdigest())


@torch.no_grad()
def project_cache(cache: Cache, head: Cosine, identity: Identity, out: Path, progress: Progress = silent) -> Identity:
    """Write the cache in the head's space to `out` and return its identity. `identity` is that of the backbone that the
    head is for. A killed run continues when it is started again. Pooled features are left out, since the head does not
    project them.
    """
    require_same_identity(identity, "the head", cache.identity, f"the cache {cache.path}")
    projected = projected_identity(identity, head)
    total = sum(cache.count(side) for side in SIDES)
    with CacheWriter(out, projected, cache.source) as writer, progress(total, "rows", "projecting") as step:
        for side, project in zip(SIDES, (head.embed_image, head.embed_text), strict=True):
            shards = list(zip(cache.files(side, "metadata"), cache.arrays(side), strict=True))
            done = len(writer.cache().files(side, "metadata"))
            step(sum(len(vectors) for _, vectors in shards[:done]))
            for file, vectors in shards[done:]:
                moved = project(torch.from_numpy(vectors.astype(np.float32))).numpy().astype(np.float16)
                writer.append(side, pq.read_table(file), **{EMBEDDINGS[side]: moved})
                writer.commit()
                step(len(moved))
        for file in cache.files("images", "keys")[len(writer.cache().files("images", "keys")) :]:
            writer.append_keys(pq.read_table(file))
        writer.replace_failures(cache.failures())
        writer.commit()
    return projected
