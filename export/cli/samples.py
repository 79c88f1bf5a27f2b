"""The options that `onnx` and `check` share: the pictures and prompts for the comparison with torch."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from embed.files import read_lines
from embed.options import Range
from export.config import ParityConfig

Config = TypeVar("Config", bound=ParityConfig)


@dataclass(frozen=True)
class Samples:
    """The pictures and prompts that bundle and torch are compared on."""

    images: Path | None = None
    """The folder of pictures to compare on. By default pictures are generated."""
    prompts: Path | None = None
    """A file of prompts to compare on, one a line. By default plaudit's own prompts are used."""
    samples: Annotated[int, Range(1)] = 200
    """How many pictures of the folder are used."""

    def fill(self, config: partial[Config]) -> Config:
        """Return the config with these pictures and prompts."""
        from embed.inputs.fetch import some_pictures

        given: dict[str, Any] = {}
        if self.images is not None:
            given["pictures"] = tuple(some_pictures(self.images, self.samples))
        if self.prompts is not None:
            given["prompts"] = tuple(read_lines(self.prompts, "prompt"))
        return config(**given)
