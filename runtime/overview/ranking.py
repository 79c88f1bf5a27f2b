"""Rank a whole catalogue by one measure, or by the difference of two.

A measure has one number for each picture, NaN for a missing one. Pure functions on arrays and tables; they know no
head.
"""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embed.arrays import Bools, Floats, Ints, floats
from embed.spec import InputError
from runtime.catalogue.popularity import percentiles
from runtime.catalogue.reader import Catalogue
from runtime.overview.columns import is_number

Direction = Literal["highest", "lowest", "apart"]

POPULARITY, RATE = "popularity", "rate"
OF_PICTURES = ("width", "height")  # numeric columns that do not measure success


def measure_names(table: pa.Table) -> list[str]:
    """The measures of a catalogue itself: popularity, its numeric columns, and the rate."""
    numbers = [field.name for field in table.schema if is_number(field.type) and field.name not in OF_PICTURES]
    others = [name for name in numbers if name != POPULARITY]
    return [POPULARITY, *others, *([RATE] if {"count", "exposures"} <= set(others) and RATE not in others else [])]


def measure(catalogue: Catalogue, name: str) -> Floats:
    """(n,) float64: the values of a measure of the catalogue. Raise InputError if it has none of that name."""
    known = measure_names(catalogue.rows)
    if name not in known:
        raise InputError(f"there is no measure {name!r}; there are {', '.join(known)}")
    if name == POPULARITY:
        return 100 * catalogue.popularity.astype(np.float64)
    if name == RATE and RATE not in catalogue.rows.column_names:
        counts, exposures = (floats(catalogue.rows[column]) for column in ("count", "exposures"))
        rates: Floats = np.divide(counts, exposures, out=np.full(len(counts), np.nan), where=exposures > 0)
        return rates
    return floats(catalogue.rows[name])


def places(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    """(n,) float64 each: the percentiles (0 to 100) of two measures among the pictures that have both, NaN for
    others."""
    both = ~(np.isnan(first) | np.isnan(second))
    found = np.full((2, len(first)), np.nan)
    for place, values in zip(found, (first, second), strict=True):
        place[both] = 100.0 * percentiles(values[both]).astype(np.float64)
    return found[0], found[1]


def gap(first: Floats, second: Floats) -> Floats:
    """(n,) float64: by how many percentiles `first` ranks a picture above `second`. Both come from `places`."""
    return np.round(first - second, 5)  # equal gaps must stay equal in spite of rounding errors


def rank_correlation(first: Floats, second: Floats, allowed: Bools | None = None) -> float | None:
    """Spearman's correlation of two measures over the allowed pictures that have both. Equal values get their mean
    rank. None if a measure is constant."""
    both = ~(np.isnan(first) | np.isnan(second))
    both = both if allowed is None else both & allowed
    ranks = np.array([percentiles(values[both]) for values in (first, second)], np.float64)
    ranks -= ranks.mean(axis=1, keepdims=True) if both.any() else 0
    length = np.sqrt(np.square(ranks).sum(axis=1).prod())
    return float(np.clip(ranks[0] @ ranks[1] / length, -1, 1)) if length > 0 else None


def ranked_rows(values: Floats, direction: Direction, allowed: Bools | None = None) -> Ints:
    """(m,) int64: the allowed rows with a value, ranked in that direction. Ties are in the order of rows."""
    kept = ~np.isnan(values) if allowed is None else allowed & ~np.isnan(values)
    rows = np.flatnonzero(kept)
    keys = {"highest": -values[rows], "lowest": values[rows], "apart": -np.abs(values[rows])}[direction]
    order: Ints = rows[np.argsort(keys, kind="stable")]
    return order


def few_of_each(rows: Ints, column: pa.ChunkedArray, most: int) -> Ints:
    """The first `most` of `rows` for each value of the column, in their order. All rows without a value stay."""
    values = column.take(pa.array(rows)).combine_chunks()
    if not pa.types.is_dictionary(values.type):
        values = pc.dictionary_encode(values)
    codes = np.asarray(pc.fill_null(values.indices, -1))
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-2))
    place = np.empty(len(rows), np.int64)
    place[order] = np.arange(len(rows)) - np.repeat(starts, np.diff(starts, append=len(rows)))
    found: Ints = rows[(place < most) | (codes < 0)]
    return found
