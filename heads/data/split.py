"""Choose the rows to hold out, so that no picture is on both sides, and no prompt unless all rows share a few."""

import hashlib
import logging
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embed.arrays import Ints
from embed.cache.store import ID_COLUMN, Cache
from embed.spec import SIDES, InputError
from heads.config import SplitConfig
from heads.data.comparisons import Labels, codes

logger = logging.getLogger(__name__)

SMALL_ROWS, SMALL_FOLDS = 3000, 5


@dataclass(frozen=True)
class Split:
    """`fold` (m,): the fold that holds each row out, -1 for a row that is never held out; `group` (m,).

    `validation` are the rows that choose the epoch. If the split does not name them, training keeps some aside.

    With `shares_prompts`, prompts may be on both sides, because strictly apart no row would be left to train on.
    """

    fold: Ints
    group: Ints
    folds: int
    validation: Ints | None = None
    shares_prompts: bool = False

    def test_rows(self, fold: int) -> Ints:
        """The rows that a fold holds out."""
        return np.flatnonzero(self.fold == fold)

    def withheld_rows(self, fold: int) -> Ints:
        """The rows kept from training: those that a fold holds out. If the split has validation rows, also these and
        all rows that share a prompt with either."""
        rows = self.test_rows(fold)
        if self.validation is None:
            return rows
        return np.flatnonzero(np.isin(self.group, self.group[np.concatenate([rows, self.validation])]))

    def with_validation(self) -> "Split":
        """The split with its validation rows held out too, so that both are scored."""
        fold = self.fold.copy()
        fold[[] if self.validation is None else self.validation] = 0
        return replace(self, fold=fold)


def small_folds(labels: Labels, config: SplitConfig) -> SplitConfig:
    """The config, for a small table with SMALL_FOLDS folds, or with as many as there are groups: one held-out part of
    so few rows tells little."""
    groups = len(np.unique(split_groups(labels, config.by)))
    return config if len(labels) > SMALL_ROWS or groups < 2 else replace(config, folds=min(SMALL_FOLDS, groups))


def split_rows(labels: Labels, config: SplitConfig) -> Split:
    """Divide rows into folds of whole groups, of sizes as equal as the groups allow. The same table and seed give the
    same split.

    If a few prompts recur in all rows, such as the instructions of edits, holding out some rows could leave none that
    shares no prompt with them. Then prompts are shared, and by default whole pictures are held out, with all that were
    made from them.

    Raise InputError if there are fewer groups than parts.
    """
    group = split_groups(labels, config.by)
    if config.held_out_prompts is not None:
        rows = _one_row_a_prompt(labels, config.held_out_prompts, config.seed)
        validation, test = np.sort(np.split(rows, 2))
        fold = np.full(len(labels), -1, np.int64)
        fold[test] = 0
        return Split(fold, group, 1, validation)
    for groups, shares_prompts in ((group, False), (group if config.by else _families(labels), True)):
        if len(np.unique(groups)) >= max(config.folds or 1, 2):
            split = replace(_divided(groups, config), shares_prompts=shares_prompts)
            if all(_can_train(labels, split, fold) for fold in range(split.folds)):
                if shares_prompts:
                    logger.info(
                        f"{len(np.unique(labels.prompt))} prompts are in so many rows that without them none would be"
                        " left to train on: prompts are on both sides, and pictures are held out"
                    )
                return split
    return _divided(group, config)


def _families(labels: Labels) -> Ints:
    """(m,) int64: rows with the same number are of one picture, or of pictures that were made from one."""
    first = labels.items[:, 0]
    image = labels.image[first]
    return image if labels.source is None else np.where(labels.source[first] < 0, image, labels.source[first])


def _can_train(labels: Labels, split: Split, fold: int) -> bool:
    """Whether a fold leaves rows of at least two groups, one to train on and one to validate with: of the split's own
    groups, or of those that rows have by default."""
    rows = rows_apart_from(labels, split.test_rows(fold), shares_prompts=split.shares_prompts)
    return any(len(np.unique(group[rows])) > 1 for group in (split.group, split_groups(labels, None)))


def _divided(group: Ints, config: SplitConfig) -> Split:
    """Rows in folds of whole groups."""
    names, sizes = np.unique(group, return_counts=True)
    folds = config.folds or 1
    if len(names) < max(folds, 2):
        raise InputError(
            f"cannot hold out {folds} parts of {len(names)} different values of {config.by or 'prompt or picture'};"
            " lower --folds, add rows, or give another --split-by"
        )
    order = np.random.default_rng(config.seed).permutation(len(names))
    fold_of_group = np.full(len(names), -1, np.int64)
    if config.folds is None:
        fold_of_group[order[: max(1, round(config.test_fraction * len(names)))]] = 0
    else:
        # Give the largest groups first, each to the fold with the fewest rows so far. The seed decides among equals.
        load = np.zeros(folds)
        for i in order[np.argsort(-sizes[order], kind="stable")]:
            fold_of_group[i] = np.argmin(load)
            load[fold_of_group[i]] += sizes[i]
    return Split(fold_of_group[np.searchsorted(names, group)], group, folds)


