"""What a head should be better than: the same head without pictures or without prompts, ridge regression, and what is
always liked.

A head that reads prompts alone and does well shows that the table gives its answers away. Scores are (m, sides), as in
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
        source=None,
    )


def without_source(features: Features) -> Features:
    """The features as if no picture had been made from another."""
    return replace(features, source=None)


def trained_scores(
    name: str, labels: Labels, features: Features, split: Split, manifest: HeadManifest, progress: Progress = silent
) -> Floats | None:
    """The scores of a head of the same shape that sees what BLINDED[name] leaves, trained as `manifest` says the head
    was, on the same rows. None where the head reads one side alone anyway."""
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
    """The training that `manifest` records, on the table that was held out from alone."""
    recorded = manifest["training"]
    training = TrainConfig(**{f.name: recorded[f.name] for f in fields(TrainConfig) if f.name in recorded})
    config = config_from_json(manifest["head"])
    return Task(labels, features, split, config, training, recorded.get("min_ratio"), progress=progress)


MAX_VALUES = 50  # of a column that is a prior without being asked for
ROWS_PER_VALUE = 5  # that it has at least, on average
# Types whose values can name something.
NAMING = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_dictionary,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_date,
)
NEXT = {"a": "b", "A": "B", "0": "1", "1": "2"}  # how names of both sides' columns differ
MAX_RIDGE = 10_000
PENALTIES = np.logspace(0, 6, 13)  # of ridge regression on features of variance 1
BATCH = 65536
WITHOUT_SOURCE = "without_source"
BLINDED = {"image_only": image_only, "prompt_only": prompt_only, WITHOUT_SOURCE: without_source}


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


def prior_columns(labels: Labels) -> list[str]:
    """The columns of the table with so few different values that the mean outcome of each might give the answers away,
    as the name of a generator does; for comparisons, the pairs `A,B` of columns whose names say that they belong
    together, such as `model_0,model_1`."""
    names = [f.name for f in labels.columns.schema if any(fits(f.type) for fits in NAMING)]
    names = [name for name in names if "," not in name and name not in ("image", "prompt", "group")]
    if labels.kind == "comparisons":
        sides = [(name, name.replace("pos", "neg")) for name in names if "pos" in name]
        sides += [(name, name[:i] + NEXT[c] + name[i + 1 :]) for name in names for i, c in enumerate(name) if c in NEXT]
        names = [f"{a},{b}" for a, b in sides if b in names]
    few = min(MAX_VALUES, labels.items.size // ROWS_PER_VALUE)
    return [name for name in names if 2 <= len(values_of(labels, name)[1]) <= few]


@stage("measuring what a column alone knows")
def strongest_prior(measured: Measured, columns: Sequence[str]) -> tuple[Floats, list[dict[str, object]]]:
    """The scores of the prior that orders most pairs as people did, and the pair accuracy of each, the highest first.

    It is chosen on the rows held out, which is to its advantage and not to the head's.
    """
    found = {by: prior_scores(measured.labels, measured.split, by) for by in columns}
    accuracy = {by: measured.interval(measured.credit(scores)) for by, scores in found.items()}
    order = sorted(columns, key=lambda by: -accuracy[by].value)
    return found[order[0]], [{"by": by, "pair_accuracy": accuracy[by].to_json()} for by in order]


@stage("fitting the ridge baseline")
def ridge_scores(labels: Labels, features: Features, split: Split) -> Floats:
    """The scores of scikit-learn's RidgeCV, fitted for each fold on the rows that training saw, MAX_RIDGE of them at
    most: from the pooled features of pictures, or the projected ones where there are no pooled, to the outcome; of
    comparisons, from the difference of both pictures to that of their outcomes."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    vectors = features.image_embeddings if features.image_pooled is None else features.image_pooled
    image, outcome = labels.image[labels.items], _outcomes(labels)
    scores, single = np.full(labels.items.shape, np.nan), labels.items.shape[1] == 1
    for fold in range(split.folds):
        held_out = split.withheld_rows(fold)
        known = rows_apart_from(labels, held_out, np.flatnonzero(np.isfinite(outcome).all(axis=1)))
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
    """(m, sides): how well each item did in its row; higher is better."""
    if labels.kind == "comparisons":
        return np.stack([labels.values["target"], 1 - labels.values["target"]], axis=1)
    liked = appeal(labels)
    # Counts of likes span decades: their mean would be that of the few most liked.
    return (np.log1p(liked) if liked is labels.values.get("count") else liked)[:, None]


def _mean(vectors: torch.Tensor) -> torch.Tensor:
    """(1, d): the mean of unit vectors, of unit norm."""
    return torch.nn.functional.normalize(vectors.float().mean(dim=0, keepdim=True), dim=-1)
