"""The rows of a table that a head may be measured on. Reads heads from disk, measures nothing.

On the table that a head was trained from, which the hash of its split recognises, these are the held-out rows, each
scored by the head that never saw it. On any other table they are the rows that share no picture and no prompt with the
rows that the head was trained on.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embed.arrays import Bools
from embed.cache.store import ID_COLUMN, Cache
from embed.spec import SIDES, Identity, InputError, Side, require_same_identity
from embed.wording import NOUN
from heads.committee import Committee
from heads.config import SplitConfig
from heads.data.comparisons import Labels
from heads.data.split import Split, split_groups, split_report, split_rows
from heads.models import Head
from heads.store import disk

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """The rows to measure a head on. heads[i] scores the rows of fold i of `split`."""

    name: str
    manifest: disk.HeadManifest
    heads: list[Head]
    split: Split
    part: str  # a description of these rows
    own_split: bool  # whether these are the rows that training held out; then it saw the others
    seen_rows: int = 0  # measured although they share a picture or prompt with training
    committee: Committee | None = None  # of the final head; its members have seen most held-out rows

    @property
    def noise(self) -> float:
        """The `fold_noise` of the folds' heads, or 1 if it was not stored."""
        return float(self.manifest.get("fold_noise", 1.0)) if self.own_split and self.split.folds > 1 else 0.0

    @property
    def rows(self) -> int:
        return int((self.split.fold >= 0).sum())


def require_backbone(path: str, cache: Cache) -> None:
    """Raise IdentityMismatch if the head at `path` is of another backbone than the cache."""
    identity = Identity.from_json(disk.load_manifest(path)["identity"])
    require_same_identity(identity, f"the head {path}", cache.identity, f"the cache {cache.path}")


def hold_out(path: str, cache: Cache, labels: Labels, everything: bool = False, strict: bool = False) -> HeldOut:
    """The rows that the head at `path` may be measured on; with `everything`, all rows.

    Rows that it was trained on are counted in a warning, which `strict` makes an InputError. Raise InputError also if
    the head is of another backbone, or if no row is left.
    """
    require_backbone(path, cache)
    head, manifest = disk.load_head(path)
    split = None if everything else _own_split(cache, labels, manifest["split"])
    if split is not None:
        part = f"held out by split {manifest['split']['hash'][:12]}"
        part += "; prompts are those of training too" if split.shares_prompts else ""
        heads = disk.load_fold_heads(path) or [head]
        return HeldOut(path, manifest, heads, split, part, True, committee=disk.load_committee(path))

    sides, what = SIDES, "picture or prompt"
    if manifest["split"].get("shares_prompts"):
        sides, what = SIDES[:1], "picture"
    seen, shared = _seen(cache, labels, disk.load_trained_ids(path), sides)
    count = int(seen.sum())
    if count:
        overlap = f"{count} of {len(labels)} rows have a {what} that the head {path} was TRAINED on ({shared})"
        if strict:
            raise InputError(f"{overlap}; remove them from the table, or leave out --strict")
        if not everything and count == len(labels):
            raise InputError(f"{overlap}; give a table with new rows, or --all to score these anyway")
        logger.warning(f"{overlap}: " + ("not an honest test" if everything else "they are left out"))
    part = "all rows" if everything else f"rows that share no {what} with training"
    if "published" in manifest:
        part = "all rows; it is unknown what the published head was trained on"
    fold = np.where(seen & (not everything), -1, 0)
    by = manifest["split"]["by"]
    group = split_groups(labels, by if by in labels.columns.schema.names else None)
    seen_rows, committee = count if everything else 0, disk.load_committee(path)
    return HeldOut(path, manifest, [head], Split(fold, group, 1), part, False, seen_rows, committee)


def in_common(first: HeldOut, second: HeldOut) -> tuple[HeldOut, HeldOut]:
    """Both restricted to the rows that neither has seen, in folds within which each uses a single head. Raise
    InputError if there is no such row."""
    both = (first.split.fold >= 0) & (second.split.fold >= 0)
    if not both.any():
        raise InputError(f"no row of the table is new to both {first.name} and {second.name}; give one with new rows")
    code = np.where(both, first.split.fold * second.split.folds + second.split.fold, -1)
    codes = np.unique(code[both])
    split = Split(np.where(both, np.searchsorted(codes, code), -1), first.split.group, len(codes))
    part = first.part if first.part == second.part else "rows that neither head has seen"
    return (
        replace(first, heads=[first.heads[c // second.split.folds] for c in codes], split=split, part=part),
        replace(second, heads=[second.heads[c % second.split.folds] for c in codes], split=split, part=part),
    )


def _own_split(cache: Cache, labels: Labels, recorded: dict[str, Any]) -> Split | None:
    """The split of the training, if this is the table that the head was trained from; otherwise None."""
    config = SplitConfig(
        recorded["by"],
        recorded["test_fraction"] or SplitConfig.test_fraction,
        recorded["seed"],
        folds=recorded["folds"],
        held_out_prompts=recorded.get("held_out_prompts"),
    )
    try:
        split = split_rows(labels, config)
    except InputError:  # this table cannot be split in that way
        return None
    return split if split_report(labels, split, config, cache)["hash"] == recorded["hash"] else None


def _seen(cache: Cache, labels: Labels, trained_ids: pa.ChunkedArray, sides: Sequence[Side]) -> tuple[Bools, str]:
    """The mask (m,) of rows with a picture or prompt among `trained_ids`, and a text with the number of each of these
    `sides`."""
    seen, shared = np.zeros(len(labels), bool), []
    of_items = {"images": labels.image, "prompts": labels.prompt}
    for side in sides:
        of_item = of_items[side]
        ids = cache.metadata(side, [ID_COLUMN[side]])[ID_COLUMN[side]]
        known = np.asarray(pc.is_in(ids, value_set=trained_ids.combine_chunks()))
        known = np.append(known, False)  # the last entry is for items without a prompt (-1)
        seen |= known[of_item[labels.items]].any(axis=1)
        shared.append(f"{len(np.unique(of_item[known[of_item]]))} {NOUN[side]}")
    return seen, ", ".join(shared)
