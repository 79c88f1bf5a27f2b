"""Which rows a head is measured on: never one that it has seen, unless asked, and then loudly."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from heads_tiny import DIM, identity, make_cache

from embed.cache.store import Cache
from embed.files import content_id
from embed.spec import IdentityMismatch, InputError
from heads.config import HeadConfig, SplitConfig
from heads.data.comparisons import Labels
from heads.data.split import split_report, split_rows
from heads.evaluation.held_out import hold_out, in_common
from heads.models import build_head
from heads.store.disk import save_head

ROWS = 12


def ids(numbers: range) -> pa.Array:
    return pa.array([content_id(f"{i}.png".encode()) for i in numbers], pa.string())


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return make_cache(tmp_path / "cache", [f"{i}.png" for i in range(ROWS)], ["one", "two"])


def labels(order: np.ndarray | None = None) -> Labels:
    """Row i is picture order[i], or i, without a prompt."""
    order = np.arange(ROWS) if order is None else order
    table = pa.table({"image": [f"{i}.png" for i in order], "half": [f"h{i % 2}" for i in order]})
    own = {"rating": order.astype(float)}
    return Labels("ratings", order, np.full(ROWS, -1), np.arange(ROWS)[:, None], own, table, 0)


def save(
    path: Path, cache: Cache, config: SplitConfig, trained: range, table: Labels | None = None, **more: object
) -> str:
    """A head whose manifest says that it was trained on some pictures of `table`, by default `labels()`, and on all
    prompts if it has any; of fold i, its scores are i + 1 and b."""
    table = labels() if table is None else table
    split = split_rows(table, config)
    head_config = HeadConfig("linear", DIM)
    heads = [build_head(head_config) for _ in range(1 + (config.folds or 0))]
    for number, head in enumerate(heads):
        head.layer.bias.data.fill_(number)
    manifest = {
        "head": asdict(head_config),
        "identity": cache.identity.to_json(),
        "split": split_report(table, split, config, cache),
        **more,
    }
    seen = ids(trained)
    if table.prompt.max() >= 0:
        seen = pa.concat_arrays([seen, *cache.metadata("prompts", ["prompt_id"])["prompt_id"].chunks])
    save_head(path, heads[0], heads[1:], seen, manifest)
    return str(path)


def test_its_own_split_is_found_again(tmp_path: Path, cache: Cache) -> None:
    head = save(tmp_path / "head", cache, SplitConfig(folds=3), range(ROWS))
    held = hold_out(head, cache, labels())
    assert held.own_split and held.rows == ROWS and held.seen_rows == 0
    assert [h.layer.bias.item() for h in held.heads] == [1, 2, 3]
    np.testing.assert_array_equal(held.split.fold, split_rows(labels(), SplitConfig(folds=3)).fold)
    # Without folds it is the part that was held out, and the head itself.
    single = hold_out(save(tmp_path / "single", cache, SplitConfig(), range(5)), cache, labels())
    assert [h.layer.bias.item() for h in single.heads] == [0]
    assert single.rows == round(0.2 * ROWS)


def test_prompts_that_the_split_shares_are_not_seen_rows(tmp_path: Path, cache: Cache) -> None:
    def one_prompt(order: np.ndarray | None = None) -> Labels:
        return replace(labels(order), prompt=np.zeros(ROWS, np.int64))

    head = save(tmp_path / "head", cache, SplitConfig(folds=2), range(4), one_prompt())
    held = hold_out(head, cache, one_prompt())
    assert held.own_split and held.split.shares_prompts and held.part.endswith("prompts are those of training too")
    order = np.arange(ROWS)[::-1].copy()
    held = hold_out(head, cache, one_prompt(order))
    np.testing.assert_array_equal(held.split.fold, np.where(order < 4, -1, 0))
    assert held.part == "rows that share no picture with training"


def test_of_other_rows_only_the_unseen_are_left(tmp_path: Path, cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    head = save(tmp_path / "head", cache, SplitConfig(by="half", folds=2), range(4))
    order = np.arange(ROWS)[::-1].copy()
    held = hold_out(head, cache, labels(order))
    assert not held.own_split
    np.testing.assert_array_equal(held.split.fold, np.where(order < 4, -1, 0))
    assert [h.layer.bias.item() for h in held.heads] == [0]
    warning = caplog.text
    assert "4 of 12 rows" in warning and "(4 pictures, 0 prompts): they are left out" in warning

    everything = hold_out(head, cache, labels(order), everything=True)
    assert everything.rows == ROWS and everything.seen_rows == 4
    assert "not an honest test" in caplog.text
    for rows in (labels(order), labels(order[::-1])):  # the second is its own table, of which everything is asked
        with pytest.raises(InputError, match="4 of 12 rows"):
            hold_out(head, cache, rows, everything=True, strict=True)
    with pytest.raises(InputError, match="12 of 12 rows"):
        hold_out(save(tmp_path / "all", cache, SplitConfig(folds=3), range(ROWS)), cache, labels(order))


def test_a_picture_of_training_is_recognised_on_either_side(tmp_path: Path, cache: Cache) -> None:
    head = save(tmp_path / "head", cache, SplitConfig(folds=3), range(2))  # trained on pictures 0 and 1
    items = np.array([[0, 4], [5, 1], [6, 7], [8, 0], [1, 0]])
    table = pa.table({"row": range(5)})
    own = {"target": np.ones(5), "weight": np.ones(5)}
    pairs = Labels("comparisons", np.arange(ROWS), np.full(ROWS, -1), items, own, table, 0)
    assert hold_out(head, cache, pairs).split.fold.tolist() == [-1, -1, 0, -1, -1]


def test_a_published_head_is_measured_on_everything(tmp_path: Path, cache: Cache) -> None:
    head = save(tmp_path / "head", cache, SplitConfig(folds=3), range(0), published={"file": "sa_0_4.pth"})
    held = hold_out(head, cache, labels(np.arange(ROWS)[::-1].copy()))
    assert held.rows == ROWS
    assert "unknown" in held.part


def test_two_heads_meet_on_what_neither_saw(tmp_path: Path, cache: Cache) -> None:
    by_half = hold_out(save(tmp_path / "a", cache, SplitConfig(by="half", folds=2), range(ROWS)), cache, labels())
    single = hold_out(save(tmp_path / "b", cache, SplitConfig(test_fraction=0.5), range(ROWS)), cache, labels())
    first, second = in_common(by_half, single)
    np.testing.assert_array_equal(first.split.fold >= 0, single.split.fold >= 0)
    np.testing.assert_array_equal(first.split.fold, second.split.fold)
    for fold in range(first.split.folds):
        rows = first.split.test_rows(fold)
        assert {by_half.split.fold[row] for row in rows} == {int(first.heads[fold].layer.bias.item()) - 1}
        assert second.heads[fold].layer.bias.item() == 0
    # In folds that differ, each part is scored by the two heads that did not see it.
    thirds = hold_out(save(tmp_path / "t", cache, SplitConfig(folds=3), range(ROWS)), cache, labels())
    for parts in ((by_half, thirds), (thirds, by_half)):
        both = in_common(*parts)
        assert both[0].split.folds == both[1].split.folds > 3
        for fold in range(both[0].split.folds):
            for held, part in zip(both, parts, strict=True):
                assert {part.split.fold[row] for row in held.split.test_rows(fold)} == {
                    int(held.heads[fold].layer.bias.item()) - 1
                }
    with pytest.raises(InputError, match="no row of the table is new to both"):
        other = save(tmp_path / "c", cache, SplitConfig(test_fraction=0.5, seed=0), range(ROWS))
        held = hold_out(other, cache, labels())
        rest = type(held.split)(np.where(held.split.fold < 0, 0, -1), held.split.group, 1)
        in_common(single, type(held)(**{**vars(held), "split": rest}))


def test_another_backbone_is_refused(tmp_path: Path, cache: Cache) -> None:
    head = save(tmp_path / "head", cache, SplitConfig(), range(3))
    other = make_cache(tmp_path / "other", ["0.png"], ["one"], identity("b" * 64))
    with pytest.raises(IdentityMismatch, match="different backbones"):
        hold_out(head, other, labels())
