"""Names of the parameters that an unfreezing mode makes trainable."""

import open_clip

from embed.modes import WHOLE, Mode
from embed.spec import InputError, Preprocess
from embed.unfreeze.cut import Cut, names_of
from embed.unfreeze.families import HuggingFaceCut, TextTransformerCut, block_counts, cut_pictures, cut_prompts


def moved_names(mode: Mode, model: open_clip.CustomTextCLIP, preprocess: Preprocess) -> list[str]:
    """Return the names, in the whole model, of the parameters that a mode trains.

    Raise InputError if there are none.
    """
    if mode.name == "all":
        return [name for name, _ in model.named_parameters()]
    depths = mode.depths(*block_counts(model, preprocess))
    names = []
    for side, tower, depth in zip(("visual", "text"), (model.visual, model.text), depths, strict=True):
        if depth == WHOLE:
            names += [f"{side}.{name}" for name, _ in tower.named_parameters()]
        elif depth:
            cut = cut_pictures(tower, depth, preprocess) if side == "visual" else cut_prompts(tower, depth)
            if mode.fix_rate is None:
                found = names_of(tower, [*cut.blocks()[-depth:], *cut.on_top()])
            else:
                found = _above_fix_rate(cut)
            names += [f"{side}.{name}" for name in found]
    if not names:
        raise InputError(f"the mode {mode.name} trains nothing; choose another mode")
    return names


def _above_fix_rate(cut: Cut) -> list[str]:
    """Return the parameters that ImageReward trains at a rate.

    In the order of the tower, all parameters up to the first one of the block at the rate, including that one, are
    frozen, and so are projections.
    """
    order = [name for name, _ in cut.tower.named_parameters()]
    first = names_of(cut.tower, [cut.blocks()[-cut.depth]])[0]
    fixed = {*order[: order.index(first) + 1], *names_of(cut.tower, cut.projection())}
    if isinstance(cut, TextTransformerCut | HuggingFaceCut):
        fixed |= {name for name in order if name.startswith(("text_projection", "proj."))}
    return [name for name in order if name not in fixed]
