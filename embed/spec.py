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
# `shortest_floor` crops as Hugging Face does: of an odd rest the greater part is on the right and below, where
# open_clip's `shortest` rounds half to even.
ResizeMode = Literal["shortest", "longest", "squash", "shortest_floor"]
Interpolation = Literal["bicubic", "bilinear"]

# Raised whenever the same picture or prompt, under the same weights, would become another vector.
PIPELINE_VERSION = 1
# The backbone that installs with the extra of this name; `embed.backbones.starter` makes it.
STARTER = "starter"
# Stands for the weights of a source whose vectors were made elsewhere: it makes no more of them.
ADOPTED = "adopted:"
# What an identity that was declared says of what nobody declared.
UNKNOWN = "unknown"

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
    """The architecture: a name that `python -m embed backbones` lists, any of open_clip's, or st:FOLDER of
    sentence-transformers."""
    pretrained: str | None = None
    """The weights: a tag of open_clip's, a checkpoint file, or delta:TUNED with a folder of `heads unfreeze`."""

    @property
    def is_adopted(self) -> bool:
        """Whether the vectors were made elsewhere (see embed.jobs.adopt), so that there is no backbone to load."""
        return self.pretrained == ADOPTED


@dataclass(frozen=True)
class Identity:
    """What decides whether two vectors are comparable. Equal identities give equal vectors.

    Of vectors that were made elsewhere it is what their owner declares (`declared`): then the weights are whatever
    names them, `preparation` may be None, the next three fields unknown, and `pipeline` is 0, none of ours. What is
    unknown equals nothing but what is unknown too.
    """

    model: str
    weights: str  # SHA-256 over every tensor's name, type, shape and bytes
    preparation: Preprocess | None  # `preprocess` in JSON
    activation: str
    tokenizer: str
    context_length: int
    dim: int
    pipeline: int = PIPELINE_VERSION

    @property
    def preprocess(self) -> Preprocess:
        """How pictures are prepared; raise InputError if that is not known."""
        if self.preparation is None:
            raise InputError(f"nobody declared how {self.model} prepares pictures, so that none can be embedded")
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
        """What the owner of vectors says of them: `model`, `weights` and `dim`, and what else of the fields he knows.

        Raise InputError if one of the three is not there, or is no name or no number.
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
                raise InputError(f"the identity's {name} is {value!r}; wanted a text that tells it from every other")
        if type(identity.dim) is not int or identity.dim < 1:
            raise InputError(f"the identity's dim is {identity.dim!r}; wanted how many numbers a vector has")
        return identity

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
