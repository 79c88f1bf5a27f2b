"""A backbone whose vectors lie in a cosine head's own space (see heads.store.project). It exports like any other."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from embed.backbones.backbone import Backbone
from embed.spec import Feature
from heads.config import HeadConfig
from heads.models import Cosine, Head, build_head
from heads.store.project import projected_identity


@dataclass(frozen=True)
class ProjectedBackbone(Backbone):
    """A backbone that is followed by the head's matrices."""

    head: Cosine

    def image_tower(self, features: Sequence[Feature] = ("projected",)) -> nn.Module:
        return _Images(super().image_tower(features), self.head).eval()

    def text_tower(self) -> nn.Module:
        return _Prompts(super().text_tower(), self.head).eval()


class _Images(nn.Module):
    def __init__(self, tower: nn.Module, head: Cosine) -> None:
        super().__init__()
        self.tower, self.head = tower, head

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head.embed_image(self.tower(pixels))


class _Prompts(nn.Module):
    def __init__(self, tower: nn.Module, head: Cosine) -> None:
        super().__init__()
        self.tower, self.head = tower, head

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head.embed_text(self.tower(tokens))


def into_space(backbone: Backbone, head: Cosine) -> tuple[ProjectedBackbone, Head]:
    """Return the backbone in the head's space, and the head that gives there the same scores as `head` did before."""
    moved = ProjectedBackbone(
        projected_identity(backbone.identity, head), backbone.source, backbone.model, backbone.tokenizer, head
    )
    plain = build_head(HeadConfig("cosine", backbone.identity.dim)).eval()
    assert isinstance(plain, Cosine)
    plain.logit_scale.data.copy_(head.logit_scale.data)
    return moved, plain
