"""What the stages of embedding can be told. Standard library only, so that a command's help needs nothing else."""

from dataclasses import dataclass
from typing import Annotated

from embed.options import Range, require_valid

# Pillow refuses more whatever our limit is (twice its MAX_IMAGE_PIXELS).
PILLOW_MAX_PIXELS = 178_956_970


@dataclass(frozen=True)
class Limits:
    """The largest picture that is decoded; both are checked before that.

    The defaults let through what cameras and generators make, a 64-megapixel phone picture included. Decoding takes
    4 to 16 bytes of memory a pixel (JPEG 4, progressive JPEG 10, WebP 16): at most 1.1 GB a picture.
    """

    max_bytes: Annotated[int, Range(1)] = 64 << 20
    """The largest file of one picture, in bytes."""
    max_pixels: Annotated[int, Range(1, PILLOW_MAX_PIXELS)] = 1 << 26  # 8192 x 8192
    """The largest picture, in pixels."""

    def __post_init__(self) -> None:
        require_valid(self)
