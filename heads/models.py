"""Heads: small networks that turn frozen embeddings into one score. Know nothing of losses, data or disk.

    cosine  exp(s) cos(A v, B t): starts as zero-shot CLIP, and is a space to search in
    linear  w.v + b, LAION's first aesthetic predictor
    mlp     1024-128-64-16-1, ImageReward's and the improved aesthetic predictor's
    fusion  one hidden layer on [v, t, v*t, |v-t|], or on [v] alone
    kernel  sum_i a_i exp(-|x - z_i|^2) + b on [v, t], the z_i being training items: for hundreds or thousands of rows
    blend   the mean of linear scores and of scores of kernels, on all features: for up to some ten thousand rows

Every head reads some of three inputs, all with one row per scored pair of picture and prompt:
`image_embedding` (n, d) and `text_embedding` (n, d), unit norm, and `image_pooled` (n, p), the unit-norm features of
the image tower before its projection. Heads that read `all` have a fourth, `source_embedding` (n, d): the picture that
the picture was made from, or zeros. `inputs` names the ones it reads, in the order of its ONNX graph.
"""

import math
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embed.spec import InputError, known_fields
from heads.base import INPUTS, READS, SMALLEST_NORM, SOURCE, Head, edit_of, order_one
from heads.config import HeadConfig
from heads.solved import Blend, Convex, Kernel, Linear

# What others find here: all heads and what they share, wherever it stands.
__all__ = ["HEADS", "INPUTS", "READS", "Blend", "Convex", "Cosine", "Dropout", "Fusion", "Head", "Kernel", "Linear"]
__all__ += ["Mlp", "build_head", "config_from_json"]


