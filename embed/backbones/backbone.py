"""Backbones: any open_clip model as two towers that turn uint8 pixels and int32 tokens into unit vectors.

Every model is held as open_clip's `CustomTextCLIP` (or `CoCa`), whatever the layout of its checkpoint: the picture
tower is `model.visual`, the text tower `model.text`. This module does not deal with picture files, caches or ONNX.
`embed.backbones.checkpoints` finds out what a checkpoint contains and needs; `embed.backbones.load` loads a backbone.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeAlias, get_args

import numpy as np
import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, basic_clean, canonicalize_text
from open_clip.transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from embed.arrays import Int32s
from embed.spec import Feature, Identity, InputError, Preprocess, Source, require_same_identity

FEATURES: tuple[Feature, ...] = get_args(Feature)
Tokenizer: TypeAlias = SimpleTokenizer | HFTokenizer


@dataclass(frozen=True)
class Backbone:
    """A frozen model together with everything that determines its vectors."""

    identity: Identity
    source: Source
    model: open_clip.CustomTextCLIP  # or CoCa, which has the same towers; eval mode, no gradients
    tokenizer: Tokenizer

    def tokenize(self, prompts: Sequence[str]) -> Int32s:
        """Return token ids, int32 (n, context_length). A prompt that is too long is cut in the way open_clip does."""
        if not len(prompts):
            return np.empty((0, self.identity.context_length), dtype=np.int32)
        tokens: torch.Tensor = self.tokenizer(list(prompts))
        return tokens.numpy().astype(np.int32)

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """Return how many prompts are longer than the context length and lose tokens."""
        return sum(n > self.identity.context_length for n in token_counts(self.tokenizer, prompts))

    def image_tower(self, features: Sequence[Feature] = ("projected",)) -> nn.Module:
        """Return a module from uint8 (n, h, w, 3) to float32 (n, d) unit vectors, or a tuple for several features.

        "projected" features lie in the space shared with the text; "pooled" features are those before the projection.
        The tower shares the model's weights, so copy it before you cast it to another precision.
        """
        return ImageTower(self.model.visual, self.identity.preprocess, features).eval()

    def text_tower(self) -> nn.Module:
        """Return a module from int32 (n, context_length) to float32 (n, d) unit vectors. It shares the weights."""
        return TextTower(self.model.text).eval()


def matching(backbone: Backbone, identity: Identity, name: str) -> Backbone:
    """Return `backbone` with its pictures turned upright, or not, as when `name`, which has `identity`, was made.

    Raise IdentityMismatch if the backbone differs in anything else.
    """
    preprocess = replace(backbone.identity.preprocess, ignore_exif=identity.preprocess.ignore_exif)
    found = replace(backbone.identity, preparation=preprocess)
    require_same_identity(identity, name, found, "the backbone of its source")
    return replace(backbone, identity=found)


class ImageTower(nn.Module):
    """Normalise pixels, run open_clip's picture tower, and divide each vector by its length."""

    def __init__(self, visual: nn.Module, preprocess: Preprocess, features: Sequence[Feature]) -> None:
        super().__init__()
        if not features or not set(features) <= set(FEATURES):
            raise InputError(f"features {list(features)}; wanted one or both of {list(FEATURES)}")
        if "pooled" in features and not _has_projection(visual):
            raise InputError(
                f"this picture tower ({type(visual).__name__}) has no projection after its pooling, so there are no"
                " 'pooled' features: use --features projected"
            )
        self.visual = visual
        self.preprocess = preprocess
        self.features = tuple(features)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        x = normalize_pixels(pixels, self.preprocess)
        x = x.to(next(self.visual.parameters()).dtype)
        if self.features == ("projected",):
            return unit(self.visual(x))
        pooled, projected = pooled_and_projected(self.visual, x)
        by_name = {"pooled": unit(pooled), "projected": unit(projected)}
        outputs = tuple(by_name[name] for name in self.features)
        return outputs if len(outputs) > 1 else outputs[0]


