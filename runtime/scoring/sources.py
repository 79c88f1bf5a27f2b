"""The pictures that pictures were made from, such as an edit's input, as the vectors that heads read of them.

A head that reads sources reads zeros where there is none.
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

SOURCE = "source_embedding"  # what graphs call it

Given = TypeVar("Given")
Picture = str | os.PathLike[str] | bytes | Image | UInt8s
Encode = Callable[[Sequence[Picture]], tuple[dict[str, Float32s], dict[int, ImageError], int]]


def reads_source(outputs: Outputs) -> bool:
    """Whether a score depends on what a picture was made from."""
    return any(SOURCE in output.inputs for output in outputs.all)


def for_each(sources: Sequence[Given | None], count: int, outputs: Outputs) -> Sequence[Given | None]:
    """A source, or none, for each of `count` pictures, of one for all, as many, or none; raise InputError for another
    number, and where no head reads any."""
    if any(source is not None for source in sources) and not reads_source(outputs):
        raise InputError("no head of this bundle reads the pictures that others were made from; leave sources out")
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
    """Vectors of pictures by name, without those whose source is bad and with the vectors of sources; and what is wrong
    with a picture or its source, by the picture's number. `features` has the pictures that are not in `errors`."""
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
    """(n, d): the vectors of the sources, zeros where there is none; and what is wrong with those that are bad, by
    their number. `encode` gives the good ones' vectors by name, the bad ones, and how many there were."""
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
    """The same error, said to be of the source."""
    return ImageError(error.stage, error.reason, f"the picture that it was made from: {error.detail}")
