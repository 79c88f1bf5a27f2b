"""Unfreeze a backbone: from a cache with labels to a tuned backbone and head, and write both.

OUT/tuned.json, OUT/delta.safetensors    the backbone: `--pretrained delta:OUT` (see embed.backbones.delta)
OUT/head/                                a head on this backbone, like any other head (see heads.store.disk)
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from embed.arrays import Ints
from embed.backbones.backbone import Backbone, matching
from embed.backbones.delta import PREFIX, save_delta, tuned_source
from embed.backbones.load import load_backbone
from embed.cache.store import Cache
from embed.files import replacing
from embed.progress import Progress, silent
from embed.spec import InputError
from heads.config import LOSS_OPTIONS, MAX_INBATCH, HeadConfig, TrainConfig, UnfreezeConfig
from heads.data.comparisons import Labels, Pairs, pairs_among
from heads.data.features import Features
from heads.data.split import Split, rows_apart_from
from heads.models import Head, build_head
from heads.store.disk import save_head
from heads.training.checkpoint import Checkpoints
from heads.training.loop import copy_of
from heads.training.objectives import Examples, examples_for
from heads.training.train import fit
from heads.unfreeze.distributed import find_ranks
from heads.unfreeze.model import Unfrozen, unfrozen
from heads.unfreeze.train import Data, interpolate, train

VALIDATION_SHARE = 0.1  # of the training groups, to choose the epoch and WiSE-FT's weight


@dataclass(frozen=True)
class Tuned:
    """A tuned backbone with its head. `frozen_head` is the head as it was on the frozen backbone."""

    unfrozen: Unfrozen
    rows: Ints  # rows of the labels that it was trained and validated on
    head_config: HeadConfig
    frozen_head: Head
    history: list[dict[str, float]]
    wise: float | None
    wise_accuracy: dict[float, float]
    checkpoints: Checkpoints | None  # to be removed after saving


def same_backbone(cache: Cache, device: str = "cpu") -> Backbone:
    """The backbone that a cache was made with. Raise IdentityMismatch if its source now gives another one."""
    return matching(load_backbone(cache.source, device), cache.identity, f"the cache {cache.path}")


def tune(
    cache: Cache,
    labels: Labels,
    features: Features,
    split: Split,
    config: UnfreezeConfig,
    head: HeadConfig | None = None,
    wise: float | None = 1.0,
    min_ratio: float | None = None,
    live: bool = False,
    device: str = "cpu",
    folder: Path | None = None,
    progress: Progress = silent,
) -> Tuned:
    """Train the blocks of `config.mode` on the rows that share nothing with held-out rows. Some of them are kept aside
    for validation.

    A head on top is first trained on the frozen vectors (`features`), so that the blocks do not follow the gradients of
    a random head (Kumar et al. 2022). With `wise` None validation chooses it. A killed run continues from its
    checkpoint in `folder`.
    """
    others = np.flatnonzero(split.fold != 0)
    rows = rows_apart_from(labels, split.test_rows(0), others, shares_prompts=split.shares_prompts)
    examples, validation = _train_and_validation(labels, split, rows, config, min_ratio)
    backbone = same_backbone(cache)
    on_top = None
    if head is not None:
        on_top = build_head(head, config.seed)
        fit(on_top, features, examples, validation, _head_config(config), progress=progress)
    free = unfrozen(cache, backbone, config, on_top, live, device, find_ranks(device))
    frozen_head = copy.deepcopy(free.head).cpu()
    base = copy_of(free.trained())
    data = Data(labels.image, labels.prompt, examples, validation)
    loop = train(free, data, config, folder, progress=progress)
    measured: dict[float, float] = {}
    if wise != 1.0:
        wise, measured = interpolate(free, data, base, wise)
    free.head.cpu()  # where heads are measured and saved
    head = head or HeadConfig("cosine", cache.identity.dim)
    return Tuned(free, rows, head, frozen_head, loop.history, wise, measured, loop.checkpoints)


def save_tuned(
    path: Path,
    tuned: Tuned,
    cache: Cache,
    config: UnfreezeConfig,
    trained: pa.Array,
    manifest: Mapping[str, object],
    overwrite: bool = False,
) -> None:
    """Write the folder (see embed.files.replacing).

    `manifest` holds the fields of the head's manifest other than head, identity and source.
    """
    base = same_backbone(cache)
    weights = {name: parameter.detach() for name, parameter in tuned.unfrozen.moved.items()}
    about = {
        "mode": config.mode,
        "training": asdict(config),
        "history": [{k: v if np.isfinite(v) else None for k, v in record.items()} for record in tuned.history],
        "wise": tuned.wise,
        "wise_accuracy": {f"{w:g}": accuracy for w, accuracy in tuned.wise_accuracy.items()},
    }
    with replacing(path, "tuned backbone", overwrite) as folder:
        identity = save_delta(folder, weights, base, about)
        source = replace(tuned_source(folder), pretrained=f"{PREFIX}{path}")
        of: dict[str, object] = {
            "head": asdict(tuned.head_config),
            "identity": identity.to_json(),
            "source": asdict(source),
            "decoding": cache.decoding[-1] if cache.scale else None,
        }
        save_head(folder / "head", tuned.unfrozen.head, [], trained, {**of, **manifest})
    if tuned.checkpoints:
        tuned.checkpoints.clear()


def _head_config(config: UnfreezeConfig) -> TrainConfig:
    size = MAX_INBATCH if config.loss == "preference-inbatch" else None
    chosen = {name: getattr(config, name) for name in LOSS_OPTIONS}
    return TrainConfig(loss=config.loss, batch_size=size, seed=config.seed, **chosen)


def _train_and_validation(
    labels: Labels, split: Split, rows: Ints, config: UnfreezeConfig, min_ratio: float | None
) -> tuple[Examples, Pairs]:
    rng = np.random.default_rng(config.seed)
    names = np.unique(split.group[rows])
    if len(names) < 2:
        raise InputError(f"{len(names)} group is left to train on; hold out less, or give another --split-by")
    chosen = rng.choice(names, max(1, round(VALIDATION_SHARE * len(names))), replace=False)
    is_validation = np.isin(split.group[rows], chosen)
    validating, others = rows[is_validation], rows[~is_validation]
    train_rows = rows_apart_from(labels, validating, others, shares_prompts=split.shares_prompts)
    examples = examples_for(config.loss, labels, train_rows, rng, min_ratio)
    return examples, pairs_among(labels, validating, rng, min_ratio)
