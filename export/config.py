"""Options of exporting. This module imports nothing heavy so that a command's help is quick."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from embed.config import DecodingPolicy
from embed.options import Internal, Option, Range, comma_separated, require_valid
from embed.spec import InputError
from heads.config import PROMPTS
from runtime.config import Precision


@dataclass(frozen=True, kw_only=True)
class ParityConfig:
    """What a bundle and torch are compared on, and how much they may differ."""

    pictures: Annotated[tuple[Path, ...], Internal()] = ()
    """The real pictures to compare on. Without any, pictures are generated."""
    prompts: Annotated[tuple[str, ...], Internal()] = PROMPTS
    max_flips: Annotated[float, Range(0, below=1)] = 0.005
    """The largest share of decided pairs of pictures whose order may change, at any precision."""

    def __post_init__(self) -> None:
        require_valid(self)
        if not self.prompts:
            raise InputError("prompts is empty; wanted at least one prompt to compare scores under")


@dataclass(frozen=True)
class ExportConfig(ParityConfig):
    """What a bundle contains."""

    precisions: Annotated[tuple[Precision, ...], Option("--precision", parse=comma_separated)] = ("fp32",)
    """The precisions of the bundle's graphs, with commas between them. The runtime uses the first one by default."""

    decoding: DecodingPolicy = "auto"
    """How the runtime decodes large JPEGs. exact decodes them at full size, and scaled at the smallest fraction that
    changes the vectors of the pictures in --images little enough. auto does as the cache that the head was trained
    on."""

    text_search: bool = False
    """Keep the backbone's tower for texts even if no head reads prompts, so that a catalogue can be searched by text.
    The bundle becomes larger; scores are the same."""

    def inputs_of_towers(self, inputs: Sequence[str]) -> tuple[str, ...]:
        """The vectors that the bundle's towers give, if its heads read `inputs`."""
        return tuple(dict.fromkeys([*inputs, *(["text_embedding"] if self.text_search else [])]))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.precisions or len(set(self.precisions)) != len(self.precisions):
            raise InputError(f"precisions is {self.precisions}; wanted one or more, each once")
