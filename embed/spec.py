"""The nouns that every package shares: how a picture is prepared, and what makes two vectors comparable.

Standard library only. Nothing here reads a file, loads a model or knows an array.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, TypeVar, get_args

Side = Literal["images", "prompts"]  # of a cache, and of what a backbone is fed
Feature = Literal["projected", "pooled"]  # of a picture tower: in the space shared with text, and before it
Precision = Literal["fp32", "bf16", "fp16", "int8", "fp16-cuda"]  # the last one's graphs are for CUDA alone
BoundaryDtype = Literal["float16", "bfloat16", "int8", "float32"]  # of activations that a cache keeps
ResizeMode = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]

# Raised whenever the same picture or prompt, under the same weights, would become another vector.
PIPELINE_VERSION = 1

RESIZE_MODES = get_args(ResizeMode)
INTERPOLATIONS = get_args(Interpolation)
SIDES: tuple[Side, ...] = get_args(Side)

Data = TypeVar("Data", bound=Mapping[str, object])


class InputError(ValueError):
    """What the user gave cannot be used; the message says what was got, what was wanted, and what to do.

    The command line prints it as one line and exits with 2; every other exception is a fault of ours.
    """


class IdentityMismatch(InputError):
    """Two artifacts come from different backbones, so their vectors must not meet."""


@dataclass(frozen=True)
class Preprocess:
    """How a decoded picture becomes uint8 pixels (h, w, 3), and how the backbone then normalises them."""

    size: tuple[int, int]  # height, width in pixels
    resize_mode: ResizeMode
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fill_color: int = 0  # of the border that `longest` leaves
    ignore_exif: bool = False  # True is open_clip's habit: a picture stored sideways stays sideways

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise InputError(f"Preprocess.size is {self.size}; wanted (height, width) in pixels")
        if self.resize_mode not in RESIZE_MODES:
            raise InputError(f"Preprocess.resize_mode is {self.resize_mode!r}; wanted one of {RESIZE_MODES}")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(f"Preprocess.interpolation is {self.interpolation!r}; wanted one of {INTERPOLATIONS}")
        if min(self.std) <= 0:
            raise InputError(f"Preprocess.std is {self.std}; every channel must be positive")


@dataclass(frozen=True)
class Source:
    """How to load a backbone again. Not part of its identity: a path may move, the weights decide."""

    model: str
    """The architecture: a name that `python -m embed backbones` lists, or any of open_clip's."""
    pretrained: str | None = None
    """The weights: a tag of open_clip's, a checkpoint file, or delta:TUNED with a folder of `heads unfreeze`."""


@dataclass(frozen=True)
class Identity:
    """What decides whether two vectors are comparable. Equal identities give equal vectors."""

    model: str
    weights: str  # SHA-256 over every tensor's name, type, shape and bytes
    preprocess: Preprocess
    activation: str
    tokenizer: str
    context_length: int
    dim: int
    pipeline: int = PIPELINE_VERSION

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> "Identity":
        values: dict[str, Any] = dict(known_fields(cls, data))
        preprocess = dict(known_fields(Preprocess, values["preprocess"]))
        for name in ("size", "mean", "std"):
            preprocess[name] = tuple(preprocess[name])
        values["preprocess"] = Preprocess(**preprocess)
        return cls(**values)

    def differences(self, other: "Identity") -> list[str]:
        """One line per field that differs, `field: ours / theirs`."""
        mine, theirs = self.to_json(), other.to_json()
        return [f"{name}: {mine[name]} / {theirs[name]}" for name in mine if mine[name] != theirs[name]]


def known_fields(cls: type, data: Data) -> Data:
    """`data` itself, once every key is a field of the dataclass `cls` and none without a default is missing."""
    names = {field.name for field in fields(cls)}
    if unknown := sorted(set(data) - names):
        raise InputError(f"{cls.__name__}: unknown fields {unknown}; known are {sorted(names)}")
    needed = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(needed - set(data)):
        raise InputError(f"{cls.__name__}: fields {missing} are missing")
    return data


def require_same_identity(first: Identity, first_name: str, second: Identity, second_name: str) -> None:
    """Nothing, or IdentityMismatch naming both sides and every field in which they differ."""
    if lines := first.differences(second):
        raise IdentityMismatch(
            f"{first_name} and {second_name} come from different backbones ({first.model} and {second.model}): "
            + "; ".join(lines)
        )
