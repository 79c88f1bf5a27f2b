"""A backbone for a generator's pictures. Vectors of pictures have a gradient; vectors of prompts are remembered."""

import copy
from collections.abc import Sequence

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from embed.backbones.backbone import Backbone, ImageTower
from embed.spec import Feature, InputError
from heads.reward.preprocess import preprocess

PROMPT_BATCH = 64
REMEMBERED_PROMPTS = 1 << 15
OUTSIDE = 0.25  # decoders overshoot [0, 1] by less; pixels further out must have another range


class Encoder(nn.Module):
    """The frozen towers of a backbone. `features` maps the inputs of a head to the features computed from pictures."""

    def __init__(
        self,
        backbone: Backbone,
        features: dict[str, Feature],
        dtype: torch.dtype = torch.float32,
        checkpointing: bool = False,
        rounding: bool = True,
    ) -> None:
        """`dtype` is that of the picture tower. With `checkpointing` its blocks are computed twice, which takes less
        memory. Raise InputError if it has no blocks."""
        super().__init__()
        self.identity, self.dtype, self.rounding = backbone.identity, dtype, rounding
        self.features = features
        visual = backbone.model.visual
        if checkpointing and isinstance(visual, ModifiedResNet):  # open_clip would ignore it silently
            raise InputError(f"{self.identity.model} has no blocks to compute twice; leave checkpointing out")
        if dtype != torch.float32 or checkpointing:
            visual = copy.deepcopy(visual).to(dtype)  # others may use the backbone, which must not change
            visual.set_grad_checkpointing(checkpointing)
        self.image = ImageTower(visual, self.identity.preprocess, tuple(features.values()))
        self.text = backbone.text_tower()
        self.tokenize = backbone.tokenize
        self.requires_grad_(False).eval()
        self.remembered: dict[str, Tensor] = {}
        self._seen = False

    def reading(self, features: dict[str, Feature]) -> "Encoder":
        """An encoder for other features that shares the towers and remembered prompts of this one."""
        other: Encoder = copy.copy(self)
        tower = ImageTower(self.image.visual, self.identity.preprocess, tuple(features.values()))
        other._modules = {**self._modules, "image": tower.eval()}
        other.features = features
        return other

    @property
    def device(self) -> torch.device:
        return next(self.text.parameters()).device

    def images(self, pixels: Tensor) -> dict[str, Tensor]:
        """Unit vectors (n, d) of pictures (n, 3, h, w) in [0, 1], by feature. Raise InputError for other tensors."""
        self._require_pictures(pixels)
        levels = preprocess(pixels, self.identity.preprocess, self.rounding)
        return self.of_levels(levels.to(torch.promote_types(self.dtype, torch.float32)).permute(0, 2, 3, 1))

    def of_levels(self, levels: Tensor) -> dict[str, Tensor]:
        """Unit vectors (n, d) of preprocessed pictures, uint8 or whole levels (n, h, w, 3), by feature."""
        found = self.image(levels)
        return dict(zip(self.features, found if isinstance(found, tuple) else (found,), strict=True))

    @torch.no_grad()
    def prompts(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors (n, d) of prompts. Each prompt is encoded only once."""
        if len(self.remembered) + len(prompts) > REMEMBERED_PROMPTS:
            self.remembered.clear()
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.remembered]
        for start in range(0, len(new), PROMPT_BATCH):
            batch = new[start : start + PROMPT_BATCH]
            vectors = self.text(torch.from_numpy(self.tokenize(batch)).to(self.device))
            self.remembered.update(zip(batch, vectors, strict=True))
        return torch.stack([self.remembered[prompt].to(self.device) for prompt in prompts])

    def _require_pictures(self, pixels: Tensor) -> None:
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            raise InputError(
                f"got pictures of shape {tuple(pixels.shape)} and {pixels.dtype}; wanted floats (n, 3, h, w) in [0, 1]"
            )
        if self._seen or not pixels.numel():
            return
        low, high = (float(end) for end in pixels.detach().aminmax())
        if low < -OUTSIDE or high > 1 + OUTSIDE:
            raise InputError(
                f"got pictures from {low:.3g} to {high:.3g}; wanted [0, 1]; if a pipeline decodes to [-1, 1],"
                " give pixels / 2 + 0.5"
            )
        self._seen = True  # checked only once, because each check waits for the device
