"""Read the weights of a bundle's graphs into this process's memory, and verify them in the same pass.

By default onnxruntime maps the file. Overwriting it in place would then change the weights of a running process, and
truncating it would kill that process by a signal.
"""

import hashlib
import mmap
from collections.abc import Iterator

from runtime.config import Precision
from runtime.scoring.bundle import WEIGHTS_FILE, Bundle

PIECE_BYTES = 1 << 20

# Field numbers in the format of ONNX.
GRAPH, INITIALIZER, EXTERNAL_DATA, KEY, VALUE = 7, 5, 13, 1, 2


def read_weights(bundle: Bundle, precision: Precision) -> mmap.mmap:
    """The bundle's WEIGHTS_FILE. Only the parts that the graphs of one precision use take memory.

    Raise BundleError if the file is not the one that was exported.
    """
    graphs = bundle.graphs[precision].values()
    ranges = sorted({place for graph in graphs for place in external_places(bundle.read(graph.file))})
    memory = mmap.mmap(-1, max(1, bundle.manifest["files"][WEIGHTS_FILE]["bytes"]))
    digest, begin = hashlib.sha256(), 0
    with open(bundle.path / WEIGHTS_FILE, "rb", buffering=0) as file, memoryview(memory) as view:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            end = begin + len(piece)
            for offset, length in ranges:
                first, last = max(offset, begin), min(offset + length, end)
                if first < last:
                    view[first:last] = piece[first - begin : last - begin]
            begin = end
    bundle.require_exported(WEIGHTS_FILE, digest.hexdigest())
    return memory


def external_places(model: bytes) -> Iterator[tuple[int, int]]:
    """Yield the offset and length of each weight that an ONNX file stores in another file."""
    for graph in _messages(memoryview(model), GRAPH):
        for tensor in _messages(graph, INITIALIZER):
            place = {
                bytes(next(_messages(entry, KEY))): bytes(next(_messages(entry, VALUE)))
                for entry in _messages(tensor, EXTERNAL_DATA)
            }
            if place:
                yield int(place[b"offset"]), int(place[b"length"])


def _messages(data: memoryview, wanted: int) -> Iterator[memoryview]:
    """Yield the contents of each length-delimited field with that number in a Protocol Buffers message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind == 2:
            length, at = _varint(data, at)
            if number == wanted:
                yield data[at : at + length]
            at += length
        else:
            at += {1: 8, 5: 4}[kind]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number in the encoding of Protocol Buffers, with 7 bits per byte, and the position after it."""
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
