"""What a head should be better than: the same head without pictures or without prompts, and what is always liked.

A head that reads prompts alone and does well shows that the table gives its answers away. Scores are (m, sides), as in
`heads.evaluation.evaluate`.
"""

from dataclasses import fields, replace

import numpy as np
import torch

from embed.arrays import Floats
from embed.progress import Progress, silent
from heads.config import TrainConfig
from heads.data.comparisons import Labels, appeal, values_of
from heads.data.features import Features
from heads.data.split import Split, rows_apart_from
from heads.evaluation.evaluate import head_scores
from heads.models import build_head, config_from_json
from heads.store.disk import HeadManifest
from heads.training.folds import Task, train_heads


def image_only(features: Features) -> Features:
    """The features with one prompt for every item, the mean of all: a head then reads pictures alone."""
    return replace(features, text_embeddings=_mean(features.text_embeddings), prompt=torch.zeros_like(features.prompt))


def prompt_only(features: Features) -> Features:
    """The features with one picture for every item, the mean of all: a head then reads prompts alone."""
    pooled = None if features.image_pooled is None else _mean(features.image_pooled)
    return replace(
        features,
        image_embeddings=_mean(features.image_embeddings),
        image_pooled=pooled,
        image=torch.zeros_like(features.image),
    )


def trained_scores(
    name: str, labels: Labels, features: Features, split: Split, manifest: HeadManifest, progress: Progress = silent
) -> Floats | None:
    """The scores of a head of the same shape that sees what BLINDED[name] leaves, trained as `manifest` says the head
    was, on the same rows. None where the head reads one side alone anyway."""
    config = config_from_json(manifest["head"])
    inputs = set(build_head(config).inputs)
    if "text_embedding" not in inputs or inputs == {"text_embedding"}:
        return None
    recorded = manifest["training"]
    training = TrainConfig(**{f.name: recorded[f.name] for f in fields(TrainConfig) if f.name in recorded})
    blinded = BLINDED[name](features)
    task = Task(labels, blinded, split, config, training, recorded.get("min_ratio"), progress=progress)
    return head_scores(train_heads(task).scorers, labels, blinded, split.with_validation())


BLINDED = {"image_only": image_only, "prompt_only": prompt_only}


def prior_scores(labels: Labels, split: Split, by: str) -> Floats:
    """The mean outcome, in the rows that training saw, of what shares an item's value in the column `by`.

    An outcome is a comparison's target, minus a rank, a rating, log(1 + count), or count / exposures. Comparisons have
    a column for each side, `A,B`. A value that training never saw gets the mean of all.
    """
    (value, _), outcome = values_of(labels, by), _outcomes(labels)
    scores = np.full(labels.items.shape, np.nan)
    for fold in range(split.folds):
        held_out = split.withheld_rows(fold)
        train = rows_apart_from(labels, held_out)
        number = np.bincount(value[train].ravel(), minlength=value.max() + 1)
        total = np.bincount(value[train].ravel(), outcome[train].ravel(), minlength=value.max() + 1)
        means = np.full(len(total), outcome[train].mean() if len(train) else 0.0)
        np.divide(total, number, out=means, where=number > 0)
        scores[held_out] = means[value[held_out]]
    return scores


def _outcomes(labels: Labels) -> Floats:
    """(m, sides): how well each item did in its row; higher is better."""
    if labels.kind == "comparisons":
        return np.stack([labels.values["target"], 1 - labels.values["target"]], axis=1)
    liked = appeal(labels)
    # Counts of likes span decades: their mean would be that of the few most liked.
    return (np.log1p(liked) if liked is labels.values.get("count") else liked)[:, None]


def _mean(vectors: torch.Tensor) -> torch.Tensor:
    """(1, d): the mean of unit vectors, of unit norm."""
    return torch.nn.functional.normalize(vectors.float().mean(dim=0, keepdim=True), dim=-1)
