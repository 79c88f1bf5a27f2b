"""Heads on a backbone of some thousand parameters, on disk as training leaves them."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from unfreeze_tiny import load

from embed.backbones.backbone import Backbone
from embed.backbones.delta import PREFIX, save_delta
from heads.config import HeadConfig
from heads.models import Head, build_head
from heads.store.disk import save_head

PROMPTS = ["red apple", "a large green pear", "plum"]


def make_head(config: HeadConfig, seed: int = 0) -> Head:
    """A head whose scores differ."""
    head = build_head(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return head.eval()


def write_head(path: Path, backbone: Backbone, config: HeadConfig, seed: int = 0, folds: int = 0) -> Path:
    """The folder of such a head, with a committee of its folds' heads if there are any."""
    of_folds = [make_head(config, seed + 1 + i) for i in range(folds)]
    alignment = {"gains": [1.0] * folds, "offsets": [0.1 * i for i in range(folds)]} if folds else None
    manifest = {
        "head": asdict(config),
        "identity": backbone.identity.to_json(),
        "source": asdict(backbone.source),
        "split": {"folds": folds or None},
        "committee": alignment,
    }
    save_head(path, make_head(config, seed), of_folds, pa.array([], pa.string()), manifest)
    return path


def write_tuned(path: Path, model: Path) -> Path:
    """The folder of a tuned backbone, one of whose blocks has moved, with a head."""
    backbone = load(model)
    name = "visual.transformer.resblocks.3.mlp.c_proj.weight"
    moved = dict(backbone.model.named_parameters())[name].detach() * 1.5
    path.mkdir()
    identity = save_delta(path, {name: moved}, backbone, {})
    config = HeadConfig("cosine", 16)
    manifest = {
        "head": asdict(config),
        "identity": identity.to_json(),
        "source": {"model": backbone.source.model, "pretrained": f"{PREFIX}{path}"},
        "split": {"folds": None},
    }
    save_head(path / "head", make_head(config), [], pa.array([], pa.string()), manifest)
    return path


def pictures(count: int, height: int = 50, width: int = 70) -> list[np.ndarray]:
    """uint8 (h, w, 3): blurred noise, each of its own colour."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        found.append(np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)))
    return found


def as_pixels(pictures: list[np.ndarray]) -> torch.Tensor:
    """(n, 3, h, w) in [0, 1], as a generator gives them."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
