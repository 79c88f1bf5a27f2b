"""Heads trained in steps learn from some hundred examples, whatever the scale of what they learn."""

import numpy as np
import pytest
from heads_planted import accuracy, made

from heads.config import HeadConfig, SplitConfig, TrainConfig
from heads.data.split import split_rows
from heads.training.folds import Task, train_heads
from heads.training.train import score_items


@pytest.mark.parametrize(("kind", "loss"), [("comparisons", "preference"), ("ratings", "rating")])
@pytest.mark.parametrize("head", ["linear", "mlp", "fusion", "kernel", "blend"])
def test_three_hundred_rows_of_a_linear_truth_are_learned(kind: str, loss: str, head: str) -> None:
    labels, features = made(kind, True, 600, shift=4)
    assert accuracy(labels, features, head, loss) > (0.85 if head == "kernel" else 0.9)


def test_what_is_left_to_the_table_gives_it_some_hundred_steps() -> None:
    for examples in (40, 300, 5000, 200_000):
        sized = TrainConfig().sized(examples)
        assert sized.batch_size and sized.epochs and sized.patience
        steps = sized.epochs * -(-examples // sized.batch_size)
        assert steps == pytest.approx(600 if examples < 1600 else 300, rel=0.05)
        assert sized.batch_size >= 32
    large = TrainConfig().sized(1_000_000)
    assert (large.batch_size, large.epochs, large.patience) == (16384, 6, 3)
    given = TrainConfig(batch_size=7, epochs=2, patience=1)
    assert given.sized(300) == given


def test_ratings_come_back_on_their_scale() -> None:
    labels, features = made("ratings", True, 600, shift=4)
    split = split_rows(labels, SplitConfig())
    trained = train_heads(Task(labels, features, split, HeadConfig("fusion", features.dim), TrainConfig("rating")))
    scores = score_items(trained.head, features)
    assert scores.mean() == pytest.approx(4, abs=0.1)
    assert np.corrcoef(scores, labels.values["rating"])[0, 1] > 0.9


def test_a_training_that_moved_nothing_says_so(caplog: pytest.LogCaptureFixture) -> None:
    labels, features = made("ratings", True, 120)
    split = split_rows(labels, SplitConfig())
    for rate, said in ((1e-9, True), (1e-2, False)):
        caplog.clear()
        config = TrainConfig("rating", learning_rate=rate)
        train_heads(Task(labels, features, split, HeadConfig("fusion", features.dim), config))
        assert any("training has not lowered the loss of 1 of 1 heads" in line for line in caplog.messages) == said
