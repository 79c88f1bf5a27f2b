"""Match the labels of a table with a cache: which vectors are compared, and which picture won.

An item is what a head scores: a picture with its prompt. A row is a line of the user's table: two items for a
comparison, one for all other kinds. Losses and metrics work on pairs. Knows no model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embed.arrays import Bools, Float32s, Floats, Ints
from embed.cache.store import Cache
from embed.records.formats import Records
from embed.records.labels import Kind
from embed.spec import InputError
from heads.data.counts import count_posterior_target, hard_target, rate_posterior_target
from heads.pairs import sample_pairs

MAX_PAIRS = 2_000_000  # pairs drawn from one table of counts or groups at a time, 48 MB


@dataclass(frozen=True)
class Labels:
    """A table whose pictures and prompts were replaced by row numbers of a cache."""

    kind: Kind
    image: Ints  # (n,) row in the cache's image vectors, per item
    prompt: Ints  # (n,) row in its prompt vectors, -1 for an item without a prompt
    items: Ints  # (m, 2) items of each row for comparisons, (m, 1) for other kinds
    values: Mapping[str, NDArray[Any]]  # (m,) floats: target, weight / rank / rating / count, exposures; ints: group
    columns: pa.Table  # the m rows' other columns, as the user's table has them
    missing: int  # number of rows left out because the cache lacks one of their pictures or prompts
    source: Ints | None = None  # (n,) row of each item's source picture, -1 for none; None: no column

    def __len__(self) -> int:
        return len(self.items)

    def described(self, path: str) -> dict[str, object]:
        """The record that a head keeps of the table at `path` that it was trained on."""
        return {"table": Path(path).name, "kind": self.kind, "rows": len(self), "missing": self.missing}


@dataclass(frozen=True)
class Pairs:
    """Comparisons of items. `target` is the probability that a is preferred to b, 0.5 for a tie."""

    a: Ints  # (m,) item
    b: Ints
    target: Float32s  # (m,) in [0, 1]
    weight: Float32s  # (m,) positive
    row_a: Ints  # (m,) row of the table that a comes from
    row_b: Ints

    def __len__(self) -> int:
        return len(self.a)

    def take(self, chosen: Ints) -> "Pairs":
        """Only the pairs with the numbers `chosen`."""
        return Pairs(**{name: column[chosen] for name, column in vars(self).items()})


def expected_accuracy(score_a: Float32s, score_b: Float32s, pairs: Pairs) -> float:
    """The expected share of pairs, by weight, in which the scores agree with a choice drawn from the target. Equal
    scores count half."""
    agreement = np.where(score_a == score_b, 0.5, np.where(score_a > score_b, pairs.target, 1 - pairs.target))
    return float(np.average(agreement, weights=pairs.weight))


def match_labels(records: Records, cache: Cache, max_missing: float = 0.01) -> Labels:
    """The records' labels as row numbers of `cache`. Rows without vectors are left out. Raise InputError if their share
    is above `max_missing`, or if no row remains."""
    table = records.labels()
    sides = ("_a", "_b") if records.kind == "comparisons" else ("",)
    images = np.stack([cache.image_rows(table["image" + side], records.place) for side in sides], axis=1)
    prompts = np.stack([_prompt_rows(table["prompt" + side], cache) for side in sides], axis=1)
    lacking = {"image": (images < 0), "prompt": (prompts < -1)}
    sources = None
    if records.has_sources:
        sources = _source_rows(table["source"], cache, records)
        lacking["source"] = sources[:, None] < -1
    found = ~np.concatenate(list(lacking.values()), axis=1).any(axis=1)
    missing = int(len(table) - found.sum())
    if missing > max_missing * len(table):
        raise _too_many_missing(records, table, cache, lacking, missing)
    table, images, prompts = table.filter(pa.array(found)), images[found], prompts[found]
    if len(table) == 0:
        raise InputError(f"{records.path}: no row has vectors in {cache.path}; embed this table into the cache")
    return _labels(records.kind, table, images, prompts, missing, None if sources is None else sources[found])


def _source_rows(names: pa.ChunkedArray, cache: Cache, records: Records) -> Ints:
    """Row numbers of source pictures in the cache: -1 for no source, -2 for a source without a vector."""
    named = np.asarray(pc.is_valid(names))
    rows = cache.image_rows(pc.fill_null(names, ""), records.place)
    return np.where(named & (rows < 0), -2, np.where(named, rows, -1))


def _too_many_missing(
    records: Records, table: pa.Table, cache: Cache, lacking: Mapping[str, Bools], missing: int
) -> InputError:
    """The error for rows without a vector, with an example from the table. If every row lacks one it also shows a name
    from the cache, since both may spell names differently."""
    name, lost = next((name, lost) for name, lost in lacking.items() if lost.any())
    row, side = (int(at[0]) for at in np.nonzero(lost))
    first = table[name + ("_a", "_b")[side] if lost.shape[1] == 2 else name][row].as_py()
    what = {"image": "picture", "source": "source picture"}.get(name, name)
    said = f"{records.path}: {missing} of {len(table)} rows have a {what} without a vector in {cache.path}"
    if missing < len(table):
        return InputError(f"{said} (first: {first!r}); embed this table into the cache, or raise --max-missing")
    column = "caption" if name == "prompt" else "image_path"
    held = cache.metadata("prompts" if name == "prompt" else "images", [column])[column]
    other = f"the cache has {held[0].as_py()!r}" if len(held) else f"the cache has no {what}s"
    named = name != "prompt" and not first.startswith("sha256:")  # otherwise it is known only by a hash of its bytes
    root = f" in {records.images_root} (--images-root can name another folder)" if named else ""
    return InputError(f"{said}: the table has {first!r}{root}, and {other}; embed this table into the cache")


def labels_alone(records: Records) -> Labels:
    """The records' labels without vectors: `image` and `prompt` are numbers of names, and not rows of a cache."""
    table = records.labels()
    sides = ("_a", "_b") if records.kind == "comparisons" else ("",)
    images, prompts = (
        codes(pa.chunked_array([chunk for side in sides for chunk in table[name + side].chunks], pa.string()))
        .reshape(len(sides), -1)
        .T
        for name in ("image", "prompt")
    )
    return _labels(records.kind, table, images, prompts, 0)


