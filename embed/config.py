"""What the stages of embedding can be told. Standard library only, so that a command's help needs nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from embed.modes import Mode
from embed.options import Internal, Option, Range, comma_separated, require_valid
from embed.spec import BoundaryDtype, Feature, InputError, Precision

Runner = Literal["torch", "onnx"]
DecodingPolicy = Literal["auto", "exact", "scaled"]
JobDecoding = Literal[DecodingPolicy, "device"]
MinCosine = Annotated[float, Range(above=0, high=1)]

FEATURES: tuple[tuple[Feature, ...], ...] = (("projected",), ("projected", "pooled"))

# Pillow refuses more whatever our limit is (twice its MAX_IMAGE_PIXELS).
PILLOW_MAX_PIXELS = 178_956_970


@dataclass(frozen=True)
class Limits:
    """The largest picture that is decoded; both are checked before that.

    The defaults let through what cameras and generators make, a 64-megapixel phone picture included. Decoding takes
    4 to 18 bytes of memory a pixel (JPEG 4, progressive JPEG 10, WebP 16, AVIF 9 to 18): at most 1.2 GB a picture.
    """

    max_bytes: Annotated[int, Range(1)] = 64 << 20
    """The largest file of one picture, in bytes."""
    max_pixels: Annotated[int, Range(1, PILLOW_MAX_PIXELS)] = 1 << 26  # 8192 x 8192
    """The largest picture, in pixels."""

    def __post_init__(self) -> None:
        require_valid(self)


@dataclass(frozen=True)
class DeviceConfig:
    """Where torch computes."""

    device: str = "auto"
    """What computes: cpu, cuda, cuda:1 or mps. A device that is not there is an error. With auto it is the best one
    that is there."""


@dataclass(frozen=True)
class Overwriting:
    """Whether what a command makes may take the place of what it made before."""

    overwrite: bool = False
    """Replace what an earlier run wrote to --out, as soon as the new one is complete."""


@dataclass(frozen=True)
class Wanted:
    """What the user asked for of the engine that computes vectors."""

    runner: Annotated[Literal["auto", Runner], Internal()] = "auto"
    precision: Literal["auto", Precision] = "auto"
    """The precision to compute with. With auto it is the fastest one that --min-cosine lets through."""
    device: Annotated[str, Internal()] = "auto"
    min_cosine: MinCosine = 0.999
    """How near the vectors must be to those of torch in fp32, for auto: the lowest cosine that is let through."""
    threads: Annotated[int | None, Range(1)] = None
    """The number of threads of the engine onnx. By default one for each core."""

    def __post_init__(self) -> None:
        require_valid(self)


def parse_columns(text: str) -> dict[str, str]:
    """{ours: theirs} from `ours=theirs,...`, as the command line's `--columns` has it."""
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    if bad := [ours for ours, equals, theirs in pairs if not (ours.strip() and equals and theirs.strip())]:
        raise InputError(f"--columns {text!r}: {bad[0]!r} is not of the form name=your_name")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """How tables are read."""

    format: str | None = None
    """The format of the tables. By default it is recognised by their columns."""
    columns: Annotated[Mapping[str, str], Option(parse=parse_columns)] = field(default_factory=dict)
    """What your tables call the columns, if they have other names: NAME=YOURS,... such as image=path,prompt=caption."""
    images_root: str | None = None
    """The folder or URL where relative paths start. By default the table's own folder."""


@dataclass(frozen=True, kw_only=True)
class PicturesConfig(TableConfig):
    """How tables are read, and the exported graphs that embed their pictures."""

    machine_cache: Path | None = None
    """The folder of exported graphs. By default $PLAUDIT_CACHE, or else plaudit in the user's cache folder."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig(PicturesConfig):
    """How pictures and prompts are embedded."""

    features: Annotated[tuple[Feature, ...], Option(parse=comma_separated)] = ("projected",)
    """The features of pictures that are kept: projected, or projected,pooled for those before the projection too."""
    decoding: JobDecoding = "auto"
    """How JPEGs are decoded: exact; large ones scaled to a fraction of their size, which is faster, at the least scale
    whose vectors --min-cosine lets through; or on the device, which has to be CUDA, if --min-cosine lets that through.
    With auto a cache keeps to what it has, and a new one of many large JPEGs is scaled where that passes."""
    ignore_exif: bool = False
    """Take pictures as they are stored and do not turn them upright, as open_clip does."""
    rehash: bool = False
    """Read every picture again, even if its file has the same size and time of change as before."""
    batch_size: Annotated[int | None, Range(1)] = None
    """How many pictures or prompts are embedded together. By default 32 on a CPU, and 256 elsewhere."""
    workers: Annotated[int | None, Range(1)] = None
    """How many processes decode pictures. By default one for each core."""
    ray_address: str | None = None
    """The address of the cluster for --engine ray. By default a cluster of this machine alone is started."""
    ray_actors: Annotated[int, Range(1)] = 2
    """How many actors of --engine ray embed side by side."""
    num_gpus: Annotated[float, Range(0)] = 0
    """GPUs for each Ray actor."""

    def __post_init__(self) -> None:
        if self.features not in FEATURES:
            raise InputError(f"features {','.join(self.features)}; wanted one of projected and projected,pooled")
        require_valid(self)


@dataclass(frozen=True, kw_only=True)
class AdoptConfig:
    """How vectors that were made elsewhere are taken over."""

    columns: Annotated[Mapping[str, str], Option(parse=parse_columns)] = field(default_factory=dict)
    """What the tables call the columns image, image_embedding, prompt, text_embedding, uri, width and height, if not
    so: NAME=YOURS,... such as image=id,image_embedding=vector."""
    normalize: bool = False
    """Bring vectors to length 1 whose length is another. By default they are an error."""
    copy: bool = False
    """Write all vectors into the cache. By default files of float16 unit vectors are linked and all else is written."""


@dataclass(frozen=True)
class BoundaryConfig:
    """Which activations are kept, and how."""

    mode: Annotated[Mode, Internal()]
    dtype: Annotated[BoundaryDtype, Option("--boundary-dtype")] = "float16"
    """The type in which activations are stored."""
    max_bytes: Annotated[int, Option("--max-gb", unit=1e9), Range(0)] = 100 * 10**9
    """The largest size that --boundary may add to the cache, in GB."""
    batch_size: Annotated[int, Internal()] = 32
    device: Annotated[str, Internal()] = "cpu"

    def __post_init__(self) -> None:
        require_valid(self)