class Dropout(nn.Module):
    """Dropout with its mask drawn from random bytes: the probability is rounded to 1/256, and a CPU draws eight
    coordinates at a time, which makes training a small head twice as fast as with torch's own."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.dropped = min(round(256 * probability), 255)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.dropped == 0:
            return x
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.dropped
        return x * kept * (256 / (256 - self.dropped))


class Fusion(Head):
    """One hidden layer on [v, t, v*t, |v-t|], and on the pooled features where there are any; of a picture made from
    another, s, also on [s, v*s, |v-s|, (v-s)*t], and on whether there is one.

    The products and differences let a thin network compare the two sides, as InferSent does with sentences (Conneau
    et al. 2017, section 3.3).
    """

    # How large products, differences and pooled features are beside the embeddings: they are many, and weight decay
    # and dropout hold back what is small. Chosen on the emoji example's folds.
    PRODUCT_SCALE, POOLED_SCALE = 0.25, 0.5

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        if config.reads == "text":
            raise InputError("a fusion head reads both sides or the image; choose --head mlp for --reads text")
        self.inputs = READS[config.reads] + (("image_pooled",) if config.pooled_dim else ())
        root, products = config.dim**0.5, self.PRODUCT_SCALE
        of_each = (root,) if config.reads == "image" else (root, root, products * config.dim, products * root)
        scale = [torch.full((config.dim,), one) for one in of_each]
        scale.append(torch.full((config.pooled_dim,), self.POOLED_SCALE * config.pooled_dim**0.5))
        if SOURCE in self.inputs:
            scale += [torch.full((config.dim,), one) for one in (*of_each[1:], root)] + [torch.ones(1)]
        width = sum(len(one) for one in scale)
        self.scale = nn.Buffer(torch.cat(scale), persistent=False)
        self.center = nn.Buffer(torch.zeros(width))
        self.layers = nn.Sequential(
            Dropout(config.input_dropout),
            nn.Linear(width, config.hidden),
            nn.GELU(),
            Dropout(config.dropout),
            nn.Linear(config.hidden, 1),
        )
        # Scores start at zero, so that the first gradients come from the labels and not from chance.
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, **inputs: Tensor) -> Tensor:
        features = self._features(**inputs)
        dropout, first, *_ = self.layers
        if self.training and not cast(Dropout, dropout).dropped:
            # The same without a copy of what is largest: center and scale in the first layer, which takes it in parts.
            weight, bias = cast(nn.Linear, first).parameters()
            hidden = (bias - weight @ self.center).expand(len(features[0]), -1)
            columns = torch.split(weight * self.scale, [part.shape[-1] for part in features], dim=1)
            for part, column in zip(features, columns, strict=True):
                hidden = torch.addmm(hidden, part, column.T)
            return torch.squeeze(self.layers[2:](hidden), -1)
        return torch.squeeze(self.layers(torch.addcmul(-self.center, torch.cat(features, dim=-1), self.scale)), -1)

    def prepare(self, **inputs: Tensor) -> None:
        """Center the features on the mean of the training items."""
        self.center.copy_(torch.cat([part.mean(dim=0) for part in self._features(**inputs)]) * self.scale)

    def _features(
        self,
        image_embedding: Tensor,
        text_embedding: Tensor | None = None,
        image_pooled: Tensor | None = None,
        source_embedding: Tensor | None = None,
    ) -> list[Tensor]:
        pooled = [] if image_pooled is None else [image_pooled]
        if text_embedding is None:
            return [image_embedding, *pooled]
        products, differences = image_embedding * text_embedding, (image_embedding - text_embedding).abs()
        found = [image_embedding, text_embedding, products, differences, *pooled]
        if source_embedding is None:
            return found
        edit, there = edit_of(image_embedding, source_embedding)
        return [*found, source_embedding, image_embedding * source_embedding, edit.abs(), edit * text_embedding, there]


class Cosine(Head):
    """exp(s) cos(A v, B t). A and B start as the identity: untrained, it orders as zero-shot CLIP does.

    `embed_image` and `embed_text` give the unit vectors A v / |A v| and B t / |B t|, whose inner product orders as the
    score does: what losses of embeddings compare, and what an index can hold.
    """

    # CLIP's own scale once trained, where OpenAI clipped it; PickScore goes on from it (Radford et al. 2021, 2.5).
    LOGIT_SCALE = math.log(100)

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        # A = I + image_residual: weight decay then draws towards the backbone's own space, and not towards nothing.
        self.image_residual = nn.Parameter(torch.zeros(config.dim, config.dim))
        self.text_residual = nn.Parameter(torch.zeros(config.dim, config.dim))
        self.logit_scale = nn.Parameter(torch.tensor(self.LOGIT_SCALE))

    @torch.no_grad()
    def rescale(self, gain: float, offset: float) -> None:
        self.logit_scale.add_(math.log(gain))

    def embed_image(self, image_embedding: Tensor) -> Tensor:
        """(n, d) unit vectors of pictures."""
        return F.normalize(_moved(image_embedding, self.image_residual), dim=-1)

    def embed_text(self, text_embedding: Tensor) -> Tensor:
        """(n, d) unit vectors of prompts."""
        return F.normalize(_moved(text_embedding, self.text_residual), dim=-1)

    def forward(  # type: ignore[override]
        self, image_embedding: Tensor, text_embedding: Tensor, text_row: Tensor | None = None
    ) -> Tensor:
        """With `text_row` (n,), picture i belongs to prompt text_row[i]: a prompt of many pictures is moved once."""
        image, text = _moved(image_embedding, self.image_residual), self.embed_text(text_embedding)
        if text_row is not None:
            text = text.index_select(0, text_row)
        # The product's norm and not a unit vector: half the passes over memory, in both directions.
        norm: Tensor = torch.linalg.vector_norm(image, dim=-1)
        return self.logit_scale.exp() * (image * text).sum(dim=-1) / norm.clamp(min=SMALLEST_NORM)


class Mlp(Head):
    """1024-128-64-16-1 on the sides that the configuration names.

    Widths, dropouts and initialisation are ImageReward's (Xu et al. 2023). Without activations, as ImageReward and the
    improved aesthetic predictor have it, the score is affine in its inputs.
    """

    WIDTHS, DROPOUTS = (1024, 128, 64, 16, 1), (0.2, 0.2, 0.1)

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.inputs = READS[config.reads]
        sides = len(self.inputs) + (SOURCE in self.inputs)
        widths = (config.dim * sides + (SOURCE in self.inputs), *self.WIDTHS)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip(widths, self.WIDTHS, strict=False)):
            linear = nn.Linear(before, after)
            nn.init.normal_(linear.weight, std=1 / (before + 1))
            nn.init.zeros_(linear.bias)
            layers.append(linear)
            if config.activations and after > 1:
                layers.append(nn.ReLU())
            if i < len(self.DROPOUTS):
                layers.append(nn.Dropout(self.DROPOUTS[i]))
        self.layers = nn.Sequential(*layers)

    def forward(  # type: ignore[override]
        self,
        image_embedding: Tensor | None = None,
        text_embedding: Tensor | None = None,
        source_embedding: Tensor | None = None,
    ) -> Tensor:
        given = [order_one(side) for side in (image_embedding, text_embedding) if side is not None]
        if image_embedding is not None and source_embedding is not None:
            edit, there = edit_of(image_embedding, source_embedding)
            given += [order_one(source_embedding), order_one(edit), there]
        return torch.squeeze(self.layers(torch.cat(given, dim=-1)), -1)


def _moved(vectors: Tensor, residual: Tensor) -> Tensor:
    """(I + residual) x of each row x."""
    return torch.addmm(vectors, vectors, residual.T)


HEADS: dict[str, type[Head]] = {
    "cosine": Cosine,
    "linear": Linear,
    "mlp": Mlp,
    "fusion": Fusion,
    "kernel": Kernel,
    "blend": Blend,
}


def build_head(config: HeadConfig, seed: int = 0) -> Head:
    """A head with fresh weights that `seed` decides; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HEADS[config.kind](config)


def config_from_json(data: Mapping[str, object]) -> HeadConfig:
    """The configuration that a head's manifest holds; unknown fields are an error."""
    constructor: Callable[..., HeadConfig] = HeadConfig
    return constructor(**known_fields(HeadConfig, data))
