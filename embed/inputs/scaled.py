"""Decode large JPEGs at a half, a quarter or an eighth of their size, which libjpeg does in the inverse transform.

Resizing a photograph of 12 megapixels to a backbone's 224 pixels throws most pixels away. Pillow offers a reduced size
only for JPEG. The reduced picture does not cover a whole number of the original's pixels, and after turning it upright
the remainder may lie at either end. `Whole` says where, so that the following resize takes every pixel from its right
place. Without that, an error of a third of a pixel at the edge moved some vectors twenty times as far.
"""

from PIL import ImageFile

from embed.inputs.exif import orientation
from embed.inputs.pixels import Whole, placement
from embed.spec import Preprocess

SCALES = (2, 3, 4)  # tried in this order; each is a multiple of the side that the backbone takes, in pixels

# EXIF orientations that exchange width and height, and those that bring the right or the lower end of the picture to
# the left or to the top.
SIDEWAYS, FROM_RIGHT, FROM_BELOW = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)


def shrink(image: ImageFile.ImageFile, spec: Preprocess, scale: int) -> Whole | None:
    """Let an opened picture be decoded at the smallest size that is `scale` times the size that `spec` resizes it to.

    Return None if it is decoded at full size, because it is small or not a JPEG.
    """
    if image.format not in ("JPEG", "MPO"):
        return None
    turned = 1 if spec.ignore_exif else orientation(image)
    size = image.size[::-1] if turned in SIDEWAYS else image.size
    wanted = [scale * max(1, side) for side in placement(*size, spec).size]
    stored = image.size
    found = image.draft(None, (wanted[1], wanted[0]) if turned in SIDEWAYS else (wanted[0], wanted[1]))
    if found is None or image.size == stored:
        return None
    _, _, *covered = found[1]
    decoded = image.size
    if turned in SIDEWAYS:
        covered, decoded = covered[::-1], decoded[::-1]
    left = decoded[0] - covered[0] if turned in FROM_RIGHT else 0
    top = decoded[1] - covered[1] if turned in FROM_BELOW else 0
    return Whole(size, (left, top, left + covered[0], top + covered[1]))
