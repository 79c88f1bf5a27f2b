"""Baselines that a head should beat: the same head without pictures or without prompts, ridge regression, and the prior
of a column.

If a head that reads only prompts does well, the table gives its answers away. Scores are (m, sides), as in
`heads.evaluation.evaluate`.
"""

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import torch

from embed.arrays import Floats
from embed.progress import Progress, silent, stage
from heads.base import SOURCE
from heads.config import TrainConfig
from heads.data.comparisons import Labels, appeal, values_of
from heads.data.features import Features
from heads.data.split import Split, rows_apart_from
from heads.evaluation.evaluate import head_scores
from heads.evaluation.measured import Measured
from heads.models import build_head, config_from_json
from heads.store.disk import HeadManifest
from heads.training.folds import Task, train_heads


def image_only(features: Features) -> Features:
    """The features with every prompt replaced by the mean of all, so that a head can only use pictures."""
    return replace(features, text_embeddings=_mean(features.text_embeddings), prompt=torch.zeros_like(features.prompt))


def prompt_only(features: Features) -> Features:
    """The features with every picture replaced by the mean of all, so that a head can only use prompts."""
    pooled = None if features.image_pooled is None else _mean(features.image_pooled)
    return replace(
        features,
        image_embeddings=_mean(features.image_embeddings),
        image_pooled=pooled,
        image=torch.zeros_like(features.image),
        source=None,
    )


def without_source(features: Features) -> Features:
    """The features without source pictures."""
    return replace(features, source=None)


def trained_scores(
    name: str, labels: Labels, features: Features, split: Split, manifest: HeadManifest, progress: Progress = silent
) -> Floats | None:
    """The scores (m, sides) of a head of the same shape, trained as `manifest` says on the same rows, that sees only
    the features that BLINDED[name] leaves. None if the head does not read what BLINDED[name] removes, or reads nothing
    else."""
    inputs = set(build_head(config_from_json(manifest["head"])).inputs)
    if name == WITHOUT_SOURCE and SOURCE not in inputs:
        return None
    if "text_embedding" not in inputs or inputs == {"text_embedding"}:
        return None
    blinded = BLINDED[name](features)
    task = task_of(manifest, labels, blinded, split, progress)
    return head_scores(train_heads(task).scorers, labels, blinded, split.with_validation())


def task_of(
    manifest: HeadManifest, labels: Labels, features: Features, split: Split, progress: Progress = silent
) -> Task:
    """The training that `manifest` records, on only the table that has held-out rows."""
    recorded = manifest["training"]
    training = TrainConfig(**{f.name: recorded[f.name] for f in fields(TrainConfig) if f.name in recorded})
    config, training = config_from_json(manifest["head"]), replace(training, bf16=False)  # this is on the CPU
    return Task(labels, features, split, config, training, recorded.get("min_ratio"), progress=progress)


MAX_VALUES = 50  # most different values of a column that is tried as a prior without --prior-by
ROWS_PER_VALUE = 5  # least mean number of rows for each value of such a column
# Types of columns whose values can be names.
NAMING = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_dictionary,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_date,
)
NEXT = {"a": "b", "A": "B", "0": "1", "1": "2"}  # how the names of the two sides' columns differ
MAX_RIDGE = 10_000
PENALTIES = np.logspace(0, 6, 13)  # of ridge regression on features of variance 1
BATCH = 65536
WITHOUT_SOURCE = "without_source"
BLINDED = {"image_only": image_only, "prompt_only": prompt_only, WITHOUT_SOURCE: without_source}


def prior_scores(labels: Labels, split: Split, by: str) -> Floats:
    """(m, sides) the mean outcome of the training rows with the same value in the column `by`, for each held-out item.

    An outcome is a comparison's target, minus a rank, a rating, log(1 + count), or count / exposures. Comparisons have
    a column for each side, `A,B`. A value that is not among the training rows gets the mean of all.
    """
    (value, _), outcome = values_of(labels, by), _outcomes(labels)
    scores = np.full(labels.items.shape, np.nan)
    for fold in range(split.folds):
        held_out = split.withheld_rows(fold)
        train = rows_apart_from(labels, held_out, shares_prompts=split.shares_prompts)
        number = np.bincount(value[train].ravel(), minlength=value.max() + 1)
        total = np.bincount(value[train].ravel(), outcome[train].ravel(), minlength=value.max() + 1)
        means = np.full(len(total), outcome[train].mean() if len(train) else 0.0)
        np.divide(total, number, out=means, where=number > 0)
        scores[held_out] = means[value[held_out]]
    return scores


