"""No picture and no prompt stands on both sides, whatever the table looks like."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from embed.spec import InputError
from heads.config import SplitConfig
from heads.data.comparisons import Labels
from heads.data.split import rows_apart_from, split_rows


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
    split = split_rows(labels, SplitConfig(by, folds=folds))
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


def crossed(kind: str, **columns: list[str]) -> Labels:
    """Eight pictures, each edited by the same three instructions."""
    source, prompt = (axis.ravel() for axis in np.meshgrid(np.arange(8), np.arange(3), indexing="ij"))
    items = np.arange(24)[:, None]
    if kind == "comparisons":  # each edit with another of the same picture and instruction
        source, prompt, items = np.repeat(source, 2), np.repeat(prompt, 2), np.arange(48).reshape(24, 2)
    image = 8 + np.arange(len(source))
    return Labels(kind, image, prompt, items, {}, pa.table(columns), 0, source)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["counts", "comparisons"])
@pytest.mark.parametrize("by", [None, "author"])
def test_prompts_that_every_row_shares_do_not_leave_nothing_to_train_on(
    kind: str, by: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    labels = crossed(kind, author=[f"a{i // 3 % 4}" for i in range(24)])
    split = split_rows(labels, SplitConfig(by, folds=4))
    assert split.shares_prompts and "3 prompts are in so many rows" in caplog.text
    assert labels.source is not None
    for fold in range(4):
        held_out = split.test_rows(fold)
        train = rows_apart_from(labels, held_out, shares_prompts=True)
        assert len(held_out) == 6 and len(train) == 18, "whole pictures, and no row is lost"
        of = [set(labels.source[labels.items[rows]].ravel().tolist()) for rows in (held_out, train)]
        assert not of[0] & of[1]
        assert len(rows_apart_from(labels, held_out)) == 0
    # Where strict rules leave rows, they are kept: these instructions are of two pictures each.
    few = replace(labels, prompt=labels.source // 2)
    assert not split_rows(few, SplitConfig("prompt", folds=4)).shares_prompts


def test_prompts_stay_apart_where_one_author_is_left() -> None:
    # Each fold holds out one author, and a second shares a prompt with that one: the third's rows are trained on.
    author = np.repeat(np.arange(3), 8)
    prompt = np.where(np.arange(24) % 8 == 0, 0, 1 + np.arange(24))
    prompt[author == 2] = 100 + np.arange(8)
    labels = make_labels(np.arange(24)[:, None], np.arange(24), prompt, author=[f"a{i}" for i in author])
    assert not split_rows(labels, SplitConfig("author", folds=3)).shares_prompts
    one = replace(labels, prompt=np.where(author < 2, 0, prompt))
    assert not split_rows(one, SplitConfig("author", folds=3)).shares_prompts


def test_one_prompt_for_all_rows_is_no_reason_to_fail() -> None:
    for items in (np.arange(12)[:, None], np.arange(12).reshape(6, 2)):
        split = split_rows(make_labels(items, np.arange(12), np.zeros(12, np.int64)), SplitConfig(folds=3))
        assert split.shares_prompts and sorted(np.bincount(split.fold)) == [len(items) // 3] * 3


def test_groups_stay_whole_and_folds_balance() -> None:
    sizes = [40, 30, 20, 10, 10, 10, 5, 5, 5, 5]
    names = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
    labels = make_labels(np.arange(140)[:, None], np.arange(140), np.arange(140), sub=names)
    split = split_rows(labels, SplitConfig("sub", folds=4))
    for name in set(names):
        assert len(set(split.fold[np.array(names) == name])) == 1
    assert sorted(np.bincount(split.fold)) == [30, 35, 35, 40]


def test_one_seed_one_split() -> None:
    labels = random_labels(np.random.default_rng(0), 60)
    first, again, other = (split_rows(labels, SplitConfig("user", folds=4, seed=seed)).fold for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_unusable_splits_say_so() -> None:
    labels = make_labels(np.arange(3)[:, None], np.arange(3), np.arange(3), user=["a", "a", "b"])
    with pytest.raises(InputError, match=r"hold out 3 parts of 2 different values of user"):
        split_rows(labels, SplitConfig("user", folds=3))
    with pytest.raises(InputError, match=r"'nobody' is not a column of the table; it has user"):
        split_rows(labels, SplitConfig("nobody"))
    with pytest.raises(InputError, match="folds is 1; wanted at least 2"):
        SplitConfig(folds=1)


def compared(seed: int = 0, users: int = 40, rows: int = 600) -> Labels:
    """Comparisons of some 60 prompts with few rows or many; some pictures are of two prompts."""
    rng = np.random.default_rng(seed)
    prompt = rng.choice(60, rows, p=rng.dirichlet(np.full(60, 3.0)))
    picture = np.where(rng.random((rows, 2)) < 0.05, rng.integers(0, 400, (rows, 2)), 0) + 8 * prompt[:, None]
    picture += np.stack([rng.permutation(8)[:2] for _ in range(rows)])
    code, items = np.unique(picture * 60 + prompt[:, None], return_inverse=True)
    labels = make_labels(items.reshape(rows, 2), code // 60, code % 60,
                         user_id=[f"user {u}" for u in rng.integers(0, users, rows)])  # fmt: skip
    labels.values.update(target=rng.choice([0.0, 0.5, 1.0], rows), weight=np.ones(rows))
    return labels


def test_pickscores_split_shares_no_prompt_picture_or_user() -> None:
    labels = compared()
    split = split_rows(labels, SplitConfig(held_out_prompts=20, seed=4))
    prompt, picture = labels.prompt[labels.items[:, 0]], labels.image[labels.items]
    users = np.array(labels.columns["user_id"].to_pylist())
    assert split.validation is not None and split.folds == 1
    test, validation = split.test_rows(0).tolist(), split.validation.tolist()
    assert len(test) == len(validation) == 10
    chosen = test + validation
    assert len({prompt[row] for row in chosen}) == len({users[row] for row in chosen}) == 20
    for i, one in enumerate(chosen):
        for other in chosen[:i]:
            assert not set(picture[one]) & set(picture[other])

    withheld = split.withheld_rows(0)
    assert sorted(withheld) == [row for row in range(len(labels)) if prompt[row] in prompt[chosen]]
    train = rows_apart_from(labels, withheld, np.setdiff1d(np.arange(len(labels)), withheld))
    taken = {int(p) for row in withheld for p in picture[row]}
    expected = [
        row for row in range(len(labels)) if prompt[row] not in prompt[chosen] and not taken & set(picture[row])
    ]
    assert train.tolist() == expected
    assert 0 < len(train) < len(labels) - len(withheld), "a picture of two prompts is among the rows"
    assert sorted(np.flatnonzero(split.with_validation().fold == 0)) == sorted(chosen)


def test_pickscores_split_is_drawn_by_its_seed_and_evenly_over_prompts() -> None:
    labels = compared(users=600)

    def chosen(seed: int) -> list[int]:
        split = split_rows(labels, SplitConfig(held_out_prompts=6, seed=seed))
        assert split.validation is not None
        return [*split.test_rows(0), *split.validation]

    assert chosen(1) == chosen(1) != chosen(2)
    # Another cache numbers the same prompts otherwise.
    elsewhere = np.random.default_rng(0).permutation(200)[labels.prompt]
    other = split_rows(replace(labels, prompt=elsewhere), SplitConfig(held_out_prompts=6, seed=1))
    assert [*other.test_rows(0), *other.validation] == chosen(1)
    # A prompt of many rows is held out as often as one of few.
    prompt = labels.prompt[labels.items[:, 0]]
    drawn = np.bincount([prompt[row] for seed in range(300) for row in chosen(seed)], minlength=60)
    present, rows = np.flatnonzero(np.bincount(prompt, minlength=60)), np.bincount(prompt, minlength=60)
    assert abs(np.corrcoef(drawn[present], rows[present])[0, 1]) < 0.4
    assert drawn[present].min() > 5


def test_pickscores_split_says_what_it_lacks() -> None:
    lacking = (
        r"wants 50 prompts that share no picture and no user; the table has 58 prompts, \d+ pictures, 30 users, and"
    )
    with pytest.raises(InputError, match=lacking + " 30 were found; lower --held-out-prompts"):
        split_rows(compared(users=30), SplitConfig(held_out_prompts=50))
    with pytest.raises(InputError, match="wants a table of comparisons, and this one has counts"):
        split_rows(make_labels(np.arange(3)[:, None], np.arange(3), np.arange(3)), SplitConfig(held_out_prompts=2))
    for wrong in ({"by": "user"}, {"folds": 3}):
        with pytest.raises(InputError, match="leave out --split-by and --folds"):
            SplitConfig(held_out_prompts=10, **wrong)
    for number in (0, 5, -2):
        with pytest.raises(InputError, match=f"held.out.prompts is {number}; wanted (at least 2|an even number)"):
            SplitConfig(held_out_prompts=number)
