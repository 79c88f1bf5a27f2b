"""One table in every physical form that people have it in: it reads the same, or is refused in one line."""

import csv
import gzip
import io
import json
import math
import tarfile
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from embed.records.formats import Records, read_records
from embed.spec import InputError

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


def found(records: Records) -> tuple[Any, ...]:
    pictures = [row["key"] for batch in records.images() for row in batch.to_pylist()]
    texts = {text for batch in records.prompts() for text in batch["text"].to_pylist()}
    labels = records.labels()
    standard = labels.select([name for name in labels.column_names if name in STANDARD])
    return sorted(pictures), texts, standard.to_pylist()


STANDARD = ("image", "prompt", "count", "exposures", "group", "image_a", "image_b", "prompt_a", "prompt_b", "target")


def expected(rows: Rows) -> tuple[Any, ...]:
    if "image" in rows[0]:
        texts = {row["prompt"] for row in rows} - {None}
        return [row["image"] for row in rows], texts, [row for row in rows if row["count"] is not None]
    pictures = sorted([row["image_0_url"] for row in rows] + [row["image_1_url"] for row in rows])
    labels = [
        {
            "image_a": row["image_0_url"],
            "image_b": row["image_1_url"],
            "prompt_a": row["caption"],
            "prompt_b": row["caption"],
            "target": row["label_0"] if row["has_label"] else 0.5,
        }
        for row in rows
    ]
    return pictures, {row["caption"] for row in rows}, labels


# Parquet and Arrow


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


# JSON


def jsons(
    rows: Rows,
    folder: Path,
    name: str = "t.json",
    encoding: str = "utf-8",
    sparse: bool = False,
    change: Callable[[Any], Any] = lambda value: value,
    between: str = "\n",
    **options: Any,
) -> Path:
    records: Rows = [
        {column: change(value) for column, value in row.items() if not (sparse and (value is None or value is True))}
        for row in rows
    ]
    text = json.dumps(records, **options)
    if "l" in name:
        text = between.join(json.dumps(record, **options) for record in records)
    data = text.encode(encoding)
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder / name


def nan_for_null(value: Any) -> Any:
    return math.nan if value is None else value


def pandas_json(rows: Rows, folder: Path, **options: Any) -> Path:
    pd.DataFrame(rows).to_json(folder / "t.json", **options)
    return folder / "t.json"


FORMS |= {
    "json": jsons,
    "json-indented": partial(jsons, indent=2),
    "json-utf-8": partial(jsons, ensure_ascii=False),
    "json-bom": partial(jsons, ensure_ascii=False, encoding="utf-8-sig"),
    "json-utf-16": partial(jsons, ensure_ascii=False, encoding="utf-16"),
    "json-sparse": partial(jsons, sparse=True),
    "json-floats": partial(jsons, change=lambda value: float(value) if type(value) is int else value),
    "json-numbers-as-text": partial(jsons, change=lambda value: str(value) if type(value) is int else value),
    "json-gz": partial(jsons, name="t.json.gz"),
    "json-pandas-records": partial(pandas_json, orient="records"),
    "json-pandas-lines": partial(pandas_json, orient="records", lines=True),
    "jsonl": partial(jsons, name="t.jsonl"),
    "jsonl-in-json": partial(jsons, name="lines.json"),
    "jsonl-windows": partial(jsons, name="t.jsonl", between="\r\n"),
    "jsonl-sparse": partial(jsons, name="t.jsonl", sparse=True),
    "jsonl-gz": partial(jsons, name="t.jsonl.gz"),
    "jsonl-indented": partial(jsons, name="t.jsonl", indent=1),
    "ndjson": partial(jsons, name="t.ndjsonl".replace("jsonl", "json"), between="\n"),
}


# Shards


def shards(rows: Rows, folder: Path, names: str, source: str, write: Form) -> str:
    for number, start in enumerate(range(0, ROWS, 50)):
        (folder / "part").mkdir(exist_ok=True)
        written = write(rows[start : start + 50], folder / "part")
        path = folder / names.format(number)
        path.parent.mkdir(exist_ok=True)
        written.rename(path)
        (folder / "part").rmdir()
    return str(folder / source)


def saved(rows: Rows, folder: Path) -> str:
    """As the `datasets` library saves to disk."""
    shards(rows, folder, "data-{:05}-of-00004.arrow", "", partial(arrow, stream=True))
    files = [{"filename": f"data-{number:05}-of-00004.arrow"} for number in range(4)]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": None}))
    (folder / "dataset_info.json").write_text("{}")
    return str(folder)


FORMS |= {
    "shards-braces": partial(shards, names="t-{}.parquet", source="t-{0..3}.parquet", write=parquet),
    "shards-stars": partial(shards, names="t-{}.parquet", source="t-*.parquet", write=parquet),
    "shards-list": partial(shards, names="{}.parquet", source="{0,1,{2..3}}.parquet", write=parquet),
    "shards-folder": partial(shards, names="t-{}.parquet", source="", write=parquet),
    "shards-hugging-face": partial(
        shards, names="data/train-{:05}-of-00004.parquet", source="", write=partial(parquet, row_group_size=3)
    ),
    "shards-csv": partial(shards, names="{}.csv", source="{0..3}.csv", write=separated),
    "shards-jsonl": partial(shards, names="{}.jsonl", source="?.jsonl", write=partial(jsons, name="t.jsonl")),
    "shards-json-sparse": partial(shards, names="{}.json", source="[0-3].json", write=partial(jsons, sparse=True)),
    "shards-arrow": partial(shards, names="{}.arrow", source="*.arrow", write=partial(arrow, stream=True)),
    "saved-dataset": saved,
}
# Tars hold one picture a sample


