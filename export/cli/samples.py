"""What `onnx` and `check` share: what is compared with torch, and the table of how it compares."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from embed.cli.console import table
from embed.files import read_lines
from embed.options import Range
from export.card import lowest_cosine, measured_on, scores_of
from export.config import ParityConfig

if TYPE_CHECKING:
    from runtime.scoring.manifest import Parity

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


def parity_table(parity: "Parity", first: str = "") -> list[str]:
    """Lines that say how far a bundle is from torch, for each precision, and for each output where the first has a
    name."""
    rows = [
        [
            precision,
            *([name, f"{scores['score_spread']:.3g}"] if first else []),
            f"{scores['max_score_difference']:.1e}",
            f"{scores['spearman']:.6f}",
            f"{scores['flips']:.3%} of {scores['decided_pairs']}",
            lowest_cosine(figures),
        ]
        for precision, figures in parity["precisions"].items()
        for name, scores in scores_of(figures, first).items()
    ]
    lines = []
    if found := parity.get("decoding"):
        lines.append(
            f"decoded smaller, {found['pictures']} of the pictures have a cosine of at least {found['cosine_min']:.6f}"
            f" to exact ones, and {found['flips']:.3%} of {found['decided_pairs']} pairs are flipped"
        )
    named = ["output", "spread"] if first else []
    header = ["precision", *named, "score off by", "rank correlation", "pairs flipped", "lowest cosine"]
    return [
        f"ONNX against torch on {measured_on(parity)}:",
        *table(header, rows),
        *lines,
    ]
