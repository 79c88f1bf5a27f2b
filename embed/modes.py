"""Modes of unfreezing: which parameters of a backbone are trained. Blocks are counted from the top of the tower.

    visual_last_layer                                 1 picture block
    visual_upper_layers                               3
    visual_upper_layers_textual_upper_layers          3, and 2 text blocks
    visual_upper_layers_textual_upper_layers_deeper   4, and 3
    visual                                            the whole picture tower
    all                                               everything

These names and parameter sets are those of Social Reward: picture blocks with the norm that follows them but without
the projection, and text blocks with the final norm and the projection. `blocks=V,T` gives the number of each.
`fix_rate=F` is from ImageReward: the share F of the blocks of both towers stays frozen.
"""

from dataclasses import dataclass
from typing import Literal

from embed.spec import InputError
from embed.wording import unknown_name

Optimizer = Literal["adam", "adamw"]

WHOLE = -1  # the depth of a tower that is unfrozen completely


@dataclass(frozen=True)
class Mode:
    """The top `visual` and `text` blocks to unfreeze, 0 for a frozen tower, or a `fix_rate` instead."""

    name: str
    visual: int = 0
    text: int = 0
    fix_rate: float | None = None
    optimizer: Optimizer = "adamw"  # the one that the paper uses

    def depths(self, visual_blocks: int, text_blocks: int) -> tuple[int, int]:
        """Return how many blocks of each tower are unfrozen, for a backbone with so many blocks.

        Raise InputError if a tower has fewer blocks.
        """
        if self.fix_rate is not None:
            depths = tuple(count - int(count * self.fix_rate) for count in (visual_blocks, text_blocks))
            return depths[0], depths[1]
        for side, depth, count in (("picture", self.visual, visual_blocks), ("text", self.text, text_blocks)):
            if depth > count:
                raise InputError(
                    f"the mode {self.name} unfreezes {depth} blocks of the {side} tower, which has"
                    f" {count or 'none that can be cut'}; choose another mode, or blocks=V,T"
                )
        return self.visual, self.text


_UPPER = "visual_upper_layers_textual_upper_layers"
MODES = {
    mode.name: mode
    for mode in (
        Mode("visual_last_layer", 1, optimizer="adam"),
        Mode("visual_upper_layers", 3, optimizer="adam"),
        Mode(_UPPER, 3, 2),
        Mode(f"{_UPPER}_deeper", 4, 3),
        Mode("visual", WHOLE, optimizer="adam"),
        Mode("all", WHOLE, WHOLE, optimizer="adam"),
    )
}


def parse_mode(text: str) -> Mode:
    """Return the mode of that name, or the one that `blocks=V,T` or `fix_rate=F` describes. Raise InputError else."""
    kind, _, value = text.partition("=")
    try:
        if kind == "blocks":
            visual, prompts = (int(part) for part in value.split(","))
            if min(visual, prompts) < 0 or visual + prompts == 0:
                raise ValueError
            return Mode(text, visual, prompts)
        if kind == "fix_rate":
            if not 0 <= (rate := float(value)) < 1:
                raise ValueError
            return Mode(text, fix_rate=rate, optimizer="adam")
    except ValueError:
        raise InputError(f"mode {text!r}; wanted blocks=3,2 or fix_rate=0.7, from 0 to below 1") from None
    if text not in MODES:
        raise unknown_name("mode", text, [*MODES, "blocks=V,T", "fix_rate=F"])
    return MODES[text]