def _one_row_a_prompt(labels: Labels, prompts: int, seed: int) -> Ints:
    """(prompts,) row numbers. No two of these rows share a prompt, a picture or, if the table has the column, a
    `user_id`.

    PickScore (Kirstain et al. 2023, section 2) holds out one comparison of each of 1,000 prompts of different users.
    Prompts are drawn in random order. Each gives its first row, also in random order, that shares nothing with the rows
    before. Raise InputError if there are too few.
    """
    if labels.kind != "comparisons":
        raise InputError(f"--split pickscore wants a table of comparisons, and this one has {labels.kind}")
    prompt = labels.prompt[labels.items[:, 0]]
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero((prompt >= 0) & (prompt == labels.prompt[labels.items[:, 1]]))
    # Prompts are numbered by the table and not by the cache, so that any cache gives the same split.
    _, first, number = np.unique(prompt[rows], return_index=True, return_inverse=True)
    turn = rng.permutation(len(first))[np.argsort(np.argsort(first))][number]
    shuffled = rng.permutation(len(rows))
    rows = rows[shuffled][np.argsort(turn[shuffled], kind="stable")]
    kinds = {"prompt": prompt[rows, None], "picture": labels.image[labels.items[rows]]}
    if "user_id" in labels.columns.schema.names:
        kinds["user"] = codes(labels.columns["user_id"])[rows, None]
    taken: dict[str, set[int]] = {kind: set() for kind in kinds}
    chosen: list[int] = []
    for i, row in enumerate(rows):
        own = {kind: set(numbers[i].tolist()) for kind, numbers in kinds.items()}
        if all(own[kind].isdisjoint(taken[kind]) for kind in kinds):
            chosen.append(int(row))
            for kind in kinds:
                taken[kind] |= own[kind]
            if len(chosen) == prompts:
                return np.array(chosen)
    found = ", ".join(f"{len(np.unique(numbers))} {kind}s" for kind, numbers in kinds.items())
    raise InputError(
        f"--split pickscore wants {prompts} prompts that share no {' and no '.join(list(kinds)[1:])}; the table has"
        f" {found}, and {len(chosen)} were found; lower --held-out-prompts"
    )


def split_groups(labels: Labels, by: str | None) -> Ints:
    """(m,) int64: rows with the same number stay together. By default these are the rows that are compared with each
    other: rows of one prompt, or of one group if there are no prompts. In tables that compare no rows they are the rows
    of one picture. Raise InputError for an unknown column."""
    first = labels.items[:, 0]
    prompt, image = labels.prompt[first], labels.image[first]
    if by is not None and by in labels.columns.schema.names:
        return codes(labels.columns[by])
    if by == "prompt" and prompt.max(initial=-1) >= 0:  # comparisons have a prompt on each side, and no such column
        return np.where(prompt < 0, prompt.max() + 1 + image, prompt)
    if by is not None:
        known = ", ".join(labels.columns.schema.names) or "none but those of the labels"
        raise InputError(f"--split-by {by!r} is not a column of the table; it has {known}")
    if labels.kind == "counts" or (labels.kind == "ratings" and not 1 < len(np.unique(prompt)) < len(prompt)):
        return image
    alone = labels.values["group"].astype(np.int64) if labels.kind == "groups" else image
    return np.where(prompt < 0, prompt.max() + 1 + alone, prompt)


def rows_apart_from(
    labels: Labels,
    held_out: Ints,
    among: Ints | None = None,
    other: Labels | None = None,
    shares_prompts: bool = False,
) -> Ints:
    """The rows (of `among`, if given) that share no picture, source picture or prompt with the rows `held_out`. With
    `shares_prompts` they may share prompts.

    If `other` is given, they are rows of that table, which must number the same items (`comparisons.join_labels`).
    """
    table = labels if other is None else other
    among = np.arange(len(table)) if among is None else among
    apart = np.ones(len(among), bool)
    items = table.items[among]
    pictures = [labels.image] if labels.source is None else [labels.image, labels.source]
    for of_items in (pictures,) if shares_prompts else (pictures, [labels.prompt]):
        taken = np.zeros(max(of_item.max(initial=0) for of_item in of_items) + 2, bool)
        for of_item in of_items:
            taken[of_item[labels.items[held_out]]] = True
        taken[-1] = False  # the last entry is for items without a prompt (-1), who do not share it
        for of_item in of_items:
            apart &= ~taken[of_item[items]].any(axis=1)
    return among[apart]


def split_report(labels: Labels, split: Split, config: SplitConfig, cache: Cache) -> dict[str, object]:
    """The record that a head keeps of its split. Its hash is over contents, so that any cache of the same rows gives
    the same."""
    digest = hashlib.sha256(split.fold.astype(np.int64).tobytes())
    validation = {}
    if split.validation is not None:
        digest.update(split.validation.astype(np.int64).tobytes())
        validation = {"held_out_prompts": config.held_out_prompts, "validation_rows": len(split.validation)}
    shared = {"shares_prompts": True} if split.shares_prompts else {}
    for side, of_item in zip(SIDES, (labels.image, labels.prompt), strict=True):
        name = ID_COLUMN[side]
        rows = pa.array(of_item[labels.items].ravel())
        ids = cache.metadata(side, [name])[name].take(pc.if_else(pc.less(rows, 0), None, rows))
        digest.update("\n".join(pc.fill_null(ids, "").to_pylist()).encode())
    return {
        "by": config.by,
        "folds": config.folds,
        "test_fraction": config.test_fraction if config.folds is None and not validation else None,
        **validation,
        **shared,
        "seed": config.seed,
        "rows": len(labels),
        "held_out_rows": int((split.fold >= 0).sum()),
        "groups": len(np.unique(split.group)),
        "hash": digest.hexdigest(),
    }
