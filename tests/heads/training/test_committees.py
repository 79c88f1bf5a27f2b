"""Who is on a committee has not seen what it speaks of."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from heads_planted import made

from embed.spec import InputError
from heads.config import HeadConfig, SplitConfig, TrainConfig
from heads.data.split import split_rows
from heads.models import Head
from heads.training import committees
from heads.training.committees import committee_of, unseen_committees
from heads.training.folds import Task, train_heads
from heads.training.train import score_items


def task(folds: int | None, rows: int = 60) -> Task:
    labels, features = made("ratings", prompts=False, rows=rows, shift=5.0)
    split = split_rows(labels, SplitConfig(folds=folds))
    return Task(labels, features, split, HeadConfig("linear", features.dim), TrainConfig("rating", penalty=1e-2))


@pytest.mark.parametrize(("folds", "trained", "members"), [(3, 3, 2), (4, 6, 3), (5, 10, 4), (7, 14, 4)])
def test_no_member_has_seen_the_fold_that_it_speaks_of(
    monkeypatch: pytest.MonkeyPatch, folds: int, trained: int, members: int
) -> None:
    given, seen = task(folds), dict[int, set[int]]()
    train_apart = committees.train_apart

    def noted(task: Task, held_out: np.ndarray, name: str) -> tuple[Head, list, dict]:
        found = train_apart(task, held_out, name)
        seen[id(found[0])] = set(task.rows(held_out).tolist())
        return found

    monkeypatch.setattr(committees, "train_apart", noted)
    found = unseen_committees(given, train_heads(given).fold_heads)
    assert len(found) == folds and len(seen) == trained
    for fold, committee in enumerate(found):
        assert len(committee.members) == members and committee.groups == folds - 1
        of_fold = set(given.split.test_rows(fold).tolist())
        lacking = []
        for member in committee.members:
            rows = seen[id(member)]
            assert not rows & of_fold
            lacking.append(set(range(60)) - of_fold - rows)  # what it did without beside the fold: one other
        assert all(any(part == set(given.split.test_rows(k).tolist()) for k in range(folds)) for part in lacking)
        assert len({frozenset(part) for part in lacking}) == members


def scored(heads: Sequence[Head], given: Task) -> np.ndarray:
    return np.stack([score_items(head, given.features) for head in heads]).astype(np.float64)


def test_the_folds_heads_are_the_committee_of_the_head_in_the_scores_own_units() -> None:
    given = task(3)
    trained = train_heads(given)
    committee = committee_of(trained, given)
    assert committee is not None
    head, members = scored([trained.head], given)[0], scored(trained.fold_heads, given)
    moved = np.stack([(m - m.mean()) / m.std() * head.std() + head.mean() for m in members])
    expected = np.sqrt(2 / 3 * np.square(moved - moved.mean(axis=0)).sum(axis=0))
    np.testing.assert_allclose(scored([committee], given)[0], expected, rtol=1e-3, atol=1e-6)

    # Ratings in cents instead of euros: a hundred times the score, and a hundred times the uncertainty.
    values = {"rating": 100 * given.labels.values["rating"]}
    cents = replace(given, labels=replace(given.labels, values=values))
    in_cents = committee_of(train_heads(cents), cents)
    assert in_cents is not None
    np.testing.assert_allclose(scored([in_cents], given)[0], 100 * expected, rtol=0.02)


def test_many_folds_are_spoken_for_by_some_of_them() -> None:
    given = task(7)
    committee = committee_of(train_heads(given), given)
    assert committee is not None and (len(committee.members), committee.groups) == (5, 7)


def test_without_folds_there_is_no_committee_and_two_leave_none_for_what_they_hold_out() -> None:
    given = task(None)
    assert committee_of(train_heads(given), given) is None
    given = task(2)
    trained = train_heads(given)
    assert committee_of(trained, given) is not None
    with pytest.raises(InputError, match="2 folds are too few"):
        unseen_committees(given, trained.fold_heads)
