"""The weights of a bundle's graphs in memory of this process, read and verified in one pass.

Left to itself, onnxruntime maps the file: whoever overwrites it in place then changes the weights of a process that
runs, and whoever shortens it ends that process by a signal.
"""

import hashlib
import mmap
from collections.abc import Iterator

from runtime.config import Precision
from runtime.scoring.bundle import WEIGHTS_FILE, Bundle

PIECE_BYTES = 1 << 20

# Numbers of fields in the format of ONNX.
GRAPH, INITIALIZER, EXTERNAL_DATA, KEY, VALUE = 7, 5, 13, 1, 2


def read_weights(bundle: Bundle, precision: Precision) -> mmap.mmap:
    """WEIGHTS_FILE of the bundle, of which only what the graphs of one precision name takes memory.

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
    """Offset and length of each weight that an ONNX file keeps in another file."""
    for graph in _messages(memoryview(model), GRAPH):
        for tensor in _messages(graph, INITIALIZER):
            place = {
                bytes(next(_messages(entry, KEY))): bytes(next(_messages(entry, VALUE)))
                for entry in _messages(tensor, EXTERNAL_DATA)
            }
            if place:
                yield int(place[b"offset"]), int(place[b"length"])


def _messages(data: memoryview, wanted: int) -> Iterator[memoryview]:
    """The contents of each field of that number in a message of Protocol Buffers, where they have a length."""
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
    """A number in the encoding of Protocol Buffers, 7 bits a byte, and where the next field begins."""
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
