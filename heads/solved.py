"""Heads that are linear in their weights and are fitted by a solver: `linear`, `kernel` and `blend`."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from embed.spec import InputError
from heads.base import INPUTS, READS, SOURCE, Head, edit_of, order_one
from heads.config import HeadConfig


class Convex(Head):
    """A head whose score is basis(inputs).w + b, so that its training is a convex problem (`heads.training.convex`).

    The penalty is |w|^2.
    """

    def basis(self, **inputs: Tensor) -> Tensor:
        """(n, k) float32: the features that the score is linear in."""
        raise NotImplementedError

    def set_weights(self, weight: Tensor, bias: Tensor) -> None:
        """Make the score basis(inputs).weight + bias, with `weight` (k,) and `bias` ()."""
        raise NotImplementedError


class Linear(Convex):
    """w.v + b on the image alone, as in LAION's first aesthetic predictor. v is the embedding, together with the pooled
    features if there are any. Scores start at zero."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.inputs = ("image_embedding", "image_pooled") if config.pooled_dim else READS["image"]
        self.layer = nn.Linear(config.dim + config.pooled_dim, 1)
        for parameter in self.layer.parameters():
            nn.init.zeros_(parameter)

    def forward(  # type: ignore[override]
        self, image_embedding: Tensor, image_pooled: Tensor | None = None
    ) -> Tensor:
        pooled = () if image_pooled is None else (image_pooled,)
        return torch.squeeze(self.layer(order_one(torch.cat([image_embedding, *pooled], dim=-1))), -1)

    def basis(self, **inputs: Tensor) -> Tensor:
        return torch.cat([inputs[name] for name in self.inputs], dim=-1)

    @torch.no_grad()
    def set_weights(self, weight: Tensor, bias: Tensor) -> None:
        self.layer.weight.copy_(weight * weight.shape[-1] ** -0.5)
        self.layer.bias.copy_(bias)


