"""Pair accuracy on slices of the held-out rows, to see for whom or for what a head works. Knows scores, no head."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pyarrow as pa

from embed.arrays import Floats, Ints, floats
from embed.spec import InputError
from heads.data.comparisons import codes
from heads.evaluation.measured import Measured

BINS = 4  # slices of a column with many different numbers


def pair_accuracy_by(measured: Measured, scores: Mapping[str, Floats], column: str) -> dict[str, object]:
    """Pair accuracy (tie = ½) for each value of a column of the table, over the pairs of which both rows have this
    value. Pairs of all parts are pooled. The value with most pairs comes first. Raise InputError for an unknown column.

    A column with more than twice BINS different numbers is cut into BINS ranges with equally many held-out rows.
    `across` counts the pairs with a winner whose sides have different values. They are in no slice.
    """
    name, value = _slice_of_rows(measured, column)
    a, b = value[measured.pairs.row_a], value[measured.pairs.row_b]
    credit = {n: measured.credit(s) for n, s in scores.items()}
    found = []
    for number in np.unique(a[(a == b) & measured.decided]):
        inside = (a == number) & (b == number)
        accuracy = {n: measured.pooled_interval(np.where(inside, c, np.nan)).to_json() for n, c in credit.items()}
        found.append(
            {"value": name[number], "pairs": int((inside & measured.decided).sum()), "pair_accuracy": accuracy}
        )
    across = int(((a != b) & measured.decided).sum())
    return {"by": column, "across": across, "slices": sorted(found, key=lambda one: -one["pairs"])}


def _slice_of_rows(measured: Measured, column: str) -> tuple[list[str], Ints]:
    """The names of the slices, and the number (m,) of each row's slice."""
    labels = measured.labels
    if column in labels.columns.schema.names:
        values = labels.columns[column]
        number = codes(values)
        names = [str(value) for value in values.take(pa.array(np.unique(number, return_index=True)[1])).to_pylist()]
        number_type = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
        numeric = floats(values) if number_type else None
    elif column in labels.values and column != "group":
        numeric = labels.values[column]
        distinct, number = np.unique(numeric, return_inverse=True)
        names = [f"{value:g}" for value in distinct]
    else:
        known = sorted({*labels.columns.schema.names, *labels.values} - {"group"})
        raise InputError(f"--slice-by {column!r} is not a column of the table; it has {', '.join(known)}")
    if numeric is None or len(names) <= 2 * BINS:
        return names, number
    edges = np.unique(np.nanquantile(numeric[measured.split.fold >= 0], np.linspace(0, 1, BINS + 1)[1:-1]))
    ends = ["-∞", *(f"{edge:.4g}" for edge in edges), "∞"]
    names = [f"{low} to {high}" for low, high in pairwise(ends)]
    return [*names, "unknown"], np.where(np.isnan(numeric), len(names), np.digitize(numeric, edges))