def tar(rows: Rows, folder: Path, name: str = "t.tar", dotted: str = "", mode: Any = "w") -> Path:
    with tarfile.open(folder / name, mode) as file:
        for row in rows:
            facts = {column: value for column, value in row.items() if column not in ("image", "prompt")}
            members = {"JPG": row["image"].encode(), "json": json.dumps(facts).encode()}
            if row["prompt"] is not None:
                members["txt"] = row["prompt"].encode()
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{dotted}{row['image']}.{extension}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return folder / name


TARS: dict[str, Form] = {
    "tar": tar,
    "tar-gz": partial(tar, name="t.tar.gz", mode="w:gz"),
    "tar-pax": lambda rows, folder: tar(rows, folder, dotted="x" * 200 + "/"),
    "tar-dotted": lambda rows, folder: tar(rows, folder, dotted="v1."),
    "tar-shards": partial(shards, names="{}.tar", source="{0..3}.tar", write=tar),
}


# What cannot be read right is refused, in one line that says what.

REFUSED: dict[str, tuple[Form, str]] = {
    "csv-decimal-commas": (
        partial(separated, delimiter=";", numbers=lambda value: f"{value},0"),
        r"column '(count|label_0)' has '.,0' in row [01] \(counted from 0\); wanted a number",
    ),
    "csv-latin-1": (
        lambda rows, folder: separated([{**rows[0], key(rows): "caf\u00e9"}], folder, encoding="latin-1"),
        "UTF8",
    ),
    "csv-two-separators": (
        lambda rows, folder: write(folder / "t.csv", "image;x,count\n1;2,3\n"),
        r"separated by commas or semicolons; say which in a first line, such as sep=,$",
    ),
    "json-pandas-columns": (pandas_json, "orient='records'"),
    "json-pandas-split": (partial(pandas_json, orient="split"), "orient='records'"),
    "json-pandas-table": (partial(pandas_json, orient="table"), "orient='records'"),
    "json-pandas-values": (partial(pandas_json, orient="values"), r"record 0 is .\[.*; wanted a JSON object"),
    "json-two-arrays": (
        lambda rows, folder: write(folder / "t.json", json.dumps(rows) + json.dumps(rows)),
        "More text after the end of the array",
    ),
    "parquet-lists": (
        lambda rows, folder: parquet(rows, folder, [(str, lambda column: pa.array([[v] for v in column.to_pylist()]))]),
        r"column '\w+' holds list<.*>; wanted text: cast it",
    ),
    "parquet-structs": (
        lambda rows, folder: parquet(rows, folder, [(int, lambda column: pa.StructArray.from_arrays([column], ["n"]))]),
        r"column '\w+' holds struct<n: int64>; wanted a number such as 1234.5: cast it",
    ),
    "parquet-thousands": (
        lambda rows, folder: parquet(
            rows,
            folder,
            [(int, lambda column: pa.array([None if v is None else f"{v},000" for v in column.to_pylist()]))],
        ),
        r"column '(count|label_0)' has '\d,000' in row \d",
    ),
}


def key(rows: Rows) -> str:
    return "image" if "image" in rows[0] else "image_0_url"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture(params=[COUNTS, PAIRS], ids=["counts", "pairs"])
def rows(request: pytest.FixtureRequest) -> Rows:
    found: Rows = request.param
    return found


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_table_reads_the_same(form: str, rows: Rows, tmp_path: Path) -> None:
    assert found(read_records(FORMS[form](rows, tmp_path))) == expected(rows)


@pytest.mark.parametrize("form", TARS)
def test_every_form_of_a_tar_reads_the_same(form: str, tmp_path: Path) -> None:
    pictures, texts, rows = found(read_records(TARS[form](COUNTS, tmp_path)))
    before = {"tar-pax": "x" * 200 + "/", "tar-dotted": "v1."}.get(form, "")
    names, _, labels = expected(COUNTS)
    assert (pictures, texts) == ([before + name for name in names], {text.strip() for text in PROMPTS})
    stripped = [{**row, "prompt": row["prompt"] and row["prompt"].strip()} for row in labels]
    assert rows == [{**row, "image": before + row["image"]} for row in stripped]


@pytest.mark.parametrize("form", REFUSED)
def test_what_cannot_be_read_right_is_refused_in_one_line(form: str, rows: Rows, tmp_path: Path) -> None:
    make, message = REFUSED[form]
    with pytest.raises(InputError, match=message) as caught:
        found(read_records(make(rows, tmp_path)))
    assert "\n" not in str(caught.value)


def test_there_are_as_many_forms_as_people_have() -> None:
    assert len(FORMS) + len(TARS) + len(REFUSED) >= 60
