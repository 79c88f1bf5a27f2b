"""A bundle: a folder with everything needed to score a picture under a prompt. It is verified before use.

    bundle.json      manifest: format, digest of itself, every file with its SHA-256 and size, identity of the
                     backbone, head, tokenizer, calibration, graphs by precision, parity, provenance; written last
    model.onnx       pixels (n, h, w, 3) uint8, tokens (n, c) int32
                     -> score (n,), image_embedding (n, d), text_embedding (n, d)
    image.onnx       pixels -> image_embedding, and image_pooled if the head reads it
    text.onnx        tokens -> text_embedding; absent if the head reads no text, unless it was kept for searching
    head.onnx        the vectors that the head reads -> score, and uncertainty if the head has a committee
    weights.bin      the weights, each stored once; all graphs refer to them by offset
    tokenizer.json   for the library `tokenizers`
    reference.npz    a few inputs with their scores and vectors from torch
    README.md        model card

A bundle for vectors from elsewhere has only the graph head.onnx, and no tokenizer.

A calibrated head, or one with a committee, gives more outputs than the score, and a bundle may hold several heads:
see `runtime.scoring.outputs`. The graphs of a bundle's first precision have the names above; those of another precision
have its name, as in `image.int8.onnx`. Reading a bundle runs no code from it. Knows no session.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from embed.engines.sessions import Signature
from embed.files import read_manifest, sha256_file
from embed.inputs.tokenizer import Tokenizer, TokenizerConfig
from embed.progress import stage
from embed.spec import Identity, InputError, Source, known_fields
from runtime.config import CUDA_PRECISION, Precision
from runtime.scoring.manifest import BundleManifest, FileEntry, GraphEntry, Part, Tensors

FORMAT = 1
WEIGHTS_FILE = "weights.bin"


class BundleError(InputError):
    """The folder is not a bundle, is damaged, or does not match its manifest."""


@dataclass(frozen=True)
class Graph:
    """One ONNX file with its inputs and outputs: name -> (type, shape). A free dimension is given by its name."""

    file: str
    inputs: Mapping[str, Signature]
    outputs: Mapping[str, Signature]

    @classmethod
    def from_json(cls, data: GraphEntry) -> "Graph":
        known_fields(cls, data)
        return cls(data["file"], _signatures(data["inputs"]), _signatures(data["outputs"]))


def _signatures(tensors: Tensors) -> dict[str, Signature]:
    return {name: (kind, tuple(shape)) for name, (kind, shape) in tensors.items()}


@dataclass(frozen=True)
class Bundle:
    """A verified bundle."""

    path: Path
    manifest: BundleManifest
    identity: Identity
    source: Source
    graphs: Mapping[Precision, Mapping[Part, Graph]]  # by precision, then by part
    tokenizer_config: TokenizerConfig | None  # None if there is no tower for texts

    @property
    def digest(self) -> str:
        """A SHA-256 over every byte of the bundle."""
        return self.manifest["digest"]

    @property
    def scale(self) -> int | None:
        """The scale of embed.inputs.scaled at which large JPEGs are decoded, or None for exact decoding."""
        decoding = self.manifest.get("decoding")
        return decoding["scale"] if decoding else None

    @property
    def is_head_alone(self) -> bool:
        """Whether the bundle only scores vectors from elsewhere, and has no towers."""
        return all("image" not in graphs for graphs in self.graphs.values())

    def require_towers(self) -> None:
        """Raise BundleError if the bundle has no towers for pictures and prompts."""
        if self.is_head_alone:
            raise BundleError(
                f"{self.path} holds a head alone, for vectors of {self.identity.model}: it encodes no picture and no"
                " prompt"
            )

    def precision(self, asked: str | None, on_cuda: bool = False) -> Precision:
        """The requested precision, or by default the one for CUDA on CUDA, and otherwise the bundle's first.

        Raise BundleError if the bundle lacks it, or if it runs only on CUDA and another provider is used.
        """
        if asked is None:
            usable = [precision for precision in self.graphs if (precision == CUDA_PRECISION) == on_cuda]
            asked = next(iter(usable or self.graphs))
        if asked == CUDA_PRECISION and asked in self.graphs and not on_cuda:
            raise BundleError(
                f"the graphs of {self.path} at {CUDA_PRECISION} run only on CUDA, and another provider is used here;"
                f" give --provider cuda with onnxruntime-gpu installed, or another precision of"
                f" {list(self.graphs)}"
            )
        for precision in self.graphs:
            if asked == precision:
                return precision
        raise BundleError(
            f"{self.path} has no graphs at {asked}, only at {list(self.graphs)};"
            f" export it again with --precision {asked}"
        )

    def graph(self, precision: Precision, part: Part) -> Graph:
        """The graph of one part. Raise BundleError if the bundle has none."""
        if part not in self.graphs[precision]:
            raise BundleError(f"{self.path} has no {part} graph: its head reads {self.manifest['head']['inputs']}")
        return self.graphs[precision][part]

    @property
    def has_text_tower(self) -> bool:
        """Whether texts can be embedded. This needs no head that reads them."""
        return self.tokenizer_config is not None

    def tokenizer(self) -> Tokenizer:
        """The tokenizer for prompts. Raise BundleError if the bundle has no tower for texts."""
        if self.tokenizer_config is None:
            raise BundleError(
                f"{self.path} reads no text, as its head scores pictures alone; to search by text, export the head"
                " again with --text-search"
            )
        return Tokenizer(self.read("tokenizer.json").decode(), self.tokenizer_config)

    def read(self, name: str) -> bytes:
        """A file's bytes. Raise BundleError if they are not those that were exported."""
        data = (self.path / name).read_bytes()
        self.require_exported(name, hashlib.sha256(data).hexdigest())
        return data

    def require_exported(self, name: str, sha256: str) -> None:
        """Raise BundleError if a file whose contents have this SHA-256 is not the one that was exported."""
        if sha256 != self.manifest["files"][name]["sha256"]:
            raise BundleError(
                f"{self.path / name} is not the file that was exported (its SHA-256 differs); if you overwrote it to"
                " serve another bundle, write that to its own folder and swap the folders"
            )