def _labels(
    kind: Kind | None, table: pa.Table, images: Ints, prompts: Ints, missing: int, sources: Ints | None = None
) -> Labels:
    """The labels of a table whose pictures and prompts are numbers (m, sides), and whose sources are numbers (m,).
    Sides with equal numbers become one item."""
    assert kind is not None  # tables without labels were refused before
    sides = ("_a", "_b") if kind == "comparisons" else ("",)
    if kind == "comparisons":
        pairs, source = images * (prompts.max() + 2) + prompts + 1, sources
        if sources is not None:
            pairs = pairs * (sources.max() + 2) + sources[:, None] + 1
        code, inverse = np.unique(pairs, return_inverse=True)
        if sources is not None:
            code, source = np.divmod(code, sources.max() + 2)
            source -= 1
        image, prompt = np.divmod(code, prompts.max() + 2)
        items = inverse.reshape(images.shape)
        prompt -= 1
    else:
        image, prompt, items = images[:, 0], prompts[:, 0], np.arange(len(table))[:, None]
        source = sources
    named = [
        name for name in ("target", "weight", "rank", "rating", "count", "exposures") if name in table.schema.names
    ]
    values = {name: np.asarray(table[name].cast(pa.float64())) for name in named}
    if "group" in table.schema.names:
        values["group"] = codes(table["group"])
    standard = {*named, "group", *(name + side for side in sides for name in ("image", "prompt"))}
    # The group, the picture and the prompt stay available for splitting and slicing.
    columns = table.drop_columns(
        [name for name in table.schema.names if name in standard - {"group", "image", "prompt"}]
    )
    return Labels(kind, image, prompt, items, values, columns, missing, source)


def join_labels(tables: Sequence[Labels]) -> list[Labels]:
    """The same tables with one common numbering of items, so that one `Features` serves them all."""
    offsets = np.cumsum([0] + [len(table.image) for table in tables])
    image, prompt = (np.concatenate([getattr(table, side) for table in tables]) for side in ("image", "prompt"))
    source = None
    if any(table.source is not None for table in tables):
        none = [np.full(len(table.image), -1) for table in tables]
        sources = [lacks if table.source is None else table.source for table, lacks in zip(tables, none, strict=True)]
        source = np.concatenate(sources)
    return [
        replace(table, image=image, prompt=prompt, items=table.items + offset, source=source)
        for table, offset in zip(tables, offsets, strict=False)
    ]


def _prompt_rows(prompts: pa.ChunkedArray, cache: Cache) -> Ints:
    """Row numbers of prompts in the cache: -1 for no prompt, -2 for a prompt without a vector."""
    rows = cache.prompt_rows(prompts)
    named = np.asarray(pc.is_valid(prompts))
    return np.where(named & (rows < 0), -2, np.where(named, rows, -1))


