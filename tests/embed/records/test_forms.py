"""One table in every physical form that people have it in: it reads the same, or is refused in one line."""

import gzip
import io
import json
import math
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from table_forms import COUNTS, FORMS, PAIRS, PROMPTS, ROWS, Form, Rows, arrow, parquet, separated

from embed.records.formats import Records, read_records
from embed.spec import InputError


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
        r"separated by commas or semicolons; add a first line that says which, as sep=,$",
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
