"""What `onnx` and `check` share: what is compared with torch."""

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
    """The pictures and prompts to compare on."""

    images: Path | None = None
    """A folder of pictures to compare on. By default pictures are generated."""
    prompts: Path | None = None
    """A file of prompts to compare under, one a line. By default plaudit has some."""
    samples: Annotated[int, Range(1)] = 200
    """The number of pictures to take from the folder."""

    def fill(self, config: partial[Config]) -> Config:
        """The config with these pictures and prompts in it."""
        from embed.inputs.fetch import some_pictures

        given: dict[str, Any] = {}
        if self.images is not None:
            given["pictures"] = tuple(some_pictures(self.images, self.samples))
        if self.prompts is not None:
            given["prompts"] = tuple(read_lines(self.prompts, "prompt"))
        return config(**given)