def codes(column: pa.ChunkedArray) -> Ints:
    """(m,) int64: the different values numbered in order of first appearance. Null counts as a value."""
    return _encoded(column)[0]


def _encoded(column: pa.ChunkedArray) -> tuple[Ints, pa.Array]:
    """The codes, and the values that they stand for."""
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return np.asarray(encoded.indices).astype(np.int64), encoded.dictionary


def appeal(labels: Labels) -> Floats:
    """(m,) float64: how much people liked each row's picture; higher is better. It is minus the rank, the rating, the
    count, or count / exposures if the table has exposures. Comparisons have no such value."""
    if labels.kind == "groups":
        return -labels.values["rank"]
    if labels.kind == "ratings":
        return labels.values["rating"]
    exposures = exposures_of(labels)
    return labels.values["count"] if exposures is None else labels.values["count"] / exposures


def values_of(labels: Labels, columns: str) -> tuple[Ints, list[str]]:
    """The numbers (m, sides) int64 of each row's value among the different values of a column, and these values as
    text. Comparisons take two columns `A,B`, one for each picture. Raise InputError for an unknown column."""
    names, sides = [name.strip() for name in columns.split(",")], labels.items.shape[1]
    known = labels.columns.schema.names
    if len(names) != sides or not set(names) <= set(known):
        wanted = "two columns A,B, one for each picture," if sides == 2 else "one column"
        raise InputError(f"{columns!r}: wanted {wanted} of the table, which has {', '.join(known)}")
    chunks = [chunk for name in names for chunk in labels.columns[name].cast(pa.string()).chunks]
    number, found = _encoded(pa.chunked_array(chunks, pa.string()))
    return number.reshape(sides, -1).T, [str(value) for value in found.to_pylist()]


def pairs_among(
    labels: Labels, rows: Ints, rng: np.random.Generator, min_ratio: float | None = None, max_pairs: int = MAX_PAIRS
) -> Pairs:
    """All pairs of the given rows of a table, or a uniform sample of `max_pairs` of them.

    Comparisons are already pairs. Ranked groups give every pair within a group; equal ranks are ties. Counts give every
    pair within a group with a soft target, the posterior probability that a is more popular than b. With `min_ratio`
    counts give only pairs in which one count (or rate, if there are exposures) is at least so many times the other,
    with a target of 0 or 1. Ratings give every pair within a prompt.
    """
    if labels.kind == "comparisons":
        a, b = labels.items[rows].T
        target, weight = labels.values["target"][rows], labels.values["weight"][rows]
        return Pairs(a, b, target.astype(np.float32), weight.astype(np.float32), rows, rows)
    first, second = sample_pairs(groups_of(labels, rows), max_pairs, rng)
    row_a, row_b = rows[first], rows[second]
    if labels.kind == "counts":
        target, keep = _count_target(labels, row_a, row_b, min_ratio)
        row_a, row_b, target = row_a[keep], row_b[keep], target[keep]
    else:
        better = {"groups": ("rank", -1.0), "ratings": ("rating", 1.0)}[labels.kind]
        difference = better[1] * (labels.values[better[0]][row_a] - labels.values[better[0]][row_b])
        target = np.sign(difference) / 2 + 0.5
    weight = np.ones(len(row_a), np.float32)
    return Pairs(labels.items[row_a, 0], labels.items[row_b, 0], target.astype(np.float32), weight, row_a, row_b)


def groups_of(labels: Labels, rows: Ints) -> Ints:
    """A group number for each of the rows. Rows with the same number may be compared. It is one number for all if the
    table has no groups."""
    if labels.kind == "ratings":
        return labels.prompt[labels.items[:, 0][rows]]
    group: Ints = labels.values["group"][rows] if "group" in labels.values else np.zeros(len(rows), np.int64)
    return group


def exposures_of(labels: Labels) -> Floats | None:
    """(m,) how often each row of a table of counts was shown, or None if the table has no exposures."""
    exposures = labels.values.get("exposures")
    return None if exposures is None or np.isnan(exposures).all() else exposures


def _count_target(labels: Labels, a: Ints, b: Ints, min_ratio: float | None) -> tuple[Floats, Bools]:
    count, exposures = labels.values["count"], exposures_of(labels)
    if min_ratio is not None:
        popularity = count if exposures is None else count / exposures
        return hard_target(popularity[a], popularity[b], min_ratio)
    if exposures is None:
        target = count_posterior_target(count[a], count[b])
    else:
        target = rate_posterior_target(count[a], exposures[a], count[b], exposures[b])
    return target, np.ones(len(a), bool)
