"""Options of generating pictures. Imports nothing heavy, so that a command's help is quick."""

from dataclasses import dataclass
from typing import Annotated, Literal

from embed.options import Range, require_valid
from embed.spec import InputError

MAX_SEEDS = 1 << 16
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class GenerateConfig:
    """How pictures are generated."""

    sampling_steps: Annotated[int, Range(1)] = 30
    """The number of denoising steps for a picture."""
    guidance: Annotated[float | None, Range(1)] = None
    """The strength of classifier-free guidance; 1 turns it off. By default 5, or what suits the kind of pipeline."""
    size: Annotated[int | None, Range(8)] = None
    """The width and height of the pictures in pixels. By default the pipeline's own."""
    batch_size: Annotated[int, Range(1)] = 4
    """The number of pictures to make at once. It is lowered if they do not fit into memory."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """The precision of the pipeline."""

    def __post_init__(self) -> None:
        require_valid(self)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds written as `0..15` (both ends included), as `1,5,9`, or mixed. Raise InputError for other text.

    >>> parse_seeds("0..2,7")
    (0, 1, 2, 7)
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        low, dots, high = part.strip().partition("..")
        ends = (low, high if dots else low)
        if not all(end.isdecimal() and int(end) <= MAX_SEED for end in ends) or int(ends[0]) > int(ends[1]):
            raise InputError(f"--seeds {text!r}: {part.strip()!r} is neither a seed nor a range such as 0..15")
        if int(ends[1]) - int(ends[0]) >= MAX_SEEDS:
            raise InputError(f"--seeds {text!r} are too many; wanted at most {MAX_SEEDS}")
        found |= dict.fromkeys(range(int(ends[0]), int(ends[1]) + 1))
    return tuple(found)
