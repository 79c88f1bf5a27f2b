"""A table of counts and one of comparisons, and the forms of Arrow and of text in which people have them."""

import csv
import gzip
import io
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Rows = list[dict[str, Any]]
Form = Callable[[Rows, Path], Any]  # writes the rows, and gives what `read_records` takes

ROWS = 200
PROMPTS = ["a cat", 'two\nlines, a comma; a "quote"\tand a tab', "caf\u00e9 \u4e2d \U0001f600", "  7"]
# Popularity with unknown counts and prompts; and comparisons, of which some are ties. A key may first come late.
COUNTS: Rows = [
    {
        "image": f"{i:04}",
        "prompt": PROMPTS[i % 4] if i >= 110 else None,
        "count": i // 2 if i % 7 else None,
        "exposures": 100 + i // 2,
        "group": f"g{i % 3}",
    }
    for i in range(ROWS)
]
PAIRS: Rows = [
    {
        "caption": PROMPTS[i % 4],
        "image_0_url": f"{i:04}",
        "image_1_url": f"https://e.org/{i}.png",
        "label_0": i % 2,
        "label_1": 1 - i % 2,
        "has_label": i < 120 or i % 3 > 0,
    }
    for i in range(ROWS)
]
FACTS = ("count", "exposures", "label_0", "label_1")  # columns of numbers


def cast(rows: Rows, kinds: dict[Any, Callable[[pa.Array], pa.Array]]) -> pa.Table:
    """The rows, with all columns of texts, numbers or booleans made another kind."""
    columns = {}
    for name in rows[0]:
        column = pa.array([row[name] for row in rows])
        kind = {pa.string(): str, pa.int64(): int, pa.bool_(): bool, pa.null(): None}[column.type]
        columns[name] = kinds[kind](column) if kind in kinds else column
    return pa.table(columns)


def parquet(rows: Rows, folder: Path, kinds: Any = (), **options: Any) -> Path:
    pq.write_table(cast(rows, dict(kinds)), folder / "t.parquet", **options)
    return folder / "t.parquet"


