"""What the columns of a catalogue hold, against counts made by hand."""

from collections import Counter
from datetime import UTC, datetime

import pyarrow as pa

from runtime.overview.columns import MOST_VALUES, columns_of


def test_every_kind_of_column() -> None:
    kinds = ["b", "a", "b", None, "c", "b", "a"]
    table = pa.table(
        {
            "image": [f"p{i}" for i in range(7)],
            "popularity": [0.5] * 7,
            "kind": kinds,
            "coded": pa.array(kinds).dictionary_encode(),
            "flag": [True, None, False, True, True, None, False],
            "size": [3, 1, None, 2, 9, 4, 5],
            "rate": [0.5, float("nan"), float("inf"), -1.5, None, 2.0, 0.0],
            "day": pa.array([datetime(2024, 1, d, tzinfo=UTC) for d in range(1, 8)], pa.timestamp("s", "UTC")),
            "list": [[1]] * 7,
            "nothing": pa.nulls(7, pa.string()),
        }
    )
    found = {column.name: column for column in columns_of(table)}
    assert set(found) == set(table.column_names) - {"image", "popularity"}
    for name in ("kind", "coded"):
        assert found[name].kind == "text" and found[name].nulls == 1 and found[name].distinct == 3
        assert found[name].values == tuple(Counter(one for one in kinds if one).most_common())
    assert found["flag"].kind == "boolean" and dict(found["flag"].values) == {True: 3, False: 2}
    assert (found["size"].kind, found["size"].low, found["size"].high, found["size"].nulls) == ("number", 1, 9, 1)
    assert (found["rate"].low, found["rate"].high, found["rate"].nulls) == (-1.5, 2.0, 3)
    assert found["day"].kind == "time" and str(found["day"].low).startswith("2024-01-01")
    assert found["list"].kind == "other" and found["nothing"].values == ()


def test_of_many_values_the_most_frequent_are_named_and_none_where_all_differ() -> None:
    values = [f"v{i}" for i in range(MOST_VALUES + 5)]
    often, once = columns_of(pa.table({"often": [*values, "v7"], "once": [*values, "another"]}))
    assert often.values[0] == ("v7", 2) and len(often.values) == MOST_VALUES and often.distinct == MOST_VALUES + 5
    assert once.values == () and once.distinct == MOST_VALUES + 6
