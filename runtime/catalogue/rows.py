"""Make a catalogue's rows from a table of counts: all pictures with a vector and a popularity, the most popular first.

Knows no file format; tables are Arrow, vectors arrays.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embed.addresses import Place
from embed.arrays import Float16s, Float32s, Floats, Ints, floats, positions
from embed.spec import Identity, InputError, Side
from runtime.catalogue.popularity import decayed, percentiles, posterior_rates
from runtime.catalogue.times import seconds
from runtime.config import PopularityConfig

# Columns that the catalogue adds to those of the table.
OWN_COLUMNS = ("popularity", "image_id", "width", "height")


class Pictures(Protocol):
    """A source of vectors: a cache, or an older version of a catalogue."""

    identity: Identity

    def image_embeddings(self) -> Float16s: ...
    def pooled_embeddings(self) -> Float16s | None: ...
    def metadata(self, side: Side) -> pa.Table: ...
    def image_rows(self, keys: pa.ChunkedArray, place: Place | None = None) -> Ints: ...
    def places(self) -> pa.Array: ...


# Takes pictures, (n,) rows of them, their prompts (null for none) and the rows of their source pictures (-1 for none).
# Gives (n,) scores; higher is better.
Predict = Callable[[Pictures, Ints, pa.ChunkedArray, Ints], Float32s]


@dataclass(frozen=True)
class PopularRows:
    """A catalogue's rows, most popular first, and (n,) int64: the row of each one's vector among the pictures."""

    table: pa.Table
    vector_rows: Ints
    not_embedded: int  # number of pictures in the table without a vector
    without_count: int  # number of pictures with a vector but without a count


def popular_rows(
    labels: pa.Table,
    pictures: Pictures,
    config: PopularityConfig,
    predict: Predict | None = None,
    leave_out: Sequence[str] = (),
    place: Place | None = None,
) -> PopularRows:
    """The rows of a catalogue, without the pictures named in `leave_out`.

    `labels` has `image`, and may have `count`, `exposures`, `timestamp`, `prompt` and other columns to filter by.
    `place` gives the place of a picture that it names. Raise InputError if a picture is named twice, a count is bad, or
    no picture of the table has a vector.
    """
    _refuse_repeated(labels["image"])
    metadata = pictures.metadata("images")
    if "count" not in labels.column_names:
        labels = labels.append_column("count", pa.nulls(len(labels), pa.float64()))
    found = pictures.image_rows(labels["image"], place)
    labels, vector_rows = labels.filter(pa.array(found >= 0)), found[found >= 0]
    # Imported vectors may have several rows of one picture, of which the first is used.
    unnamed = np.setdiff1d(positions(metadata["image_id"], metadata["image_id"]), vector_rows)
    table = pa.concat_tables(
        [labels, pa.table({"image": metadata["image_path"].take(unnamed)})], promote_options="default"
    )
    vector_rows = np.concatenate([vector_rows, unnamed])
    if leave_out:
        kept = ~np.asarray(pc.is_in(table["image"], value_set=pa.array(leave_out, pa.string())))
        table, vector_rows = table.filter(pa.array(kept)), vector_rows[kept]

    values = popularity_values(table, config.half_life_s)
    without = int(np.isnan(values).sum())
    if config.missing == "predicted":
        values = _with_predicted(values, table, pictures, vector_rows, predict, place)
    elif config.missing == "drop":
        known = ~np.isnan(values)
        table, vector_rows, values = table.filter(pa.array(known)), vector_rows[known], values[known]
    else:
        fill = 0.0 if config.missing == "zero" or without == len(values) else float(np.nanmedian(values))
        values = np.where(np.isnan(values), fill, values)
    if not len(table):
        raise InputError(
            "no picture has both a popularity and a vector; give the same names in the table as in the cache"
        )

    filled = [name for name in table.column_names if name == "count" or table[name].null_count < len(table)]
    table = table.select([name for name in filled if name not in OWN_COLUMNS])
    table = table.append_column("popularity", pa.array(percentiles(values)))
    for name in ("image_id", "width", "height"):
        table = table.append_column(name, metadata[name].take(vector_rows))
    order = np.argsort(-values, kind="stable")
    return PopularRows(table.take(order), vector_rows[order], int((found < 0).sum()), without)


def popularity_values(table: pa.Table, half_life_s: float | None) -> Floats:
    """(n,) float64: counts, or posterior rates if there are exposures, decayed by age. NaN for a missing count."""
    values = counts = _numbers(table, "count")
    if "exposures" in table.column_names and table["exposures"].null_count < len(table):
        exposures = _numbers(table, "exposures")
        known = ~np.isnan(counts)
        if (bad := known & ~(exposures >= counts)).any():
            key = table["image"][int(np.argmax(bad))].as_py()
            raise InputError(
                f"{int(bad.sum())} pictures have no exposures, or fewer than their count; the first is {key!r}"
            )
        values = np.full(len(counts), np.nan)
        values[known] = posterior_rates(counts[known], exposures[known])
    if half_life_s is None:
        return values
    if "timestamp" not in table.column_names:
        raise InputError(f"--half-life-days needs a column 'timestamp'; the table has {', '.join(table.column_names)}")
    times = seconds(table["timestamp"], table["image"])
    if (untimed := ~np.isnan(values) & np.isnan(times)).any():
        key = table["image"][int(np.argmax(untimed))].as_py()
        raise InputError(f"{int(untimed.sum())} pictures with a count have no timestamp; the first is {key!r}")
    return decayed(values, np.nanmax(times) - times, half_life_s) if (~np.isnan(times)).any() else values


def _numbers(table: pa.Table, name: str) -> Floats:
    """(n,) float64 with NaN for null. Raise InputError for numbers that are negative or not finite."""
    values = floats(table[name])
    if (bad := np.asarray(table[name].is_valid()) & ~(np.isfinite(values) & (values >= 0))).any():
        first = int(np.argmax(bad))
        raise InputError(
            f"{int(bad.sum())} values of {name!r} are negative or not finite; the first is {values[first]}, of"
            f" {table['image'][first].as_py()!r}; wanted 0 or more, or an empty cell if it is unknown"
        )
    return values


def _refuse_repeated(keys: pa.ChunkedArray) -> None:
    counted = pc.value_counts(keys)
    if len(counted) < len(keys):
        repeated = counted.filter(pc.greater(counted.field("counts"), 1)).field("values")
        raise InputError(
            f"the table of popularity names {len(repeated)} pictures more than once, such as {repeated[0].as_py()!r}:"
            " wanted one row for each picture"
        )


def _source_rows(table: pa.Table, pictures: Pictures, place: Place | None) -> Ints:
    """(n,) the rows of source pictures, which `source_path` names; -1 for none. Raise InputError for a source without a
    vector."""
    found = np.full(len(table), -1)
    if "source_path" not in table.column_names:
        return found
    keys = table["source_path"]
    named = np.asarray(keys.is_valid())
    found[named] = pictures.image_rows(keys.filter(pa.array(named)), place)
    if (lacking := named & (found < 0)).any():
        raise InputError(
            f"{int(lacking.sum())} pictures were made from others that have no vector; the first is"
            f" {keys[int(np.argmax(lacking))].as_py()!r}: embed these into the cache too, or leave source_path empty"
        )
    return found


def _with_predicted(
    values: Floats,
    table: pa.Table,
    pictures: Pictures,
    vector_rows: Ints,
    predict: Predict | None,
    place: Place | None,
) -> Floats:
    """(n,) popularity: of known values among all known values, and of other pictures by their predicted score among all
    predicted scores."""
    if predict is None:
        raise InputError(
            "predicting the popularity of pictures without a count needs a bundle; give --missing predicted:BUNDLE"
        )
    prompts = (
        table["prompt"] if "prompt" in table.column_names else pa.chunked_array([pa.nulls(len(table), pa.string())])
    )
    sources = _source_rows(table, pictures, place)
    predicted = percentiles(predict(pictures, vector_rows, prompts, sources)).astype(np.float64)
    known = ~np.isnan(values)
    predicted[known] = percentiles(values[known])
    return predicted
