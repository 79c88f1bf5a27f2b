"""A CLIP of four picture blocks and three text blocks, with pictures, prompts and labels, all in memory."""

import copy
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

from embed.backbones.backbone import Backbone
from embed.backbones.load import load_backbone
from embed.modes import WHOLE, Mode
from embed.spec import Source
from embed.unfreeze.families import block_counts, cut_pictures, cut_prompts
from embed.unfreeze.top_blocks import InMemory, Side
from embed.unfreeze.trainable import moved_names
from heads.data.comparisons import Pairs
from heads.models import Head
from heads.training.objectives import Examples, Groups, Ratings
from heads.unfreeze.model import Unfrozen, plain_head
from heads.unfreeze.train import Data

PICTURES, PROMPTS, PAIRS = 24, 10, 60
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 4, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 16, "width": 32, "heads": 2, "layers": 3},
}


def make_folder(folder: Path, seed: int = 0) -> Path:
    """The model as open_clip publishes one, in its own layout."""
    torch.manual_seed(seed)
    state = open_clip.CLIP(**CONFIG).state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "open_clip_model.safetensors")
    content = {"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder


def load(folder: Path) -> Backbone:
    """The backbone in that folder, whose model is the caller's to change."""
    file = folder / "open_clip_model.safetensors"
    loaded = _load(folder, file.stat().st_mtime_ns)
    return replace(loaded, model=copy.deepcopy(loaded.model))


@cache
def _load(folder: Path, mtime_ns: int) -> Backbone:
    # Most of loading is the tokenizer.
    return load_backbone(Source(f"local-dir:{folder}"))


def pixels() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (PICTURES, 32, 32, 3), dtype=np.uint8))


def tokens(backbone: Backbone) -> torch.Tensor:
    words = ["red", "green", "blue", "apple", "pear", "plum", "small", "large", "round"]
    rng = np.random.default_rng(1)
    return torch.from_numpy(backbone.tokenize([" ".join(rng.choice(words, 1 + i % 5)) for i in range(PROMPTS)]))


def items() -> tuple[np.ndarray, np.ndarray]:
    """Picture and prompt of each item: every picture under every prompt."""
    return np.tile(np.arange(PICTURES), PROMPTS), np.repeat(np.arange(PROMPTS), PICTURES)


def examples(loss: str, seed: int = 2) -> Examples:
    """Pairs, groups or ratings, whatever the loss wants; the pictures of a pair share their prompt."""
    rng = np.random.default_rng(seed)
    if loss in ("ranking", "listwise"):
        start = np.concatenate([[0], np.cumsum(rng.integers(2, 5, 20))])
        prompt = np.repeat(rng.integers(PROMPTS, size=20), np.diff(start))
        picture = rng.integers(PICTURES, size=len(prompt))
        return Groups(start, prompt * PICTURES + picture, rng.integers(1, 4, len(prompt)).astype(np.float32))
    if loss == "rating":
        return Ratings(rng.permutation(PICTURES * PROMPTS)[:PAIRS], rng.normal(size=PAIRS).astype(np.float32))
    prompt = rng.integers(PROMPTS, size=PAIRS)
    a, b = np.stack([rng.permutation(PICTURES)[:2] for _ in range(PAIRS)], axis=1)
    target = rng.choice([1.0, 0.5, 0.8], PAIRS).astype(np.float32)
    rows = np.arange(PAIRS)
    weight = rng.uniform(0.2, 1, PAIRS).astype(np.float32)
    return Pairs(prompt * PICTURES + a, prompt * PICTURES + b, target, weight, rows, rows)


def data(loss: str, validation: bool = False) -> Data:
    held_out = examples("triplet", seed=3)
    assert isinstance(held_out, Pairs)
    return Data(*items(), examples(loss), held_out if validation else None)


def from_memory(
    backbone: Backbone, mode: Mode, head: Head | None = None, live: bool = False, **options: object
) -> Unfrozen:
    """The mode on activations computed once in fp32, or `live` on pixels and tokens."""
    model, preprocess = backbone.model, backbone.identity.preprocess
    inputs = {"images": pixels(), "prompts": tokens(backbone)}
    sides = {}
    for side, depth in zip(inputs, mode.depths(*block_counts(model, preprocess)), strict=True):
        tower = model.visual if side == "images" else model.text
        if depth == 0:
            with torch.no_grad():
                cut = cut_pictures(tower, WHOLE, preprocess) if side == "images" else cut_prompts(tower, WHOLE)
                vectors = torch.nn.functional.normalize(cut.above(inputs[side])[1])
            sides[side] = Side(InMemory(vectors))
            continue
        cut = cut_pictures(tower, depth, preprocess) if side == "images" else cut_prompts(tower, depth)
        if live or depth == WHOLE:
            sides[side] = Side(InMemory(inputs[side]), cut, live=depth != WHOLE)
        else:
            with torch.no_grad():
                sides[side] = Side(InMemory(*cut.below(inputs[side])), cut)
    names = moved_names(mode, model, preprocess)
    head = head or plain_head(backbone, "logit_scale" in names)
    return Unfrozen(model, head, names, sides, **options)  # type: ignore[arg-type]
