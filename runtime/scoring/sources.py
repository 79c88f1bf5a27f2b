"""Vectors of source pictures, from which pictures were made, such as the input of an edit.

A head that reads sources gets zeros for pictures without one.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from PIL.Image import Image

from embed.arrays import Float32s, UInt8s
from embed.inputs.images import ImageError
from embed.spec import InputError
from runtime.scoring.outputs import Outputs

SOURCE = "source_embedding"  # its name in graphs

Given = TypeVar("Given")
Picture = str | os.PathLike[str] | bytes | Image | UInt8s
Encode = Callable[[Sequence[Picture]], tuple[dict[str, Float32s], dict[int, ImageError], int]]


def reads_source(outputs: Outputs) -> bool:
    """Whether a score depends on source pictures."""
    return any(SOURCE in output.inputs for output in outputs.all)


def for_each(sources: Sequence[Given | None], count: int, outputs: Outputs) -> Sequence[Given | None]:
    """A source or None for each of `count` pictures, from one for all, one for each, or none. Raise InputError for
    another number, or if no head reads sources."""
    if any(source is not None for source in sources) and not reads_source(outputs):
        raise InputError("no head of this bundle reads source pictures; leave sources out")
    if len(sources) not in (0, 1, count):
        raise InputError(f"got {len(sources)} sources for {count} pictures; wanted one, or as many")
    if len(sources) == count:
        return sources
    return [sources[0] if sources else None] * count


def add_sources(
    features: Mapping[str, Float32s],
    errors: Mapping[int, ImageError],
    sources: Sequence[Picture | None],
    encode: Encode,
) -> tuple[dict[str, Float32s], dict[int, ImageError]]:
    """Add the vectors of sources to vectors of pictures by name, without the pictures whose source is bad. Also gives
    the errors of pictures and sources, by the picture's number. `features` holds the pictures that are not in
    `errors`."""
    dim = features["image_embedding"].shape[1]
    vectors, bad = source_vectors(sources, encode, dim)
    good = [i for i in range(len(sources)) if i not in errors]
    kept = [place for place, i in enumerate(good) if i not in bad]
    found = {name: rows[kept] for name, rows in features.items()}
    found[SOURCE] = vectors[[good[place] for place in kept]]
    return found, {**bad, **errors}


def source_vectors(
    sources: Sequence[Picture | None], encode: Encode, dim: int
) -> tuple[Float32s, dict[int, ImageError]]:
    """(n, d): the vectors of the sources, zeros for None; and the errors of bad ones, by their number. `encode` gives
    the good ones' vectors by name, the errors, and the number of all pictures."""
    different = list({id(source): source for source in sources if source is not None}.values())
    vectors, bad, _ = encode(different)
    good = iter(vectors["image_embedding"])
    found = {id(one): bad.get(i) or next(good) for i, one in enumerate(different)}
    result = np.zeros((len(sources), dim), np.float32)
    errors: dict[int, ImageError] = {}
    for i, source in enumerate(sources):
        one = None if source is None else found[id(source)]
        if isinstance(one, ImageError):
            errors[i] = of_source(one)
        elif one is not None:
            result[i] = one
    return result, errors


def of_source(error: ImageError) -> ImageError:
    """The same error, with a message that it is about the source picture."""
    return ImageError(error.stage, error.reason, f"its source picture: {error.detail}")
