"""Turn plain JPEGs into a backbone's pixels on a device: nvJPEG decodes them, torch resizes them."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from embed.arrays import UInt8s
from embed.engines import nvjpeg
from embed.engines.plain import PlainJpeg
from embed.engines.resizing import resize
from embed.spec import Preprocess

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TOGETHER = 1 << 24  # pixels that are resized in one batch; each takes up to 50 bytes on the device

# For each EXIF orientation: whether height and width are exchanged, and which dimensions are reversed after that.
TURNS: dict[int, tuple[bool, tuple[int, ...]]] = {
    2: (False, (-1,)),
    3: (False, (-2, -1)),
    4: (False, (-2,)),
    5: (True, ()),
    6: (True, (-1,)),
    7: (True, (-2, -1)),
    8: (True, (-2,)),
}


def decode_jpegs(
    files: Sequence[bytes], found: Sequence[PlainJpeg], spec: Preprocess, device: str, library: nvjpeg.Library
) -> tuple[UInt8s, list[tuple[int, int]]]:
    """Return pixels for the backbone, uint8 (n, h, w, 3), and (width, height) of each picture after it was turned.

    Raise RuntimeError if the device cannot decode one of them, or decodes it to another size than the file states.
    """
    import torch

    with torch.inference_mode(), _apart(device):
        decoded = nvjpeg.decode(files, device, library)
        for picture, one in zip(decoded, found, strict=True):
            if picture.shape != (3, one.height, one.width):
                raise RuntimeError(f"decoded to {tuple(picture.shape)}, but the file states {one.width} x {one.height}")
        pictures = [upright(picture, one, spec) for picture, one in zip(decoded, found, strict=True)]
        pixels = np.empty((len(pictures), *spec.size, 3), np.uint8)
        for rows in _groups(pictures, spec):
            pixels[rows] = resize([pictures[row] for row in rows], spec).permute(0, 2, 3, 1).cpu().numpy()
    return pixels, [(picture.shape[-1], picture.shape[-2]) for picture in pictures]


def _apart(device: str) -> AbstractContextManager[object]:
    """On CUDA, use a separate stream, so that decoding does not wait for what the engine is computing."""
    import torch

    return nullcontext() if torch.device(device).type != "cuda" else torch.cuda.stream(_stream(device))


@cache
def _stream(device: str) -> "torch.cuda.Stream":
    import torch

    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def upright(picture: "Tensor", one: PlainJpeg, spec: Preprocess) -> "Tensor":
    """Return a picture (3, h, w) turned by its orientation, or as it is if `spec` ignores EXIF."""
    if spec.ignore_exif or one.orientation not in TURNS:
        return picture
    exchanged, backwards = TURNS[one.orientation]
    return (picture.transpose(-2, -1) if exchanged else picture).flip(backwards)


def _groups(pictures: "Sequence[Tensor]", spec: Preprocess) -> Iterator[list[int]]:
    """Yield row numbers of pictures of similar sizes; a group has at most TOGETHER pixels when padded."""
    rows: list[int] = []
    high = wide = 0
    for row in sorted(range(len(pictures)), key=lambda row: tuple(pictures[row].shape)):
        tall, broad = pictures[row].shape[-2:]
        broad = max(broad, spec.size[1])  # resizing may make it wider than it is
        if rows and (len(rows) + 1) * max(high, tall) * max(wide, broad) > TOGETHER:
            yield rows
            rows, high, wide = [], 0, 0
        rows.append(row)
        high, wide = max(high, tall), max(wide, broad)
    yield rows
