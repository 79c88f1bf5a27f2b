"""The names of a cache's pictures: the key of each picture in its table, and the place that it was read from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embed.addresses import Place
from embed.arrays import Ints, positions, strings

if TYPE_CHECKING:
    from embed.arrays import Column


def rows_of_names(keys: "Column | Sequence[str]", names: pa.Table, ids: "Column", place: Place | None) -> Ints:
    """Return (m,) int64: the row in `ids` of the picture that each key names, or -1 if there is none.

    `names` are a cache's keys. If a picture was replaced, its name occurs twice there, and the last content is the
    current one. With `place`, two kinds of keys are also looked up by the place of their picture: keys that are not
    among the names, such as a full path for a bare name, and keys that name different pictures at several places.
    """
    names = names.take(pa.array(np.arange(len(names))[::-1]))
    keys = strings(keys)
    row_of_name = positions(names["image_id"], ids)

    def rows(values: "Column", column: str) -> Ints:
        at = positions(values, names[column])
        return np.where(at >= 0, np.append(row_of_name, -1)[at], -1)

    found = rows(keys, "image_path")
    if place is None:
        return found
    found[np.asarray(pc.is_in(keys, value_set=_at_several_places(names)))] = -1
    lost = keys.filter(pa.array(found < 0))
    if not len(lost):
        return found
    different = pc.unique(lost)
    at_place = rows(pa.array([place(key) or "" for key in different.to_pylist()], pa.string()), "uri")
    found[found < 0] = at_place[positions(lost, different)]
    return found


def _at_several_places(names: pa.Table) -> pa.Array:
    """Return the keys that name different pictures at different places."""
    counts = names.select(["image_path", "image_id", "uri"]).group_by("image_path")
    counts = counts.aggregate([("image_id", "count_distinct"), ("uri", "count_distinct")])
    several = pc.and_(pc.greater(counts["image_id_count_distinct"], 1), pc.greater(counts["uri_count_distinct"], 1))
    return counts.filter(several)["image_path"].combine_chunks()