def normalize_pixels(pixels: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """Return float32 (n, 3, h, w) for a picture tower from pixels (n, h, w, 3): uint8, or floats from 0 to 255."""
    # These are made here and are not buffers of a module: casting the tower to half precision must not round them.
    mean = torch.tensor(preprocess.mean, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(preprocess.std, device=pixels.device).view(3, 1, 1)
    pixels = pixels.permute(0, 3, 1, 2)
    return ((pixels if pixels.is_floating_point() else pixels.float()) / 255 - mean) / std


class TextTower(nn.Module):
    """Run open_clip's text tower and divide each vector by its length."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return unit(self.text(tokens))


def unit(x: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Scale each row to length 1. The result is float32, or float64 for float64 input.

    CoCa's towers return a tuple of vectors and tokens; only the vectors are used.
    """
    x = x[0] if isinstance(x, tuple) else x
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)


def _has_projection(visual: nn.Module) -> bool:
    """Whether pooling and projection are separate steps. They are not in CLIP's ResNets and in SigLIP."""
    if isinstance(visual, TimmModel):
        return len(visual.head) > 0 and not hasattr(visual.head, "pool")
    return isinstance(visual, VisionTransformer) and visual.proj is not None


def pooled_and_projected(visual: TimmModel | VisionTransformer, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `visual(x)` computes before and after the projection; neither is scaled to unit length."""
    if isinstance(visual, TimmModel):
        pooled = visual.trunk(x)
        return pooled, visual.head(pooled)
    pooled, _ = visual._pool(visual.transformer(visual._embeds(x)))
    return pooled, pooled @ visual.proj


def weights_hash(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of a list, sorted by name, of each tensor's name, dtype, shape and SHA-256 of its bytes.

    Each tensor is hashed by itself so that all cores take part.
    """

    def line(name: str) -> bytes:
        tensor = state_dict[name].detach().cpu()
        data = tensor.reshape(-1).view(torch.uint8).numpy().data
        return f"{name} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(data).hexdigest()}\n".encode()

    with ThreadPoolExecutor() as pool:
        return hashlib.sha256(b"".join(pool.map(line, sorted(state_dict)))).hexdigest()


# Enough to tell apart what CLIP models use. They are compared by value, so a module of any library will do.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "hard_swish": F.hardswish,
    "hard_sigmoid": F.hardsigmoid,
}
ACTIVATION_WORDS = ("elu", "swish", "silu", "sigmoid", "activation")


def activation(model: open_clip.CustomTextCLIP) -> str:
    """Return the nonlinearities of both towers, such as "gelu" or "image relu6, text gelu".

    They are found by running the modules, because a configuration may be wrong.
    """
    image, text = ("+".join(sorted(_activations(tower))) for tower in (model.visual, model.text))
    return image if image == text else f"image {image}, text {text}"


def _activations(tower: nn.Module) -> set[str]:
    x = torch.linspace(-8, 8, 101)
    names = set()
    for module in tower.modules():
        kind = type(module).__name__
        if [*module.children(), *module.parameters()]:
            continue
        if any(word in kind.lower() for word in ACTIVATION_WORDS):
            y = module(x.clone())  # a copy, because some modules change their input
            same = [name for name, function in ACTIVATIONS.items() if torch.allclose(y, function(x), atol=1e-6)]
            names.add(same[0] if same else kind)
    return names


PROBES = (
    "a photo of a cat",
    "A Photo, of A CAT!",
    "  two   spaces\tand a tab\n",
    "naïve café, Ωmega, 北京, 😀",
    "don't &amp; <b>bold</b> 3.14 can't",
    "",
    "word " * 200,
)


def tokenizer_name(tokenizer: Tokenizer) -> str:
    """Return the tokenizer's class and a hash of its vocabulary and of its output for a few awkward prompts."""
    content = [sorted(vocabulary(tokenizer).items()), tokenizer(list(PROBES)).tolist()]
    return f"{type(tokenizer).__name__} {hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]}"


def vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    simple = isinstance(tokenizer, SimpleTokenizer)
    words: dict[str, int] = tokenizer.encoder if simple else tokenizer.tokenizer.get_vocab()
    return words


def token_counts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[int]:
    """Return how many tokens each prompt has before it is cut to the context length, special tokens included."""
    if isinstance(tokenizer, SimpleTokenizer):
        return [len(tokenizer.encode(prompt)) + 2 for prompt in prompts]
    if not len(prompts):
        return []
    clean = getattr(tokenizer, "clean_fn", lambda prompt: canonicalize_text(basic_clean(prompt)))
    # In the mode `clips` the tokenizer itself puts three special tokens around the text.
    clips = getattr(tokenizer, "tokenizer_mode", "") == "clips"
    encoded = tokenizer.tokenizer(
        [clean(prompt) for prompt in prompts], add_special_tokens=not clips, truncation=False, verbose=False
    )
    return [len(ids) + 3 * clips for ids in encoded["input_ids"]]
