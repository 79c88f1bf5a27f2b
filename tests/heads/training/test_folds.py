"""No picture of what is held out or kept aside comes into training by way of another table."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from heads_labels import comparisons
from heads_tiny import DIM, unit

from embed.spec import InputError
from heads.config import HeadConfig, SplitConfig, TrainConfig
from heads.data.comparisons import Labels, join_labels
from heads.data.features import features_of
from heads.data.split import Split, split_rows
from heads.models import Head, build_head
from heads.training.folds import OtherTable, Task, train_heads, validation_rounds
from heads.training.objectives import examples_for, items_of
from heads.training.train import fit, score_items

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
    rounds = list(validation_rounds(given, held_out, np.random.default_rng(0), 5))
    assert len(rounds) == 5
    kept_aside = []
    for one in rounds:
        aside = set(image[items_of(one.pairs)])
        kept_aside += aside
        assert set(image[items_of(one.aside.examples)]) == aside
        assert [(part.loss, part.weight) for part in one.parts] == [("rating", 1.0), ("rating", 0.5)]
        for part in one.parts:
            assert part.options == given.config
            seen = set(image[items_of(part.examples)])
            assert not seen & aside
            assert not seen & set(image[given.labels.items[held_out, 0]])
            assert len(seen) == len(rows) - len(aside)
    assert sorted(kept_aside) == sorted(image[given.labels.items[rows, 0]])


def test_every_fold_and_the_head_itself_know_what_they_saw(caplog: pytest.LogCaptureFixture) -> None:
    given = task()
    with caplog.at_level("INFO"):
        trained = train_heads(given)
    assert len(trained.fold_heads) == 4
    assert caplog.messages == [f"fold {fold + 1}: 30 rows to train on, 10 held out" for fold in range(4)]
    assert trained.rows.tolist() == list(range(ROWS))
    assert [len(rows) for rows in trained.other_rows] == [ROWS]
    assert trained.chosen["penalty"] == 1e-2


def chosen_by_validation(kind: str, **training: Any) -> tuple[Task, np.ndarray]:
    """100 prompts of three comparisons each, and the rows that may be trained on."""
    rng = np.random.default_rng(3)
    labels = comparisons(rng.choice([0.0, 0.5, 1.0], 300, p=[0.4, 0.2, 0.4]), np.repeat(np.arange(100), 3))
    labels.values["weight"][:] = rng.choice([0.1, 1.0], 300)
    features = features_of(unit(600, 1), unit(100, 2), labels.image, labels.prompt)
    split = split_rows(labels, SplitConfig(held_out_prompts=40))
    one = Task(labels, features, split, HeadConfig(kind, DIM), TrainConfig(**training))
    assert split.validation is not None
    withheld = np.isin(split.group, split.group[[*split.validation, *split.test_rows(0)]])
    return one, np.flatnonzero(~withheld)


def validated(one: Task, head: Head) -> float:
    """The accuracy on the comparisons for validation, by a loop."""
    found = []
    assert one.split.validation is not None
    for row in one.split.validation:
        a, b = score_items(head, one.features, one.labels.items[row])
        target = one.labels.values["target"][row]
        found.append(target if a > b else 1 - target)
    return float(np.mean(found))


def test_the_one_value_that_is_left_of_a_column_is_divided_by_its_pictures() -> None:
    given = task("kernel")
    half = np.arange(ROWS) % 2
    given = replace(given, split=Split(half, half, 2), others=())
    held_out = given.split.test_rows(0)
    rounds = list(validation_rounds(given, held_out, np.random.default_rng(0), 5))
    aside = [item for one in rounds for item in items_of(one.pairs)]
    assert sorted(aside) == np.flatnonzero(half).tolist()
    for one in rounds:
        assert set(items_of(one.parts[0].examples)) == set(aside) - set(items_of(one.pairs))


def test_rows_for_validation_choose_the_epoch_and_the_head_is_the_one_they_chose(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, rows = chosen_by_validation("fusion", epochs=6, patience=6, batch_size=60, learning_rate=1e-2)
    stages: list[str] = []
    with caplog.at_level("INFO"):
        trained = train_heads(replace(one, observe=lambda stage, *_: stages.append(stage)))
    assert set(stages) == {"head-choosing"}, "nothing is trained twice"
    assert trained.rows.tolist() == rows.tolist() and len(rows) == 180
    assert caplog.messages[:1] == ["head: 180 rows to train on, 20 held out and 20 for validation, 80 left out because"
                               " they share a picture or prompt with those"]  # fmt: skip
    # The training on all those rows, stopped at each epoch.
    examples, accuracies = examples_for("preference", one.labels, rows, np.random.default_rng(0)), []
    for epochs in range(1, 7):
        head = build_head(one.head_config, 0)
        fit(head, one.features, examples, None, one.config, epochs=epochs)
        accuracies.append(validated(one, head))
        if epochs == trained.chosen["epochs"]:
            np.testing.assert_array_equal(score_items(head, one.features), score_items(trained.head, one.features))
    assert trained.chosen["epochs"] == np.argmax(accuracies) + 1
    assert [record["validation_accuracy"] for record in trained.histories[0]] == pytest.approx(accuracies)
    assert len(set(accuracies)) > 1


def test_rows_for_validation_choose_the_penalty() -> None:
    one, _ = chosen_by_validation("linear")
    trained = train_heads(one)
    history = trained.histories[0]
    best = min(history, key=lambda record: record["validation_loss"])
    assert trained.chosen["penalty"] == best["penalty"]
    assert validated(one, trained.head) == pytest.approx(best["validation_accuracy"])
    assert len(history) > 1


def test_rows_for_validation_without_a_winner_choose_nothing() -> None:
    one, _ = chosen_by_validation("fusion")
    one.labels.values["target"][one.split.validation] = 0.5
    with pytest.raises(InputError, match="none of the 20 validation comparisons has a winner"):
        train_heads(one)
    nothing_left = Split(np.zeros_like(one.split.fold), one.split.group, 1, one.split.validation)
    one.labels.values["target"][one.split.validation] = 1.0
    for kind in ("fusion", "linear"):
        with pytest.raises(InputError, match="nothing to train on: 0 pairs"):
            train_heads(replace(one, split=nothing_left, head_config=HeadConfig(kind, DIM)))