def to(type: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    return lambda column: column.cast(type)


def decimals(type: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    return lambda column: pa.array([None if v is None else Decimal(v) for v in column.to_pylist()], type)


def extension(type: pa.DataType, storage: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    return lambda column: pa.ExtensionArray.from_storage(type, column.cast(storage))


def arrow(rows: Rows, folder: Path, stream: bool, kinds: Any = (), **options: Any) -> Path:
    table = cast(rows, dict(kinds))
    path, new = folder / "t.arrow", pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(str(path), table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=70)
    return path


TEXTS = {
    "large_string": to(pa.large_string()),
    "string_view": to(pa.string_view()),
    "dictionary": lambda column: column.dictionary_encode(),
    "dictionary-of-large": lambda column: column.cast(pa.large_string()).dictionary_encode(),
}
NUMBERS = {
    **{name: to(getattr(pa, name)()) for name in ("int16", "int32", "uint8", "uint16", "uint32", "uint64")},
    **{name: to(getattr(pa, name)()) for name in ("float16", "float32", "float64", "string", "large_string")},
    "decimal32": decimals(pa.decimal32(6, 2)),
    "decimal64": decimals(pa.decimal64(9, 1)),
    "decimal128": decimals(pa.decimal128(20, 0)),
    "decimal256": decimals(pa.decimal256(60, 3)),
    "dictionary": lambda column: column.dictionary_encode(),
    "texts-with-spaces": lambda column: pc.binary_join_element_wise(" ", column.cast(pa.string()), ".0 ", ""),
}
BOOLEANS = {
    **{name: to(getattr(pa, name)()) for name in ("int8", "uint64", "float64", "string")},
    "bool8": extension(pa.bool8(), pa.int8()),
    "texts-of-pandas": lambda column: pa.array([str(value) for value in column.to_pylist()]),
}
IN_ARROW = {
    "run-ends": pc.run_end_encode,
    "dictionary-of-views": lambda column: pa.DictionaryArray.from_arrays(
        column.dictionary_encode().indices, column.dictionary_encode().dictionary.cast(pa.string_view())
    ),
    "json": extension(pa.json_(), pa.string()),
}

FORMS: dict[str, Form] = {
    "parquet": parquet,
    "parquet-small-groups": partial(parquet, row_group_size=7),
    "parquet-one-page-v2": partial(parquet, data_page_version="2.0", use_dictionary=False, compression="zstd"),
    "parquet-without-arrow-schema": partial(parquet, store_schema=False),
    **{f"parquet-text-{name}": partial(parquet, kinds=[(str, kind)]) for name, kind in TEXTS.items()},
    **{f"parquet-number-{name}": partial(parquet, kinds=[(int, kind)]) for name, kind in NUMBERS.items()},
    **{f"parquet-boolean-{name}": partial(parquet, kinds=[(bool, kind)]) for name, kind in BOOLEANS.items()},
    **{f"arrow-text-{name}": partial(arrow, stream=True, kinds=[(str, kind)]) for name, kind in IN_ARROW.items()},
    "arrow-number-run-ends": partial(arrow, stream=False, kinds=[(int, pc.run_end_encode)]),
    "arrow-file": partial(arrow, stream=False),
    "arrow-file-lz4": partial(arrow, stream=False, compression="lz4"),
    "memory-pyarrow": lambda rows, folder: pa.Table.from_pylist(rows),
    "memory-reader": lambda rows, folder: pa.Table.from_pylist(rows).to_reader(),
    "memory-pandas": lambda rows, folder: pd.DataFrame(rows),
    "memory-pandas-nullable": lambda rows, folder: pd.DataFrame(rows).convert_dtypes(),
    "memory-pandas-categories": lambda rows, folder: pd.DataFrame(rows).astype("category"),
}


# CSV


def separated(
    rows: Rows,
    folder: Path,
    name: str = "t.csv",
    encoding: str = "utf-8",
    before: str = "",
    compress: Callable[[bytes], bytes] = bytes,
    numbers: Callable[[Any], str] = str,
    header: Callable[[str], str] = str,
    **dialect: Any,
) -> Path:
    file = io.StringIO(newline="")
    writer = csv.writer(file, **{"lineterminator": "\n", **dialect})
    writer.writerow([header(column) for column in rows[0]])
    for row in rows:
        cells = [numbers(value) if column in FACTS and value is not None else value for column, value in row.items()]
        writer.writerow(cells)
    (folder / name).write_bytes(compress((before + file.getvalue()).encode(encoding)))
    return folder / name


def all_quoted(rows: Rows, folder: Path) -> Path:
    """Every cell in quotation marks but those of nulls."""
    quoted = [["" if v is None else '"' + str(v).replace('"', '""') + '"' for v in row.values()] for row in rows]
    (folder / "t.csv").write_text("\n".join(",".join(line) for line in [list(rows[0]), *quoted]))
    return folder / "t.csv"


def from_pandas(rows: Rows, folder: Path, name: str = "t.csv", **options: Any) -> Path:
    pd.DataFrame(rows).to_csv(folder / name, **options)
    return folder / name


FORMS |= {
    "csv": separated,
    "csv-bom": partial(separated, encoding="utf-8-sig"),
    "csv-windows": partial(separated, lineterminator="\r\n"),
    "csv-all-quoted": all_quoted,
    "csv-utf-16": partial(separated, encoding="utf-16"),
    "csv-utf-16-le": partial(separated, encoding="utf-16-le"),
    "csv-utf-16-be": partial(separated, encoding="utf-16-be"),
    "csv-gz": partial(separated, name="t.csv.gz", compress=gzip.compress),
    "csv-semicolons": partial(separated, delimiter=";"),
    "csv-tabs": partial(separated, delimiter="\t"),
    "csv-bars": partial(separated, delimiter="|"),
    "csv-sep-line": partial(separated, delimiter=";", before="sep=;\r\n", lineterminator="\r\n"),
    "csv-excel-unicode": partial(separated, delimiter="\t", encoding="utf-16", lineterminator="\r\n"),
    "csv-sep-line-of-another": partial(separated, delimiter="~", before="sep=~\n", encoding="utf-8-sig"),
    "csv-floats": partial(separated, numbers=lambda value: f"{value}.0"),
    "csv-spaces-in-numbers": partial(separated, numbers=lambda value: f" {value} "),
    "csv-exponents": partial(separated, numbers=lambda value: f"{value:e}"),
    "csv-spaces-in-names": partial(separated, header=lambda column: f" {column} "),
    "tsv": partial(separated, name="t.tsv", delimiter="\t"),
    "tsv-with-commas": partial(separated, name="t.tsv"),
    "csv-pandas": from_pandas,
    "csv-pandas-gz": partial(from_pandas, name="t.csv.gz", index=False),
    "csv-pandas-floats": partial(from_pandas, float_format="%.3f", index=False),
}