def prior_columns(labels: Labels) -> list[str]:
    """The columns that are tried as a prior: those with so few different values that the mean outcome of each might
    give the answers away, such as the name of a generator. For comparisons they are pairs `A,B` of columns with
    matching names, such as `model_0,model_1`."""
    names = [f.name for f in labels.columns.schema if any(fits(f.type) for fits in NAMING)]
    names = [name for name in names if "," not in name and name not in ("image", "prompt", "group")]
    if labels.kind == "comparisons":
        sides = [(name, name.replace("pos", "neg")) for name in names if "pos" in name]
        sides += [(name, name[:i] + NEXT[c] + name[i + 1 :]) for name in names for i, c in enumerate(name) if c in NEXT]
        names = [f"{a},{b}" for a, b in sides if b in names]
    few = min(MAX_VALUES, labels.items.size // ROWS_PER_VALUE)
    names = [name for name in names if 2 <= len(values_of(labels, name)[1]) <= few]
    return [name for name in names if _differs_within_groups(labels, name)]


def _differs_within_groups(labels: Labels, name: str) -> bool:
    """Return whether a column can order pairs, which are of one group. The `id` of ImageReward's groups cannot."""
    if (group := labels.values.get("group")) is None:
        return True
    both = np.stack([group, values_of(labels, name)[0][:, 0]])
    return bool(np.unique(both, axis=1).shape[1] > len(np.unique(group)))


@stage("measuring what a column alone knows")
def strongest_prior(measured: Measured, columns: Sequence[str]) -> tuple[Floats, list[dict[str, object]]]:
    """The scores of the prior that orders most pairs as people did, and the pair accuracies of all priors, the highest
    first.

    The prior is chosen on the held-out rows, which favours it over the head.
    """
    found = {by: prior_scores(measured.labels, measured.split, by) for by in columns}
    accuracy = {by: measured.interval(measured.credit(scores)) for by, scores in found.items()}
    order = sorted(columns, key=lambda by: -accuracy[by].value)
    return found[order[0]], [{"by": by, "pair_accuracy": accuracy[by].to_json()} for by in order]


@stage("fitting the ridge baseline")
def ridge_scores(labels: Labels, features: Features, split: Split) -> Floats:
    """(m, sides) the scores of ridge regression (scikit-learn's RidgeCV), fitted for each fold on at most MAX_RIDGE of
    the training rows. It predicts the outcome from the pooled features of pictures, or from the projected ones if there
    are no pooled features. For comparisons it predicts the difference of the outcomes from the difference of the two
    pictures."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    vectors = features.image_embeddings if features.image_pooled is None else features.image_pooled
    image, outcome = labels.image[labels.items], _outcomes(labels)
    scores, single = np.full(labels.items.shape, np.nan), labels.items.shape[1] == 1
    for fold in range(split.folds):
        held_out = split.withheld_rows(fold)
        finite = np.flatnonzero(np.isfinite(outcome).all(axis=1))
        known = rows_apart_from(labels, held_out, finite, shares_prompts=split.shares_prompts)
        train = np.random.default_rng(fold).permutation(known)[:MAX_RIDGE]
        if len(train) < 2:
            scores[held_out] = 0.0
            continue
        sides = [vectors[torch.from_numpy(side)].float().numpy() for side in image[train].T]
        x, y = (sides[0], outcome[train, 0]) if single else (sides[0] - sides[1], outcome[train] @ [1, -1])
        model = make_pipeline(StandardScaler(with_mean=single), RidgeCV(PENALTIES, fit_intercept=single)).fit(x, y)
        parts = torch.split(vectors, BATCH)
        scores[held_out] = np.concatenate([model.predict(part.float().numpy()) for part in parts])[image[held_out]]
    return scores


def _outcomes(labels: Labels) -> Floats:
    """(m, sides) the outcome of each item in its row; higher is better."""
    if labels.kind == "comparisons":
        return np.stack([labels.values["target"], 1 - labels.values["target"]], axis=1)
    liked = appeal(labels)
    # Counts of likes span decades, so that a few most liked pictures would dominate their mean.
    return (np.log1p(liked) if liked is labels.values.get("count") else liked)[:, None]


def _mean(vectors: torch.Tensor) -> torch.Tensor:
    """(1, d) the mean of unit vectors, scaled to unit norm."""
    return torch.nn.functional.normalize(vectors.float().mean(dim=0, keepdim=True), dim=-1)
