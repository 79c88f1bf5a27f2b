"""No picture and no prompt stands on both sides, whatever the table looks like."""

import numpy as np
import pyarrow as pa
import pytest

from embed.spec import InputError
from heads.comparisons import Labels
from heads.split import SplitConfig, rows_apart_from, split_rows


def make_labels(items: np.ndarray, image: np.ndarray, prompt: np.ndarray, **columns: list[str]) -> Labels:
    kind = "comparisons" if items.shape[1] == 2 else "counts"
    return Labels(kind, image, prompt, items, {}, pa.table(columns), missing=0)


def random_labels(rng: np.random.Generator, rows: int) -> Labels:
    image, prompt = rng.integers(0, 60, 80), rng.integers(-1, 30, 80)
    users = [f"user {u}" for u in rng.integers(0, 12, rows)]
    return make_labels(rng.integers(0, 80, (rows, 2)), image, prompt, user=users)


@pytest.mark.parametrize("by", [None, "user"])
@pytest.mark.parametrize("folds", [None, 5])
def test_held_out_rows_share_nothing_with_training(by: str | None, folds: int | None) -> None:
    labels = random_labels(np.random.default_rng(3), 90)
    split = split_rows(labels, SplitConfig(by, folds))
    trained_on = 0
    for fold in range(split.folds):
        held_out = split.test_rows(fold)
        train = rows_apart_from(labels, held_out, np.flatnonzero(split.fold != fold))
        trained_on += len(train)
        for side in (labels.image, labels.prompt):
            tested = {int(v) for v in side[labels.items[held_out]].ravel()} - {-1}
            assert not tested & {int(v) for v in side[labels.items[train]].ravel()}
    assert trained_on > 0


def test_only_rows_that_share_are_left_out() -> None:
    # Row 0 is held out; row 1 has its picture, row 2 its prompt, row 3 neither, row 4 no prompt at all.
    labels = make_labels(np.arange(5)[:, None], np.array([0, 0, 1, 2, 3]), np.array([7, 8, 7, 9, -1]))
    assert rows_apart_from(labels, np.array([0]), np.arange(1, 5)).tolist() == [3, 4]
    # A held-out row without prompt shares nothing with another one without.
    labels = make_labels(np.arange(2)[:, None], np.array([0, 1]), np.array([-1, -1]))
    assert rows_apart_from(labels, np.array([0]), np.array([1])).tolist() == [1]


def test_groups_stay_whole_and_folds_balance() -> None:
    sizes = [40, 30, 20, 10, 10, 10, 5, 5, 5, 5]
    names = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
    labels = make_labels(np.arange(140)[:, None], np.arange(140), np.arange(140), sub=names)
    split = split_rows(labels, SplitConfig("sub", 4))
    for name in set(names):
        assert len(set(split.fold[np.array(names) == name])) == 1
    assert sorted(np.bincount(split.fold)) == [30, 35, 35, 40]


def test_one_seed_one_split() -> None:
    labels = random_labels(np.random.default_rng(0), 60)
    first, again, other = (split_rows(labels, SplitConfig("user", 4, seed=seed)).fold for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_unusable_splits_say_so() -> None:
    labels = make_labels(np.arange(3)[:, None], np.arange(3), np.arange(3), user=["a", "a", "b"])
    with pytest.raises(InputError, match=r"hold out 3 parts of 2 different values of user"):
        split_rows(labels, SplitConfig("user", 3))
    with pytest.raises(InputError, match=r"'nobody' is no column of the table; it has \['user'\]"):
        split_rows(labels, SplitConfig("nobody"))
    with pytest.raises(InputError, match="--folds is 1"):
        SplitConfig(folds=1)