class Kernel(Convex):
    """sum_i a_i exp(-|x - z_i|^2) + b. x is image and text, each centered and scaled to a mean square norm of 1/2.

    The width of the Gaussian kernel is that of scikit-learn's gamma="scale". The z_i are training items: all of them,
    or evenly spaced ones (Williams & Seeger 2001). The image is given by its pooled features if there are any, since
    its embedding is a projection of them. With source pictures x also has the source and the difference of picture and
    source. Scores start at zero.
    """

    SMALLEST_EIGENVALUE = 1e-6  # relative to the largest of the landmarks' kernel; smaller ones are noise in float32

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        image = ("image_pooled", config.pooled_dim) if config.pooled_dim else ("image_embedding", config.dim)
        sides = {"image": [image], "text": [("text_embedding", config.dim)]}
        chosen = sides.get(config.reads, sides["text"] + sides["image"])
        self.inputs = tuple(name for name in INPUTS if name in dict(chosen))
        width = sum(dict(chosen).values())
        if config.reads == "all":
            self.inputs = (*(name for name in INPUTS if name in {"image_embedding", *dict(chosen)}), SOURCE)
            width += 2 * config.dim
        self.sides = tuple(name for name in self.inputs if name in dict(chosen))
        self.center = nn.Buffer(torch.zeros(width))
        self.scale = nn.Buffer(torch.ones(width))
        self.landmarks = nn.Buffer(torch.zeros(config.landmarks, width))
        self.weight = nn.Parameter(torch.zeros(config.landmarks))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, **inputs: Tensor) -> Tensor:
        return gaussian(self._standardised(inputs), self.landmarks) @ self.weight + self.bias

    @torch.no_grad()
    def prepare(self, **inputs: Tensor) -> None:
        """Set center, scale and landmarks from the training items."""
        sides = self._sides(inputs)
        center = [side.mean(dim=0) for side in sides]
        spread = [(side - middle).square().sum(dim=1).mean() for side, middle in zip(sides, center, strict=True)]
        self.center.copy_(torch.cat(center))
        scale = [
            (len(sides) * x.clamp(min=torch.finfo(x.dtype).tiny)).rsqrt().expand(side.shape[1])
            for x, side in zip(spread, sides, strict=True)
        ]
        self.scale.copy_(torch.cat(scale))
        x = self._standardised(inputs)
        chosen = torch.linspace(0, len(x) - 1, min(len(self.landmarks), len(x)), device=x.device).round().long()
        self.landmarks.zero_()
        self.landmarks[: len(chosen)] = x[chosen]

    @torch.no_grad()
    def basis(self, **inputs: Tensor) -> Tensor:
        """(n, k) Nystrom features. Their inner products approximate the kernel, and equal it between landmarks."""
        return gaussian(self._standardised(inputs), self.landmarks) @ self._whitening()

    @torch.no_grad()
    def set_weights(self, weight: Tensor, bias: Tensor) -> None:
        self.weight.copy_(self._whitening() @ weight)
        self.bias.copy_(bias)

    @torch.no_grad()
    def rescale(self, gain: float, offset: float) -> None:
        self.weight.mul_(gain)
        self.bias.mul_(gain).add_(offset)

    def _sides(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        sides = [inputs[name] for name in self.sides]
        if SOURCE in self.inputs:
            edit, _ = edit_of(inputs["image_embedding"], inputs[SOURCE])
            sides += [inputs[SOURCE], edit]
        return sides

    def _standardised(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return (torch.cat(self._sides(inputs), dim=-1) - self.center) * self.scale

    def _whitening(self) -> Tensor:
        """(landmarks, k): U S^-1/2 of the landmarks' kernel U S U^T, without its smallest eigenvalues."""
        value, vector = torch.linalg.eigh(gaussian(self.landmarks, self.landmarks).double())
        kept = value > self.SMALLEST_EIGENVALUE * value[-1]
        return torch.mul(vector[:, kept], value[kept].rsqrt()).float()


class Blend(Head):
    """w.x + b + the sum over kernels k of sum_i a_ki exp(-|f_k (x - z_i)|^2): the mean of ridge regressions and of
    Gaussian kernel ridge regressions, as one head. `heads.training.blend` fits it.

    x is all features: the pooled features, the image's embedding, the prompt's, and the product of both embeddings,
    which kernels do not use. Each kind is centered and scaled to a mean square norm of 1, or to 0 if it does not vary.
    The z_i are training items, and f_k has a factor for each kind. Scores start at zero.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        if config.reads == "all":
            raise InputError("the head blend does not read source pictures; choose --head fusion, kernel or mlp")
        widths = {"image_pooled": config.pooled_dim, "image_embedding": config.dim, "text_embedding": config.dim}
        read = {"image": ("image_pooled", "image_embedding"), "text": ("text_embedding",)}.get(config.reads, INPUTS)
        self.kinds = {name: width for name, width in widths.items() if width and name in read}
        self.inputs = tuple(name for name in INPUTS if name in self.kinds)
        compared = sum(self.kinds.values())
        if config.reads == "both":
            self.kinds["product"] = config.dim
        width = sum(self.kinds.values())
        self.center = nn.Buffer(torch.zeros(width))
        self.scale = nn.Buffer(torch.ones(width))
        self.factors = nn.Buffer(torch.ones(len(self.kernels()), compared))
        self.landmarks = nn.Buffer(torch.zeros(config.landmarks, compared))
        self.weight = nn.Parameter(torch.zeros(width))
        self.of_landmarks = nn.Parameter(torch.zeros(len(self.factors), config.landmarks))
        self.bias = nn.Parameter(torch.zeros(()))

    def kernels(self) -> list[tuple[str, ...]]:
        """The kinds of picture features that each kernel, and each linear part, reads in addition to the prompt."""
        of_image = tuple(name for name in self.kinds if name.startswith("image"))
        return list(dict.fromkeys((of_image[:1], of_image)))

    def features(self, **inputs: Tensor) -> Tensor:
        """(n, width) all kinds of features side by side, before they are centered."""
        if "product" in self.kinds:
            inputs["product"] = inputs["image_embedding"] * inputs["text_embedding"]
        return torch.cat([inputs[name] for name in self.kinds], dim=-1)

    def forward(self, **inputs: Tensor) -> Tensor:
        x = (self.features(**inputs) - self.center) * self.scale
        score = x @ self.weight + self.bias
        x = x[:, : self.landmarks.shape[1]]
        for factor, weight in zip(self.factors.unbind(), self.of_landmarks.unbind(), strict=True):
            score = score + gaussian(x * factor, self.landmarks * factor) @ weight
        return score


def gaussian(x: Tensor, z: Tensor) -> Tensor:
    """(n, m): exp(-|x_i - z_j|^2)."""
    squares = x.square().sum(dim=1, keepdim=True) + z.square().sum(dim=1)
    return (2 * x @ z.T - squares).clamp(max=0).exp()
