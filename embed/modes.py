"""Which parameters of a backbone are unfrozen, by name. Counted from the top of whatever backbone there is.

    visual_last_layer                                 1 picture block
    visual_upper_layers                               3
    visual_upper_layers_textual_upper_layers          3, and 2 text blocks
    visual_upper_layers_textual_upper_layers_deeper   4, and 3
    visual                                            the whole picture tower
    all                                               everything

These are Social Reward's, and move exactly its parameters: picture blocks with the norm that follows them and without
the projection, text blocks with the final norm and the projection. `blocks=V,T` says how many of each; `fix_rate=F` is
ImageReward's: the share F of both towers' blocks stays frozen.
"""

from dataclasses import dataclass
from typing import Literal

from embed.spec import InputError
from embed.wording import unknown_name

Optimizer = Literal["adam", "adamw"]

WHOLE = -1  # depth of a tower that is unfrozen altogether


@dataclass(frozen=True)
class Mode:
    """`visual` and `text` blocks from the top, 0 for a frozen tower; or, given a `fix_rate`, by share."""

    name: str
    visual: int = 0
    text: int = 0
    fix_rate: float | None = None
    optimizer: Optimizer = "adamw"  # the one its paper uses

    def depths(self, visual_blocks: int, text_blocks: int) -> tuple[int, int]:
        """How deep the two towers of a backbone with so many blocks are unfrozen. Raise InputError beyond their
        bottom."""
        if self.fix_rate is not None:
            depths = tuple(count - int(count * self.fix_rate) for count in (visual_blocks, text_blocks))
            return depths[0], depths[1]
        for side, depth, count in (("picture", self.visual, visual_blocks), ("text", self.text, text_blocks)):
            if depth > count:
                raise InputError(
                    f"the mode {self.name} unfreezes {depth} blocks of the {side} tower, which has"
                    f" {count or 'none that can be cut'}; choose another, or blocks=V,T"
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
    """The mode of that name, or the one that `blocks=V,T` or `fix_rate=F` spells out."""
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
