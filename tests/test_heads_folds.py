"""No picture of what is held out or kept aside comes into training by way of another table."""

import numpy as np
import pyarrow as pa
from heads_tiny import DIM, unit

from heads.comparisons import Labels, join_labels
from heads.features import features_of
from heads.folds import OtherTable, Task, train_heads, validation_rounds
from heads.models import HeadConfig
from heads.objectives import items_of
from heads.split import SplitConfig, split_rows
from heads.train import TrainConfig

ROWS = 40


def rated(seed: int) -> Labels:
    rows = np.arange(ROWS)
    rating = np.random.default_rng(seed).normal(size=ROWS)
    return Labels("ratings", rows, rows % 4, rows[:, None], {"rating": rating}, pa.table({"x": rows}), 0)


def task(kind: str = "linear") -> Task:
    """Two tables of the same pictures, without prompts that would tie them all together."""
    tables = [rated(seed) for seed in (1, 2)]
    for labels in tables:
        labels.prompt[:] = -1
    labels, other = join_labels(tables)
    features = features_of(unit(ROWS, 1), unit(1, 2), labels.image, labels.prompt)
    split = split_rows(labels, SplitConfig(folds=4))
    config = TrainConfig("rating", penalty=1e-2)
    return Task(labels, features, split, HeadConfig(kind, DIM), config, others=[OtherTable(other, "rating", 0.5)])


def test_rounds_keep_held_out_and_validation_pictures_from_every_part() -> None:
    given = task()
    held_out = given.split.test_rows(1)
    rows = np.flatnonzero(given.split.fold != 1)
    image = given.labels.image
    rounds = list(validation_rounds(given, rows, held_out, np.random.default_rng(0), 5))
    assert len(rounds) == 5
    kept_aside = []
    for parts, validation in rounds:
        aside = set(image[items_of(validation)])
        kept_aside += aside
        assert [(part.loss, part.weight) for part in parts] == [("rating", 1.0), ("rating", 0.5)]
        for part in parts:
            assert part.options == given.config
            seen = set(image[items_of(part.examples)])
            assert not seen & aside
            assert not seen & set(image[given.labels.items[held_out, 0]])
            assert len(seen) == len(rows) - len(aside)
    assert sorted(kept_aside) == sorted(image[given.labels.items[rows, 0]])


def test_every_fold_and_the_head_itself_know_what_they_saw() -> None:
    given = task()
    told: list[str] = []
    trained = train_heads(given.labels, given.features, given.split, given.head_config, given.config,
                          report=told.append, others=given.others)  # fmt: skip
    assert len(trained.fold_heads) == 4
    assert told == [f"fold {fold + 1}: 30 rows to train on, 10 held out" for fold in range(4)]
    assert trained.rows.tolist() == list(range(ROWS))
    assert [len(rows) for rows in trained.other_rows] == [ROWS]
    assert trained.chosen["penalty"] == 1e-2
