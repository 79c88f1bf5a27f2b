"""Pictures made for tests, as files; what a refusal must say; and where shared ones lie."""

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import DATA
from PIL import Image

from embed.inputs.images import ImageError, Limits, load_image
from embed.spec import Preprocess

DEFAULT = Limits()
SPEC = Preprocess((32, 32), "shortest", "bicubic", (0.5,) * 3, (0.5,) * 3)
SPECS = [
    SPEC,
    replace(SPEC, resize_mode="squash", interpolation="bilinear"),
    replace(SPEC, resize_mode="longest", fill_color=90),
    replace(SPEC, size=(24, 40)),
]
SQUARE = Preprocess((224, 224), "shortest", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
REASONS = {
    ("read", "empty file"),
    ("limits", "too many bytes"),
    ("limits", "too many pixels"),
    ("limits", "too much metadata"),
    ("limits", "too many scans"),
    ("decode", "unknown format"),
    ("decode", "unsupported encoding"),
    ("decode", "truncated"),
    ("decode", "damaged"),
    ("decode", "out of memory"),
}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth random colours: like a photograph, every resampling shows."""
    coarse = np.random.default_rng(seed).integers(0, 256, (max(1, height // 7), max(1, width // 7), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def failure(data: bytes, limits: Limits = DEFAULT) -> ImageError:
    with pytest.raises(ImageError) as caught:
        load_image(data, limits)
    assert (caught.value.stage, caught.value.reason) in REASONS
    return caught.value


def shared(folder: str) -> list[Path]:
    if not (DATA / folder).is_dir():
        pytest.skip(f"needs the pictures of {DATA / folder}")
    return sorted(path for path in (DATA / folder).rglob("*") if path.is_file())


def png(size: tuple[int, int], chunks: list[tuple[bytes, bytes]], depth: int = 8, kind: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in [(b"IHDR", header), *chunks, (b"IEND", b"")]
    )


def tiff(size: tuple[int, int], tags: dict[int, tuple[int, int, int]], data: bytes) -> bytes:
    """An 8-bit grey TIFF: `data` from byte 8 on, then its directory of tag: (type, count, value)."""
    base = {256: (4, 1, size[0]), 257: (4, 1, size[1]), 258: (3, 1, 8), 259: (3, 1, 8), 262: (3, 1, 1), 277: (3, 1, 1)}
    entries = sorted({**base, **tags}.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries))
    return head + b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in entries) + bytes(4)
