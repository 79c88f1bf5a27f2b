"""Options of the stages of embedding. This module imports only the standard library so that help is quick."""

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

# Pillow refuses larger pictures whatever our limit is (this is twice its MAX_IMAGE_PIXELS).
PILLOW_MAX_PIXELS = 178_956_970


@dataclass(frozen=True)
class Limits:
    """The largest picture that is decoded. Both limits are checked before decoding.

    The defaults let through what cameras and generators make, including 64-megapixel pictures of phones. Decoding takes
    4 to 18 bytes of memory a pixel (JPEG 4, progressive JPEG 10, WebP 16, AVIF 9 to 18), at most 1.2 GB a picture.
    """

    max_bytes: Annotated[int, Range(1)] = 64 << 20
    """The largest size of a picture's file, in bytes."""
    max_pixels: Annotated[int, Range(1, PILLOW_MAX_PIXELS)] = 1 << 26  # 8192 x 8192
    """The largest size of a picture, in pixels."""

    def __post_init__(self) -> None:
        require_valid(self)


@dataclass(frozen=True)
class DeviceConfig:
    """The device that torch computes on."""

    device: str = "auto"
    """The device to compute on: auto (the best of this machine), cpu, cuda, cuda:1 or mps. A device that is not there
    is an error."""


@dataclass(frozen=True)
class Overwriting:
    """Whether a command may replace what it made before."""

    overwrite: bool = False
    """Replace what an earlier run wrote to --out, once the new output is complete."""


@dataclass(frozen=True)
class Wanted:
    """What the user asks of the engine that computes vectors."""

    runner: Annotated[Literal["auto", Runner], Internal()] = "auto"
    precision: Literal["auto", Precision] = "auto"
    """The precision to compute with. With auto it is the fastest one that satisfies --min-cosine."""
    device: Annotated[str, Internal()] = "auto"
    min_cosine: MinCosine = 0.999
    """The lowest cosine allowed between the vectors and those of torch in fp32. An engine below it is
    not used."""
    threads: Annotated[int | None, Range(1)] = None
    """The number of threads of the onnx engine. By default one for each core."""

    def __post_init__(self) -> None:
        require_valid(self)


def parse_columns(text: str) -> dict[str, str]:
    """Return {our name: their name} from `ours=theirs,...`, the value of the option `--columns`."""
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
    """The names of your columns, if they differ from ours: NAME=YOURS,... such as image=path,prompt=caption."""
    images_root: str | None = None
    """The folder or URL that relative paths start from. By default the table's own folder."""


@dataclass(frozen=True, kw_only=True)
class PicturesConfig(TableConfig):
    """How tables are read, and where the exported graphs are kept that embed their pictures."""

    machine_cache: Path | None = None
    """The folder for exported graphs. By default $PLAUDIT_CACHE, or plaudit in the user's cache folder."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig(PicturesConfig):
    """How pictures and prompts are embedded."""

    features: Annotated[tuple[Feature, ...], Option(parse=comma_separated)] = ("projected",)
    """The features of pictures to keep: projected, or projected,pooled to also keep those before the projection."""
    decoding: JobDecoding = "auto"
    """How JPEGs are decoded. exact decodes them as they are. scaled, which is faster, decodes large ones at a fraction
    of their size, the smallest that satisfies --min-cosine. device decodes on a CUDA device if that satisfies
    --min-cosine. With auto an existing cache keeps its way, and a new one of many large JPEGs is scaled if possible."""
    ignore_exif: bool = False
    """Embed pictures as they are stored, without turning them upright by their EXIF tag. open_clip does the same."""
    rehash: bool = False
    """Read every picture again, even if the size and modification time of its file have not changed."""
    batch_size: Annotated[int | None, Range(1)] = None
    """How many pictures or prompts are embedded in one batch. By default 32 on a CPU, and 256 elsewhere."""
    workers: Annotated[int | None, Range(1)] = None
    """How many processes decode pictures. By default one for each core."""
    ray_address: str | None = None
    """The address of the cluster for --engine ray. By default a cluster on this machine is started."""
    ray_actors: Annotated[int, Range(1)] = 2
    """How many Ray actors embed at the same time."""
    num_gpus: Annotated[float, Range(0)] = 0
    """The number of GPUs for each Ray actor."""

    def __post_init__(self) -> None:
        if self.features not in FEATURES:
            raise InputError(f"features {','.join(self.features)}; wanted one of projected and projected,pooled")
        require_valid(self)


@dataclass(frozen=True, kw_only=True)
class AdoptConfig:
    """How vectors that another tool made are taken into a cache."""

    columns: Annotated[Mapping[str, str], Option(parse=parse_columns)] = field(default_factory=dict)
    """The names of your columns for image, image_embedding, prompt, text_embedding, uri, width and height, if they
    differ: NAME=YOURS,... such as image=id,image_embedding=vector."""
    normalize: bool = False
    """Scale all vectors to length 1. By default vectors of another length are an error."""
    copy: bool = False
    """Copy all vectors into the cache. By default files of float16 unit vectors are linked and others are copied."""


@dataclass(frozen=True)
class BoundaryConfig:
    """Which activations are kept, and in which type."""

    mode: Annotated[Mode, Internal()]
    dtype: Annotated[BoundaryDtype, Option("--boundary-dtype")] = "float16"
    """The type in which activations are stored."""
    max_bytes: Annotated[int, Option("--max-gb", unit=1e9), Range(0)] = 100 * 10**9
    """The largest size that --boundary may add to the cache, in GB."""
    batch_size: Annotated[int, Internal()] = 32
    device: Annotated[str, Internal()] = "cpu"

    def __post_init__(self) -> None:
        require_valid(self)
