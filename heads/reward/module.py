"""A head and its backbone as a reward: it takes a generator's pictures and prompts, and gives scores with a gradient.

    reward = Reward.load("head", device="cuda", dtype=torch.bfloat16)
    loss = -reward(pipeline_output, prompts).mean()        # pixels (n, 3, h, w) in [0, 1]
    loss.backward()

Scores are close to those of cache and service, whose preprocessing is done here in tensors (`heads.reward.certificate`
measures how close). A reward itself is never trained.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from embed.backbones.backbone import Backbone, matching
from embed.backbones.delta import tuned_source
from embed.backbones.load import load_backbone
from embed.spec import Identity, InputError, Source, known_fields
from heads.base import INPUTS, Head
from heads.committee import Committee
from heads.config import picture_inputs
from heads.reward.encoder import Encoder
from heads.store.disk import load_committee, load_head, load_manifest
from heads.store.project import PROJECTED

Prompts = str | Sequence[str] | None  # one for all pictures, one for each, or None if the head reads no text
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Scores(NamedTuple):
    """The scores of n pictures: tensors (n,), with a gradient if the pixels have one."""

    total: Tensor
    parts: dict[str, Tensor]  # each reward's own score
    uncertainty: dict[str, Tensor]  # its standard error, if the head has a committee


class Frozen(nn.Module):
    """A module that stays in eval mode even if a trainer calls train(): dropout and batch statistics would change the
    reward."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device


class Reward(Frozen):
    """A head on its backbone. All weights are frozen."""

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        committee: Committee | None = None,
        dtype: torch.dtype = torch.float32,
        checkpointing: bool = False,
        rounding: bool = True,
        name: str = "reward",
    ) -> None:
        """`dtype` is that of the picture tower. The head is in float32, or in float64 if the tower is.

        Raise InputError if the head reads no picture, or an input that pixels and prompts do not give.
        """
        super().__init__()
        require_pictures(head, name)
        self.name = name
        self.encoder = Encoder(backbone, picture_inputs(head.inputs), dtype, checkpointing, rounding)
        self.head, self.committee = head, committee
        precise = torch.promote_types(dtype, torch.float32)
        for part in (head, committee):
            if part is not None:
                part.to(self.encoder.device, precise).requires_grad_(False)
        self.eval()

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "auto",
        dtype: torch.dtype = torch.float32,
        checkpointing: bool = False,
    ) -> "Reward":
        """The reward of a folder made by `heads train` or `heads unfreeze`."""
        require_pictures(load_head(head_folder(path))[0], str(path))  # before the backbone is loaded
        return cls.on(load_backbone(source_of(path), device), path, dtype, checkpointing)

    @classmethod
    def on(
        cls, backbone: Backbone, path: str | Path, dtype: torch.dtype = torch.float32, checkpointing: bool = False
    ) -> "Reward":
        """The reward of such a folder on a backbone that is already loaded. Raise IdentityMismatch if it is another
        one."""
        folder = head_folder(path)
        (head, manifest), committee = load_head(folder), load_committee(folder)
        backbone = matching(backbone, Identity.from_json(manifest["identity"]), f"the head {path}")
        return cls(backbone, head, committee, dtype, checkpointing, name=Path(path).resolve().name)

    def forward(self, pixels: Tensor, prompts: Prompts = None) -> Tensor:
        """(n,) scores, with a gradient, of pictures (n, 3, h, w) in [0, 1] of any size."""
        return self.scores(pixels, prompts, uncertain=False).total

    def scores(self, pixels: Tensor, prompts: Prompts = None, uncertain: bool = True) -> Scores:
        """The scores, and unless `uncertain` is False their uncertainties."""
        with torch.autocast(pixels.device.type, enabled=False):  # a trainer's autocast would round
            return self.read(vectors_of(self.encoder, pixels, prompts, [self]), uncertain)

    def read(self, vectors: Mapping[str, Tensor], uncertain: bool) -> Scores:
        """The scores of vectors that an encoder gave."""
        given = {name: vectors[name] for name in self.head.inputs}
        score = self.head(**given)
        sure = {self.name: self.committee(**given)} if uncertain and self.committee is not None else {}
        return Scores(score, {self.name: score}, sure)


def vectors_of(encoder: Encoder, pixels: Tensor, prompts: Prompts, rewards: Sequence[Reward]) -> dict[str, Tensor]:
    """The vectors that these rewards read, from one pass of the encoder. Raise InputError for a wrong number of
    prompts."""
    found = encoder.images(pixels)
    if any("text_embedding" in reward.head.inputs for reward in rewards):
        if prompts is None:
            raise InputError("this head scores pictures under prompts; give one for all, or one for each")
        texts = [prompts] * len(pixels) if isinstance(prompts, str) else list(prompts)
        if len(texts) != len(pixels):
            raise InputError(
                f"got {len(texts)} prompts for {len(pixels)} pictures; wanted one for all, or one for each"
            )
        found["text_embedding"] = encoder.prompts(texts)
    precise = torch.promote_types(encoder.dtype, torch.float32)
    return {name: vectors.to(pixels.device, precise) for name, vectors in found.items()}


def require_pictures(head: Head, name: str) -> None:
    """Raise InputError if a head reads no picture, or something that pixels and prompts do not give."""
    if unknown := sorted(set(head.inputs) - set(INPUTS)):
        raise InputError(
            f"the head {name} reads {', '.join(unknown)}, which pictures and prompts do not give; for a reward train"
            " a head that reads only these"
        )
    if not set(head.inputs) - {"text_embedding"}:
        raise InputError(
            f"the head {name} reads only prompts, so its score does not depend on pixels; train it with"
            " --reads both or --reads image"
        )


def head_folder(path: str | Path) -> Path:
    """The folder of the head: the folder itself, or its `head` if it is a tuned backbone."""
    path = Path(path)
    return path / "head" if (path / "tuned.json").exists() else path


def source_of(path: str | Path) -> Source:
    """The source from which the backbone of a head or a tuned backbone is loaded. Raise InputError for a head in the
    space of another head."""
    manifest = load_manifest(head_folder(path))
    if str(manifest["identity"]["model"]).endswith(PROJECTED):
        raise InputError(
            f"the head {path} was trained in the space of another head, which a reward cannot compute; train it on"
            " the backbone's own cache"
        )
    if head_folder(path) != Path(path):
        return tuned_source(Path(path))  # the folder may have moved since
    return Source(**known_fields(Source, manifest["source"]))
