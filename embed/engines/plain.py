"""Find the JPEGs that a decoder on a device may take: plain ones, for which all decoders agree.

Most JPEGs of cameras and generators are plain: baseline, 8 bits, grey or YCbCr with usual sampling, and one complete
scan. All others, and broken ones, are decoded by Pillow, which also says what is wrong with them.
"""

import re
from dataclasses import dataclass

from embed.config import Limits
from embed.inputs.exif import turned

MAX_HEADER_BYTES = 1 << 20
START, FRAME, SCAN, APP1, ADOBE = 0xD8, 0xC0, 0xDA, 0xE1, 0xEE
# Other kinds of frames (progressive, lossless, arithmetic), and a height that follows the picture.
UNUSUAL = (*range(0xC1, 0xC4), *range(0xC5, 0xD0), 0xDC, 0xDE, 0xDF)
ALONE = (0x01, *range(0xD0, 0xDA))  # markers without a length, which must not occur before the scan
GREY = b"\x11"
SAMPLING = (b"\x11\x11\x11", b"\x21\x11\x11", b"\x22\x11\x11", b"\x12\x11\x11")  # of Y, Cb and Cr
# What ends a scan: a marker that is not an escaped byte, a restart or padding.
SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


@dataclass(frozen=True)
class PlainJpeg:
    """What the header of a plain JPEG states."""

    width: int  # as stored, before the picture is turned
    height: int
    orientation: int  # 1 to 8; other numbers have no meaning


def plain_jpeg(data: bytes, limits: Limits) -> PlainJpeg | None:
    """Return what the file's header states, or None if it is not a plain JPEG or exceeds the limits."""
    if len(data) > limits.max_bytes or data[:2] != bytes((0xFF, START)):
        return None
    size, adobe, exif, xmp = None, b"", b"", b""
    at = 2
    while at < min(len(data), MAX_HEADER_BYTES):
        if data[at] != 0xFF:
            return None
        marker, length = data[at + 1 : at + 2], int.from_bytes(data[at + 2 : at + 4], "big")
        at, body = at + 2 + length, data[at + 4 : at + 2 + length]
        if not marker or length < 2 or marker[0] in UNUSUAL or marker[0] in ALONE or at > len(data):
            return None
        if marker[0] == FRAME:
            if size is not None or (size := _size(body)) is None:
                return None
        elif marker[0] == APP1 and body.startswith(EXIF):
            exif += body if not exif else body[len(EXIF) :]
        elif marker[0] == APP1 and body.startswith(XMP):
            xmp = body[len(XMP) :]
        elif marker[0] == ADOBE and body.startswith(b"Adobe"):
            adobe = body
        elif marker[0] == SCAN:
            width, height, channels = size or (0, 0, 0)
            end = SCAN_END.search(data, at)
            whole = end is not None and end[0] == b"\xff\xd9" and body[:1] == bytes((channels,))
            # In a file of three channels, Adobe's marker may say that they are red, green and blue.
            usual = channels == 1 or not adobe or adobe[11:12] == b"\x01"
            if not (whole and usual and 0 < width * height <= limits.max_pixels):
                return None
            return PlainJpeg(width, height, turned(exif, xmp))
    return None


def _size(frame: bytes) -> tuple[int, int, int] | None:
    """Return width, height and number of channels, or None if the frame is unusual."""
    channels = frame[5] if len(frame) > 5 else 0
    names, sampling = frame[6::3], frame[7::3]
    grey = channels == 1 and sampling == GREY
    colours = channels == 3 and names == b"\x01\x02\x03" and sampling in SAMPLING
    if frame[:1] != b"\x08" or len(frame) != 6 + 3 * channels or not (grey or colours):
        return None
    return int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[1:3], "big"), channels
