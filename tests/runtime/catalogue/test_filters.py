import datetime
import sqlite3

import numpy as np
import pyarrow as pa
import pytest

from embed.spec import InputError
from runtime.catalogue.conditions import matching, milvus_expression, resolved

ROWS = [
    (1, "x", 1.5, "2024-01-01", True),
    (2, "it's", 2.5, "2024-01-02", False),
    (None, None, None, None, None),
    (4, "z & co", -4.5, "2024-01-04", True),
    (5, "AND", 1e3, "2023-01-04", None),
]
NAMES = ("number", "text", "real", "day", "flag")
TABLE = pa.table({name: pa.array([row[i] for row in ROWS]) for i, name in enumerate(NAMES)})


@pytest.mark.parametrize(
    "where",
    [
        "number = 1",
        "number != 1",
        "number <> 1 and real > -5",
        "not number = 1",
        "not (number = 1 or text = 'z & co')",
        "number = 1 or number = 2 and text = 'x'",
        "(number = 1 or number = 2) and text = 'x'",
        "text = 'it''s'",
        "number in (1, 4, 77) AND text <> 'x'",
        "text not in ('x', 'AND')",
        "real >= 1.5 and real < 1e3",
        "real in (-4.5, 2.5)",
        "number > 1.5",
        "number = 2.5",
        "number is null",
        "Not text Is Not Null",
        "text is not null and not number >= 4",
        "day >= '2024-01-02'",
        'flag = true or "real" = 2.5',
        "flag != true",
        "number in (1) or flag = false",
    ],
)
def test_filters_mean_what_they_mean_in_sql(where):
    with sqlite3.connect(":memory:") as database:
        database.execute("create table t (row, number integer, text, real real, day, flag)")
        database.executemany("insert into t values (?,?,?,?,?,?)", [(i, *row) for i, row in enumerate(ROWS)])
        expected = {row for (row,) in database.execute(f"select row from t where {where}")}
    database.close()
    assert set(np.flatnonzero(matching(where, TABLE))) == expected


def test_texts_are_read_as_the_dates_they_are_compared_with():
    days = [datetime.date(2024, 1, day) for day in (1, 2, 3)]
    table = pa.table({"day": days, "at": [datetime.datetime(2024, 1, day, 12) for day in (1, 2, 3)]})
    assert matching("day >= '2024-01-02'", table).tolist() == [False, True, True]
    assert matching("at < '2024-01-02 13:00:00'", table).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("colour = 1", "'colour'; there are day, flag, number, real, text"),
        ("number = 'x'", "'number', which holds int64, with 'x'"),
        ("text = 3", "'text', which holds string, with 3"),
        ("flag = 1", "'flag', which holds bool, with 1"),
        ("number =", "ends where a value was wanted"),
        ("(number = 1", "ends where '\\)' was wanted"),
        ("number ~ 1", "from '~ 1' on"),
        ("number = 1 text", "wanted the end, 'and' or 'or', got 'text'"),
        ("'x' = text", "wanted a column, got \"'x'\""),
        ("number 1", "wanted a comparison such as =, got '1'"),
        ("text = x", "wanted a value: 'text', a number, a date, true or false, got 'x'"),
        ("", "ends where a column was wanted"),
        ("__import__('os')", "wanted a comparison"),
    ],
)
def test_what_cannot_be_meant_is_said(where, message):
    with pytest.raises(InputError, match=message):
        matching(where, TABLE)


def test_milvus_expressions_quote_and_rename():
    types = {"image": pa.string(), "kind": pa.string(), "year": pa.int32(), "a": pa.float64(), "b": pa.bool_()}
    schema = pa.schema({**types, "two words": pa.int64(), "Like": pa.int64()})

    def expression(where):
        return milvus_expression(resolved(where, schema), {"image": "key"})

    where = "image = 'say \"hi\"\\' or not kind in ('a', 'it''s') and year is not null"
    assert expression(where) == (
        '(key == "say \\"hi\\"\\\\" or ((kind is not null and kind not in ["a", "it\'s"]) and year is not null))'
    )
    assert expression("a <= 1.5 or b = true") == "(a <= 1.5 or b == true)"
    # No `not` is left but those of Milvus's own comparisons, which say what they do with nulls.
    assert expression("not (year = 1 and b is null)") == "((year is not null and year != 1) or b is not null)"
    assert expression("not (year < 1 or year > 1e30)") == "(year >= 1 and year is not null)"
    assert expression("year = 1.5") == "(year is null and year is not null)"
    for name in ("two words", "Like"):
        with pytest.raises(InputError, match=f"'{name}'; rename"):
            expression(f'"{name}" = 1')
