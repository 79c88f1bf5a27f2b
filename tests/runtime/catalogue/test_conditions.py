import builtins
import datetime
import operator
import random
from decimal import Decimal
from fractions import Fraction
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from catalogue_fakes import make_catalogue, unit_vectors

from embed.spec import InputError
from runtime.catalogue.conditions import matching, milvus_expression, resolved
from runtime.catalogue.filters import MAX_CHARS, MAX_DEPTH

N = 40
COMPARE = {
    "=": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
UTC = datetime.UTC
# Of each column: its type, what it holds beside nulls, and what it is compared with, as written and as it is.
COLUMNS = {
    "whole": (
        pa.int64(),
        [-2, 0, 1, 3, 2**53],
        {"1": 1, "3.0": 3, "2.5": 2.5, "-1e3": -1000, "9007199254740992": 2**53},
    ),
    "small": (pa.uint8(), [0, 1, 255], {"-1": -1.0, "0": 0, "1": 1, "254.5": 254.5, "255": 255, "256": 256.0}),
    "real": (pa.float64(), [-1.5, 0.0, 2.0, 2.5, np.nan, np.inf], {"2": 2, "2.5": 2.5, "-.5": -0.5, "-0": 0}),
    "half": (pa.float32(), [0.1, 0.25, 7.0], {"0.1": 0.1, "25e-2": 0.25, "7": 7}),
    "price": (
        pa.decimal128(10, 2),
        [Decimal("0.10"), Decimal("9.00"), Decimal("10.00")],
        {"0.1": Decimal("0.1"), "9": Decimal(9)},
    ),
    "text": (pa.string(), ["", "a", "it's", 'say "x"\\\n', "é", "z"], {"'a'": "a", "'it''s'": "it's", "'ä'": "ä"}),
    "kind": (pa.dictionary(pa.int32(), pa.string()), ["x", "y"], {"'x'": "x", "'w'": "w"}),
    "flag": (pa.bool_(), [True, False], {"true": True, "False": False}),
    "day": (
        pa.date32(),
        [datetime.date(2023, 12, 31), datetime.date(2024, 5, 1)],
        {"2024-05-01": datetime.date(2024, 5, 1), "'2024-01-01'": datetime.date(2024, 1, 1)},
    ),
    "at": (
        pa.timestamp("ms", "Europe/Berlin"),
        [datetime.datetime(2024, 5, 1, tzinfo=UTC), datetime.datetime(2024, 10, 27, 0, 30, 0, 5000, UTC)],
        {
            "2024-05-01": datetime.datetime(2024, 5, 1, tzinfo=UTC),
            "'2024-10-27 02:30:00.005+02'": datetime.datetime(2024, 10, 27, 0, 30, 0, 5000, UTC),
            "'2024-10-27T00:30:00Z'": datetime.datetime(2024, 10, 27, 0, 30, tzinfo=UTC),
        },
    ),
    "naive": (
        pa.timestamp("us"),
        [datetime.datetime(2024, 5, 1), datetime.datetime(2024, 5, 1, 12)],
        {"2024-05-01": datetime.datetime(2024, 5, 1), "'2024-05-01T14:00+02:00'": datetime.datetime(2024, 5, 1, 12)},
    ),
}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    rng = random.Random(0)
    columns = {
        name: pa.array([rng.choice([None, *held]) for _ in range(N)], type.value_type).dictionary_encode()
        if pa.types.is_dictionary(type)
        else pa.array([rng.choice([None, *held]) for _ in range(N)], type)
        for name, (type, held, _) in COLUMNS.items()
    }
    labels = pa.table({"image": [f"p{i}.png" for i in range(N)], "count": pa.array([1.0] * N), **columns})
    return make_catalogue(tmp_path_factory.mktemp("c"), unit_vectors(N, 4), labels)


def some_filter(rng, depth=3):
    """A filter as a tree: ("and" | "or", trees), ("not", tree), (sign, column, [values as written])."""
    kind = rng.choice(["and", "or", "not", "leaf"]) if depth else "leaf"
    if kind in ("and", "or"):
        return kind, [some_filter(rng, depth - 1) for _ in range(rng.randint(2, 3))]
    if kind == "not":
        return kind, some_filter(rng, depth - 1)
    column = rng.choice(list(COLUMNS))
    values = list(COLUMNS[column][2])
    kind = rng.choice(["is null", "is not null", "in", "not in", *COMPARE, *COMPARE])
    if kind.endswith("null"):
        return kind, column, []
    return kind, column, [rng.choice(values) for _ in range(rng.randint(1, 3) if kind.endswith("in") else 1)]


def written(tree):
    kind, *rest = tree
    if kind in ("and", "or"):
        return "(" + f" {kind} ".join(map(written, rest[0])) + ")"
    if kind == "not":
        return f"NOT {written(rest[0])}"
    column, values = rest
    if kind.endswith("in"):
        return f"{column} {kind} ({', '.join(values)})"
    return f'"{column}" {kind} {"".join(values)}'


def truth(tree, row):
    """True, False or None of one row: SQL's logic, one value at a time."""
    kind, *rest = tree
    if kind in ("and", "or"):
        found = [truth(child, row) for child in rest[0]]
        decides = kind == "or"
        return decides if decides in found else None if None in found else not decides
    if kind == "not":
        found = truth(rest[0], row)
        return None if found is None else not found
    column, values = rest
    value = row[column]
    if isinstance(value, float) and not np.isfinite(value):
        value = None
    if column == "at" and value is not None:
        value = value.astimezone(UTC)  # Python finds nothing equal to an hour that summer time repeats
    if kind.endswith("null"):
        return (value is None) == (kind == "is null")
    if value is None:
        return None
    others = [COLUMNS[column][2][text] for text in values]
    if kind.endswith("in"):
        return (value in others) == (kind == "in")
    return COMPARE[kind](value, others[0])


def expression(tree):
    """The same for pyarrow to evaluate."""
    kind, *rest = tree
    if kind in ("and", "or"):
        return reduce(operator.and_ if kind == "and" else operator.or_, map(expression, rest[0]))
    if kind == "not":
        return ~expression(rest[0])
    column, values = rest
    type, field = COLUMNS[column][0], pc.field(column)
    if kind.endswith("null"):
        return field.is_null() if kind == "is null" else field.is_valid()
    others = [COLUMNS[column][2][text] for text in values]
    if pa.types.is_floating(type) or float in map(builtins.type, others):
        # Doubles, or pyarrow would cut the value to 32 bits.
        field, others = field.cast(pa.float64()), [pa.scalar(value, pa.float64()) for value in others]
    elif pa.types.is_temporal(type):
        others = [pa.scalar(value, type) for value in others]
    if kind.endswith("in"):
        found = reduce(operator.or_, [field == value for value in others])
        return found if kind == "in" else ~found
    return COMPARE[kind](field, others[0])


FILTERS = [some_filter(random.Random(seed)) for seed in range(2000)]


def test_two_thousand_filters_keep_the_rows_that_sql_keeps(catalogue):
    table, rows = catalogue.rows, catalogue.rows.to_pylist()
    plain = table.set_column(table.column_names.index("kind"), "kind", table["kind"].cast(pa.string()))
    finite = pc.if_else(pc.is_finite(table["real"]), table["real"], None)
    plain = plain.set_column(table.column_names.index("real"), "real", finite)
    kept = 0
    for tree in FILTERS:
        found = matching(written(tree), table)
        assert found.tolist() == [truth(tree, row) is True for row in rows], written(tree)
        assert plain.filter(expression(tree))["image"].equals(table.filter(found)["image"]), written(tree)
        kept += found.sum()
    assert 0.2 < kept / N / len(FILTERS) < 0.8


@pytest.mark.filterwarnings("ignore:::(pymilvus|milvus_lite|pkg_resources|google)")
def test_milvus_keeps_the_same(catalogue, tmp_path):
    pytest.importorskip("pymilvus", reason="needs the extra milvus: pip install 'plaudit[milvus]'")
    from runtime.catalogue.milvus import upload

    milvus = upload(catalogue, str(tmp_path / "m.db"))

    def found(where):
        entities = milvus.client.query("plaudit", filter=milvus.expression(where), output_fields=["key"])
        return {entity["key"] for entity in entities}

    filters = list(map(written, FILTERS[::4]))  # each is a call of some milliseconds
    filters += ["not image in ('p1.png', 'p2.png')", "image is null", "image != 'p1.png'", "image_id < '00f'"]
    filters += ["count is null or popularity > .5", "not width = 8", "whole = 1.5", "not (flag < true or flag >= true)"]
    filters += [reduce(lambda inner, i: f"not (whole = {i} or {inner})", range(MAX_DEPTH // 2), "small = 1")]
    controls = ", ".join("'" + chr(code) + "'" for code in range(39))
    filters += [f"text in ({controls}, '\\')", "whole = 0" + " or whole = 1" * 700]
    rng = random.Random(1)
    filters += [where for _ in range(300) if readable(where := mutated(rng, written(some_filter(rng, 1))), catalogue)]
    for where in filters:
        assert found(where) == set(catalogue.rows.filter(matching(where, catalogue.rows))["image"].to_pylist()), where
    milvus.close()


@pytest.mark.parametrize(
    "type", [pa.int8(), pa.int32(), pa.int64(), pa.uint8(), pa.uint64(), pa.float32(), pa.float64()]
)
def test_numbers_compare_exactly_whatever_their_size(type):
    if pa.types.is_integer(type):
        low, high = int(np.iinfo(str(type)).min), int(np.iinfo(str(type)).max)
        values = [low, low + 1, 0, 1, high - 1, high]
    else:
        low, high = -(2**24), 2**53
        values = [float(low), -1.5, 0.0, 0.5, 1.0, float(high)]
    near = [bound + Decimal(step) for bound in (low, 0, high) for step in ("-1", "-.5", "0", ".5", "1")]
    texts = [*map(str, near), str(2**63), str(-(2**63) - 1), str(2**64), "1e400", "-1e400", "1e-400", "9" * 5000]
    table = pa.table({"x": pa.array([*values, None], type)})
    for text in texts:
        number = Fraction(Decimal(text)) if pa.types.is_integer(type) else float(text)
        for sign, compare in COMPARE.items():
            expected = [compare(value, number) for value in values]
            assert matching(f"x {sign} {text}", table).tolist() == [*expected, False], (sign, text)
            assert matching(f"not x {sign} {text}", table).tolist() == [*(not one for one in expected), False]
    found = matching(f"x in ({', '.join(texts)})", table)
    assert found.tolist() == [value in map(Decimal, texts) for value in [*values, None]]


def readable(where, catalogue):
    try:
        return resolved(where, catalogue.rows.schema) is not None
    except InputError:
        return False


def mutated(rng, text):
    """A filter with a few characters taken out, doubled, moved or replaced."""
    for _ in range(rng.randint(1, 2)):
        at, to = sorted(rng.choices(range(len(text) + 1), k=2))
        piece = rng.choice(
            ["", text[at:to] * 2, *"()'\"<>=!,.-+e0 ", "\n", "\0", "\ud800", "é", "٣", "not ", " null", "nan"]
        )
        text = text[:at] + piece + text[to if rng.random() < 0.2 else at :]
    return text


def test_whatever_is_written_keeps_rows_or_is_said_to_be_wrong(catalogue):
    rng = random.Random(0)
    letters = "()'\"<>=!,.-+eE019 \t\nantorisul_é☃\ud800\0"
    outcomes = {True: 0, False: 0}
    for _ in range(2000):
        for where in mutated(rng, written(some_filter(rng, 1))), "".join(rng.choices(letters, k=rng.randint(0, 60))):
            try:
                found = matching(where, catalogue.rows)
                milvus_expression(resolved(where, catalogue.rows.schema), {}).encode()
            except InputError as error:
                assert "\n" not in str(error) and len(str(error)) < 1000
                str(error).encode()
                outcomes[False] += 1
            else:
                assert found.shape == (N,) and found.dtype == bool
                outcomes[True] += 1
    assert min(outcomes.values()) > 50, outcomes


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("(" * 250 + "whole = 1" + ")" * 250, f"nested deeper than {MAX_DEPTH} levels"),
        ("not " * 250 + "whole = 1", f"nested deeper than {MAX_DEPTH} levels"),
        (f"text = '{'x' * 100_000}'", f"100009 characters; wanted {MAX_CHARS} at most"),
        ("whole = nan", "wanted a value"),
        ("real < -inf", "cannot be read"),
        ("whole = 1e99999999999999999999", "a smaller number, got '1e9"),
        ("text = '\ud800'", "not valid text"),
        ("day = '2024-02-30'", "'day', which holds date32.*, with '2024-02-30'"),
        ("day = 20240501", "'day', which holds date32.*, with 20240501"),
        ("text = true", "'text', which holds string, with True"),
        ("kind in ('x', 1)", "'kind', which holds string, with 1"),
    ],
)
def test_filters_out_of_bounds_are_said(catalogue, where, message):
    with pytest.raises(InputError, match=message):
        matching(where, catalogue.rows)


def test_the_longest_and_the_deepest_filters_are_read(catalogue):
    deep = "(" * (MAX_DEPTH - 1) + "not whole = 1" + ")" * (MAX_DEPTH - 1)
    assert matching(deep, catalogue.rows).tolist() == matching("whole != 1", catalogue.rows).tolist()
    long = "whole = 1" + " or whole = 1" * ((MAX_CHARS - 9) // 13)
    assert matching(long, catalogue.rows).tolist() == matching("whole = 1", catalogue.rows).tolist()


def test_columns_of_every_type():
    table = pa.table(
        {
            "nothing": pa.nulls(2),
            "view": pa.array(["a", "b"], pa.string_view()),
            "half": pa.array([0.5, None], pa.float16()),
            "span": pa.array([1, None], pa.duration("s")),
            "date64": pa.array([datetime.date(2024, 5, 1), None], pa.date64()),
        }
    )
    for where, expected in {
        "nothing = 1 or nothing < 'x' or not nothing in (1)": [False, False],
        "nothing is null": [True, True],
        "view > 'a'": [False, True],
        "half < 1": [True, False],
        "span is null": [False, True],
        "date64 = 2024-05-01": [True, False],
        "date64 > '2024-04-30 23:59:59.999999999'": [True, False],
    }.items():
        assert matching(where, table).tolist() == expected, where
        assert matching(where, table.slice(0, 0)).tolist() == []
    with pytest.raises(InputError, match=r"'span', which holds duration.s., with 1"):
        matching("span = 1", table)
