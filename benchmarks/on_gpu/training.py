"""Measure training: an epoch of a head on pairs with vectors in memory, and an epoch of a backbone's top blocks."""

import copy
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from on_gpu.common import Context, elapsed_s

if TYPE_CHECKING:
    from embed.backbones.backbone import Backbone
    from embed.cache.store import Cache
    from heads.data.comparisons import Pairs
    from heads.data.features import Features

MODE = "visual_upper_layers"  # three blocks of the picture tower


def measure(context: Context) -> dict[str, object]:
    """Return seconds an epoch."""
    head = measure_head(context)
    context.show(["an epoch of a head", "seconds"], [(name, f"{value:.3f}") for name, value in head.items()])
    blocks = measure_blocks(context)
    context.show(["an epoch of the top blocks", "seconds"], [(name, f"{value:.3f}") for name, value in blocks.items()])
    bars = {f"head {name}": value for name, value in head.items()} | {
        f"blocks {name}": value for name, value in blocks.items()
    }
    return {"head_epoch_s": head, "blocks": blocks, "bars": {"unit": "seconds", "values": bars}}


def measure_head(context: Context) -> dict[str, float]:
    """Return seconds of an epoch by device, for the fusion head with the library's own batches."""
    from heads.config import HeadConfig, TrainConfig
    from heads.models import build_head
    from heads.training.train import fit

    dim = 512
    features, pairs = labelled(context.sized(100_000, 400), dim, context.sized(1_000_000, 2_000))
    found = {}
    for device in dict.fromkeys(("cpu", context.device)):
        ends: list[float] = []
        head = build_head(HeadConfig("fusion", dim), 0).to(device)
        with waits(context) as waited:
            fit(
                head, features.to(device), pairs, None, TrainConfig(), epochs=3,
                observe=lambda *_, ends=ends: ends.append(time.perf_counter()),
            )  # fmt: skip
        found[device] = statistics.median(np.diff(ends).tolist())  # without the first epoch, which warms up
        context.say(f"an epoch of {len(pairs):,} pairs on {device}: {found[device]:.3f} s; the host waited for the")
        context.say(f"device {len(waited)} times in three epochs and their preparation")
    return found


@contextmanager
def waits(context: Context) -> "Iterator[list[warnings.WarningMessage]]":
    """Collect torch's warnings about calls in the block that waited for the device."""
    import torch

    with warnings.catch_warnings(record=True) as waited:
        warnings.simplefilter("always")
        if context.device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waited
        finally:
            if context.device == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def labelled(pictures: int, dim: int, count: int) -> "tuple[Features, Pairs]":
    """Return random vectors of pictures, twenty for each prompt, and pairs whose winner a hidden direction decides."""
    from heads.data.comparisons import Pairs
    from heads.data.features import features_of

    rng = np.random.default_rng(0)
    each = 20

    def unit(rows: int) -> np.ndarray:
        x = rng.standard_normal((rows, dim), np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return x.astype(np.float16)

    images, prompts = unit(pictures), unit(pictures // each)
    features = features_of(images, prompts, np.arange(pictures), np.arange(pictures) // each)
    prompt, first = rng.integers(0, pictures // each, count), rng.integers(0, each, count)
    a, b = prompt * each + first, prompt * each + (first + rng.integers(1, each, count)) % each
    liked = images.astype(np.float32) @ rng.standard_normal(dim).astype(np.float32)
    target = (rng.random(count) < 1 / (1 + np.exp(2 * (liked[b] - liked[a])))).astype(np.float32)
    return features, Pairs(a, b, target, np.ones(count, np.float32), np.arange(count), np.arange(count))


def measure_blocks(context: Context) -> dict[str, float]:
    """Return seconds of an epoch of ViT-L/14's top blocks, from cached activations and live, and of making these."""
    from embed.backbones.load import load_backbone
    from heads.config import UnfreezeConfig

    pairs, batch = context.sized((512, 32), (8, 4))
    backbone = load_backbone(context.source("ViT-L-14"))
    cache, once_s = make_cache(context, backbone, context.folder / "boundary", pairs)
    config = UnfreezeConfig(MODE, batch_size=batch, epochs=1, bf16=context.device != "cpu")
    found = {"making activations": once_s}
    for kind in ("boundary", "live"):
        found[kind] = blocks_epoch_s(context, cache, backbone, config, pairs, live=kind == "live")
        context.say(f"an epoch of {pairs} pairs, {kind}: {found[kind]:.3f} s")
        context.release()
    return {**found, "live / boundary": found["live"] / found["boundary"]}


def blocks_epoch_s(
    context: Context, cache: "Cache", backbone: "Backbone", config: object, count: int, live: bool
) -> float:
    """Return the seconds of an epoch, of which the first step is not timed."""
    from heads.config import UnfreezeConfig
    from heads.data.comparisons import Pairs
    from heads.unfreeze.model import unfrozen
    from heads.unfreeze.train import Data, new_loop

    assert isinstance(config, UnfreezeConfig)
    rows, ones = np.arange(count), np.ones(count, np.float32)
    data = Data(np.arange(2 * count), np.repeat(rows, 2), Pairs(2 * rows, 2 * rows + 1, ones, ones, rows, rows))
    moving = replace(backbone, model=copy.deepcopy(backbone.model))  # a copy, because its frozen part is released
    loop = new_loop(unfrozen(cache, moving, config, live=live, device=context.device), data, config)
    loop.take_step()
    steps = [elapsed_s(loop.take_step) for _ in range(loop.epoch_steps - 1)]  # each step waits for its loss
    return loop.epoch_steps * statistics.mean(steps)


def make_cache(context: Context, backbone: "Backbone", path: Path, pairs: int) -> "tuple[Cache, float]":
    """Return a cache of random pixels with the activations of MODE, and the seconds that making these took."""
    import pyarrow as pa
    import torch

    from embed.cache.boundary import PartWriter
    from embed.cache.store import METADATA, CacheWriter
    from embed.config import BoundaryConfig
    from embed.files import content_id
    from embed.modes import WHOLE, parse_mode
    from embed.unfreeze.fill import plan_boundary

    size, dim, count = backbone.identity.preprocess.size, backbone.identity.dim, 2 * pairs
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (count, *size, 3), np.uint8))
    vectors = rng.standard_normal((pairs, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with CacheWriter(path, backbone.identity, backbone.source) as writer:
        names, prompts = [f"{i}.png" for i in range(count)], [f"prompt {i}" for i in range(pairs)]
        ids = [[content_id(name.encode()) for name in each] for each in (names, prompts)]
        table = pa.table([names, ids[0], [size[1]] * count, [size[0]] * count], METADATA["images"].names)
        writer.append("images", table, img_emb=np.full((count, dim), dim**-0.5, np.float16))
        table = pa.table([prompts, ids[1]], METADATA["prompts"].names)
        writer.append("prompts", table, text_emb=vectors.astype(np.float16))
        writer.commit()
        live = PartWriter(writer, "images", WHOLE, "uint8")
        live.add(np.arange(count), pixels, None)
        live.commit()
        (todo,) = plan_boundary(writer, backbone, BoundaryConfig(parse_mode(MODE)))
        parts, cut = PartWriter(writer, todo.side, todo.cut.depth, todo.dtype), todo.cut.to(context.device).eval()
        start = time.perf_counter()
        with torch.inference_mode():
            for rows in np.array_split(np.arange(count), max(1, count // 64)):
                values, lengths = cut.below(pixels[rows[0] : rows[-1] + 1].to(context.device))
                parts.add(rows, values.cpu(), lengths)
        parts.commit()
        return writer.cache(), time.perf_counter() - start
