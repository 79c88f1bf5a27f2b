"""Terms that all packages share: how a picture is prepared, and what makes two vectors comparable.

This module imports only the standard library. It reads no file, loads no model and uses no arrays.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, TypeVar, get_args

Side = Literal["images", "prompts"]  # the two sides of a cache, and the two inputs of a backbone
Feature = Literal["projected", "pooled"]  # features of a picture tower: in the space shared with text, or before it
Precision = Literal["fp32", "bf16", "fp16", "int8", "fp16-cuda"]  # graphs of the last one run only on CUDA
BoundaryDtype = Literal["float16", "bfloat16", "int8", "float32"]  # the type of activations in a cache
# `shortest_floor` crops as Hugging Face does: if an odd number of pixels is cut, more are cut on the right and below.
# open_clip's `shortest` rounds half to even instead.
ResizeMode = Literal["shortest", "longest", "squash", "shortest_floor"]
Interpolation = Literal["bicubic", "bilinear"]

# Raised whenever the same picture or prompt, with the same weights, would become another vector.
PIPELINE_VERSION = 1
# The name of the backbone that the extra of this name installs; `embed.backbones.starter` builds it.
STARTER = "starter"
# The weights of a source whose vectors were made by another tool, so that it cannot make more.
ADOPTED = "adopted:"
# The value of fields that a declared identity leaves open.
UNKNOWN = "unknown"

RESIZE_MODES = get_args(ResizeMode)
INTERPOLATIONS = get_args(Interpolation)
SIDES: tuple[Side, ...] = get_args(Side)

Data = TypeVar("Data", bound=Mapping[str, object])


class InputError(ValueError):
    """Input that cannot be used. The message says what was got, what was wanted, and what to do.

    The command line prints it as one line and exits with 2; every other exception is a bug in plaudit.
    """


class IdentityMismatch(InputError):
    """Raised when two artifacts come from different backbones, so that their vectors cannot be compared."""


@dataclass(frozen=True)
class Preprocess:
    """How a decoded picture becomes uint8 pixels (h, w, 3), and how the backbone then normalises them."""

    size: tuple[int, int]  # height, width in pixels
    resize_mode: ResizeMode
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fill_color: int = 0  # the colour of the border that `longest` adds
    ignore_exif: bool = False  # True, as in open_clip, leaves a picture sideways if it is stored sideways

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
    """How to load a backbone again. It is not part of the identity: a path may change, and only the weights count."""

    model: str
    """The architecture: a name that `plaudit embed backbones` lists, any name of open_clip, or st:FOLDER of
    sentence-transformers."""
    pretrained: str | None = None
    """The weights: a tag of open_clip, a checkpoint file, or delta:TUNED with a folder of `heads unfreeze`."""

    @property
    def is_adopted(self) -> bool:
        """Whether the vectors were made by another tool (see embed.jobs.adopt), so that no backbone can be loaded."""
        return self.pretrained == ADOPTED


@dataclass(frozen=True)
class Identity:
    """What decides whether two vectors can be compared. Equal identities give equal vectors.

    For vectors that another tool made, it is what their owner declares (`declared`). Then `weights` is any text that
    names the weights, `preparation` may be None, the next three fields may be unknown, and `pipeline` is 0, because it
    is not ours. An unknown value equals only another unknown value.
    """

    model: str
    weights: str  # SHA-256 over every tensor's name, type, shape and bytes
    preparation: Preprocess | None  # called `preprocess` in JSON
    activation: str
    tokenizer: str
    context_length: int
    dim: int
    pipeline: int = PIPELINE_VERSION

    @property
    def preprocess(self) -> Preprocess:
        """How pictures are prepared. Raise InputError if that is not known."""
        if self.preparation is None:
            raise InputError(f"it was not declared how {self.model} prepares pictures, so none can be embedded")
        return self.preparation

    def to_json(self) -> dict[str, object]:
        return {"preprocess" if name == "preparation" else name: value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> "Identity":
        values: dict[str, Any] = {"preparation" if name == "preprocess" else name: data[name] for name in data}
        known_fields(cls, values)
        if values["preparation"] is not None:
            preprocess = dict(known_fields(Preprocess, values["preparation"]))
            for name in ("size", "mean", "std"):
                preprocess[name] = tuple(preprocess[name])
            values["preparation"] = Preprocess(**preprocess)
        return cls(**values)

    @classmethod
    def declared(cls, data: Mapping[str, object]) -> "Identity":
        """Make an identity from what the owner of vectors declares: `model`, `weights`, `dim`, and any other fields.

        Raise InputError if one of these three is missing or not valid.
        """
        unknown = {"preprocess": None, "activation": UNKNOWN, "tokenizer": UNKNOWN, "context_length": 0, "pipeline": 0}
        known = {*unknown, "model", "weights", "dim"}
        if wrong := sorted(set(data) - known) or sorted(known - unknown.keys() - set(data)):
            state = "are unknown" if set(wrong) <= set(data) else "are missing"
            raise InputError(
                f"the identity's fields {wrong} {state}; wanted model, weights and dim, and maybe {list(unknown)}"
            )
        values = {**unknown, **data}
        if values["preprocess"] == UNKNOWN:
            values["preprocess"] = None
        try:
            if not isinstance(values["preprocess"], Mapping | None):
                raise TypeError(f"preprocess is {values['preprocess']!r}")
            identity = cls.from_json(values)
        except (TypeError, AttributeError) as error:
            raise InputError(f"the identity has a field of the wrong kind ({error})") from None
        for name in ("model", "weights"):
            if not isinstance(value := getattr(identity, name), str) or value.strip().lower() in ("", UNKNOWN):
                raise InputError(f"the identity's {name} is {value!r}; wanted a text that is unique for this model")
        if type(identity.dim) is not int or identity.dim < 1:
            raise InputError(f"the identity's dim is {identity.dim!r}; wanted the number of values in a vector")
        return identity

    def differences(self, other: "Identity") -> list[str]:
        """Return a line for each field that differs, `field: ours / theirs`."""
        mine, theirs = self.to_json(), other.to_json()
        return [f"{name}: {mine[name]} / {theirs[name]}" for name in mine if mine[name] != theirs[name]]


def known_fields(cls: type, data: Data) -> Data:
    """Return `data`. Raise InputError if a key is not a field of the dataclass `cls`, or if a required one is
    missing."""
    names = {field.name for field in fields(cls)}
    if unknown := sorted(set(data) - names):
        raise InputError(f"{cls.__name__}: unknown fields {unknown}; known are {sorted(names)}")
    needed = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(needed - set(data)):
        raise InputError(f"{cls.__name__}: fields {missing} are missing")
    return data


def require_same_identity(first: Identity, first_name: str, second: Identity, second_name: str) -> None:
    """Raise IdentityMismatch that names both sides and every field in which they differ, unless they are equal."""
    if lines := first.differences(second):
        raise IdentityMismatch(
            f"{first_name} and {second_name} come from different backbones ({first.model} and {second.model}): "
            + "; ".join(lines)
        )