@stage("verifying the bundle")
def open_bundle(path: str | Path, unread: Collection[str] = ()) -> Bundle:
    """Open the bundle at `path` and verify every byte of it. Raise BundleError if something is not as exported.

    Of the files `unread` only the size is checked here; code that reads them must verify them.
    """
    path = Path(path)
    manifest = _read_manifest(path / "bundle.json")
    try:
        verify_files(path, manifest["files"], unread)
        identity = Identity.from_json(manifest["identity"])
        tokenizer = manifest["tokenizer"]
        bundle = Bundle(
            path=path,
            manifest=manifest,
            identity=identity,
            source=Source(**known_fields(Source, manifest["source"])),
            graphs={
                precision: {part: Graph.from_json(graph) for part, graph in manifest["graphs"][precision].items()}
                for precision in manifest["precisions"]
            },
            tokenizer_config=TokenizerConfig(**known_fields(TokenizerConfig, tokenizer)) if tokenizer else None,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"{path / 'bundle.json'} lacks or misuses a field ({error!r}); export the bundle again"
        ) from None
    _check_shapes(bundle)
    return bundle


def manifest_bytes(manifest: Mapping[str, object]) -> bytes:
    """The bytes of bundle.json: `manifest` and its digest, in the only form that `open_bundle` accepts."""
    body = {name: value for name, value in manifest.items() if name != "digest"}
    digest = hashlib.sha256(_spelled(body)).hexdigest()
    return _spelled({**body, "digest": digest})


def verify_files(path: Path, files: Mapping[str, FileEntry], unread: Collection[str] = ()) -> None:
    """Raise BundleError, which names every file that is missing or not as exported.

    Of `unread` files only the size is checked.
    """

    def fault(name: str) -> str | None:
        file, expected = path / name, files[name]
        if Path(name).name != name:
            return f"{name} is outside of the folder"
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
        if name not in unread and sha256_file(file) != expected["sha256"]:
            return f"{name} is not the file that was exported (its SHA-256 differs)"
        return None

    with ThreadPoolExecutor() as pool:
        faults = [text for text in pool.map(fault, sorted(files)) if text]
    if faults:
        raise BundleError(f"{path} is damaged: {'; '.join(faults)}; copy or export it again")


def _read_manifest(path: Path) -> BundleManifest:
    try:
        manifest = read_manifest(path, "bundle", (FORMAT,), BundleManifest)
    except InputError as error:
        raise BundleError(str(error)) from None
    try:
        intact = manifest_bytes(manifest) == path.read_bytes()
    except ValueError:  # a number is infinite
        intact = False
    if not intact:
        raise BundleError(f"{path} was changed after the export: its digest does not match; copy or export it again")
    return manifest


def _spelled(data: Mapping[str, object]) -> bytes:
    return (json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def _check_shapes(bundle: Bundle) -> None:
    """Raise BundleError unless the graphs' pixels, tokens and vectors have the shapes of the manifest's identity."""
    identity = bundle.identity
    pixels = None if bundle.is_head_alone else ("uint8", ("n", *identity.preprocess.size, 3))
    for precision, graphs in bundle.graphs.items():
        for part, graph in graphs.items():
            where = f"{bundle.path / 'bundle.json'}: the {part} graph at {precision}"
            for name, wanted in (("pixels", pixels), ("image_embedding", ("float32", ("n", identity.dim)))):
                for side in (graph.inputs, graph.outputs):
                    if name in side and side[name] != wanted:
                        raise BundleError(f"{where} has {name} {side[name]}, but the backbone's is {wanted}")
