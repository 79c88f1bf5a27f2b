"""Large JPEGs decoded at a half, a quarter or an eighth of their size, which libjpeg does in the inverse transform.

Most pixels of a photograph of 12 megapixels are thrown away by the resize to a backbone's 224. Pillow offers this for
JPEG alone. What comes out is no whole number of the picture's pixels, and turned by its orientation the fraction may
lie at either end: `Whole` says where, so that the resize that follows takes every pixel from where it would have been.
Without that, a third of a pixel at the edge, the vectors of some pictures moved twenty times as far.
"""

from PIL import ImageFile

from embed.inputs.exif import orientation
from embed.inputs.pixels import Whole, placement
from embed.spec import Preprocess

SCALES = (2, 3, 4)  # times the pixels a side that the backbone takes: what is tried

# Orientations, as EXIF counts them, that exchange the sides, and those by which the picture's right or lower end comes
# to lie left or above.
SIDEWAYS, FROM_RIGHT, FROM_BELOW = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)


def shrink(image: ImageFile.ImageFile, spec: Preprocess, scale: int) -> Whole | None:
    """Have an opened picture decoded at the least fraction that leaves `scale` times the pixels a side that `spec`
    resizes it to; None where it is decoded as it is, being small or no JPEG."""
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
