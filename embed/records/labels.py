"""Read the labels of the papers' data formats as Arrow tables.

Each function turns a table into the columns that LABELS lists for its kind, followed by the table's other scalar
columns under their own names (`own_weight` if the labels have a `weight` too). Rows that make no sense raise InputError
with the first row numbers or ids.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embed.arrays import Bools, Floats
from embed.records.columns import (
    FLOAT,
    FLOATS,
    STRING,
    STRINGS,
    any_in_list,
    empty,
    lengths,
    pick_a_pic_picture,
    picture,
    refuse,
    source_picture,
    valid,
)
from embed.records.plain import Column
from embed.records.tables import BATCH_ROWS, Table

Kind = Literal["comparisons", "groups", "ratings", "counts"]

LABELS: dict[Kind, dict[str, pa.DataType]] = {
    "comparisons": {
        "image_a": STRING,
        "image_b": STRING,
        "prompt_a": STRING,
        "prompt_b": STRING,
        "target": pa.float32(),
        "weight": pa.float32(),
    },
    "groups": {"image": STRING, "prompt": STRING, "group": pa.int64(), "rank": pa.float32()},
    "ratings": {"image": STRING, "prompt": STRING, "rating": pa.float32()},
    "counts": {"image": STRING, "prompt": STRING, "count": FLOAT, "exposures": FLOAT, "group": STRING},
}


def social_reward(table: Table) -> pa.Table:
    """Return comparisons, won by the picture of `pos_path`.

    >>> _ = Path("pairs.csv").write_text("prompt,pos_path,neg_path,lang\\na cat,1.jpg,2.jpg,en\\n")
    >>> show(read_records("pairs.csv").labels())
    image_a  image_b  prompt_a  prompt_b  target  weight  lang
    1.jpg    2.jpg    a cat     a cat     1.0     1.0     en
    """
    sides = [picture(table, "pos_path"), picture(table, "neg_path")]
    types = {"prompt": STRING} | sides[0].key_types() | sides[1].key_types()
    rows, others = table.read(types | _source_types(table))
    images = [side.keys(table, rows) for side in sides]
    return _comparisons(table, rows, others, images, rows["prompt"], np.ones(len(rows)), np.ones(len(rows)))


def pick_a_pic(table: Table) -> pa.Table:
    """Return comparisons with target 1, 0 or 0.5 (a tie: `has_label` is false), weighted 1 / `num_example_per_prompt`.

    If `has_label` is null or the column is missing, the two labels decide. A picture is named by its uid, or else by
    the hash of its bytes, or else by its URL. If the caption of every row is empty, the pictures were compared without
    a prompt.

    >>> pairs = {"caption": ["a cat", "a dog"], "jpg_0": [b"A", b"C"], "jpg_1": [b"B", b"D"]}
    >>> pairs |= {"image_0_uid": ["a", "c"], "image_1_uid": ["b", "d"], "label_0": [0.0, 0.5], "label_1": [1.0, 0.5]}
    >>> pairs |= {"has_label": [True, False], "num_example_per_prompt": [1, 4]}
    >>> pq.write_table(pa.table(pairs), "pickapic.parquet")
    >>> show(read_records("pickapic.parquet").labels())
    image_a  image_b  prompt_a  prompt_b  target  weight
    a        b        a cat     a cat     0.0     1.0
    c        d        a dog     a dog     0.5     0.25
    """
    sides = [pick_a_pic_picture(table, 0), pick_a_pic_picture(table, 1)]
    types = {"caption": STRING, "label_0": FLOAT, "label_1": FLOAT} | sides[0].key_types() | sides[1].key_types()
    optional = _present(table, {"has_label": pa.bool_(), "num_example_per_prompt": FLOAT})
    rows, others = table.read(types | optional | _source_types(table))
    decided, weight = np.ones(len(rows), bool), np.ones(len(rows))
    if "has_label" in rows.column_names:
        decided = np.asarray(rows["has_label"].fill_null(True))
    if "num_example_per_prompt" in rows.column_names:
        examples = rows["num_example_per_prompt"].to_numpy()
        refuse(table, ~(examples >= 1), "num_example_per_prompt is not at least 1")
        weight = 1 / examples
    target = np.where(decided, _target(table, rows["label_0"], rows["label_1"], decided), 0.5)
    refuse(table, rows["caption"].is_null(), "no prompt")
    images = [side.keys(table, rows) for side in sides]
    labels = _comparisons(table, rows, others, images, rows["caption"], target, weight)
    if pc.all(pc.equal(rows["caption"], "")).as_py():
        for name in ("prompt_a", "prompt_b"):
            labels = labels.set_column(labels.schema.get_field_index(name), name, pa.nulls(len(labels), STRING))
    return labels


def imagereward(table: Table) -> pa.Table:
    """Return groups of k pictures of one prompt with their ranks. `group` is the number of the record in its file.

    >>> record = {"id": "7", "prompt": "a cat", "generations": ["1.webp", "2.webp"], "ranking": [2, 1]}
    >>> _ = Path("train.json").write_text(json.dumps([record]))
    >>> show(read_records("train.json").labels())
    image   prompt  group  rank  id
    1.webp  a cat   0      2.0   7
    2.webp  a cat   0      1.0   7
    """
    return _groups(table, "generations", "ranking")


def hpd_ranks(table: Table) -> pa.Table:
    """Return groups with ranks, the lowest being the best, from the test shape of HPD v2.

    >>> record = {"prompt": "a cat", "image_path": ["1.jpg", "2.jpg", "3.jpg"], "rank": [2, 1, 3]}
    >>> _ = Path("test.json").write_text(json.dumps([record]))
    >>> show(read_records("test.json").labels())
    image  prompt  group  rank
    1.jpg  a cat   0      2.0
    2.jpg  a cat   0      1.0
    3.jpg  a cat   0      3.0
    """
    return _groups(table, hpd_paths(table), "rank")


def hpd_preferences(table: Table) -> pa.Table:
    """Return comparisons of two pictures whose preferences sum to 1, from the train shape of HPD v2.

    >>> record = {"prompt": "a cat", "file_path": ["1.jpg", "2.jpg"], "human_preference": [0, 1], "user_hash": "u"}
    >>> _ = Path("train.json").write_text(json.dumps([record]))
    >>> show(read_records("train.json").labels())
    image_a  image_b  prompt_a  prompt_b  target  weight  user_hash
    1.jpg    2.jpg    a cat     a cat     0.0     1.0     u
    """
    paths = hpd_paths(table)
    rows, others = table.read({"prompt": STRING, paths: STRINGS, "human_preference": FLOATS} | _source_types(table))
    for name in (paths, "human_preference"):
        refuse(table, lengths(rows[name]) != 2, f"{name} has not two entries")
    first, second = (pc.list_element(rows["human_preference"], side) for side in (0, 1))
    target = _target(table, first, second, np.ones(len(rows), bool))
    images = [pc.list_element(rows[paths], side) for side in (0, 1)]
    return _comparisons(table, rows, others, images, rows["prompt"], target, np.ones(len(rows)))


def ratings(table: Table) -> pa.Table:
    """Return ratings of pictures. A row whose rating is null has no label and is left out.

    >>> _ = Path("mos.csv").write_text("name,mos,prompt\\n1.jpg,3.5,a cat\\n2.jpg,,a dog\\n")
    >>> show(read_records("mos.csv", columns={"image": "name", "rating": "mos"}).labels())
    image  prompt  rating  name   mos
    1.jpg  a cat   3.5     1.jpg  3.5
    """
    side = picture(table, "image")
    optional = _present(table, {"prompt": STRING}) | _source_types(table)
    rows, others = table.read(side.key_types() | {"rating": FLOAT} | optional)
    images = side.keys(table, rows)
    rating = rows["rating"].to_numpy()
    refuse(table, empty(images), "a picture without a name")
    refuse(table, valid(rows["rating"]) & ~np.isfinite(rating), "rating is not finite")
    labels = _labels("ratings", _columns(rows) | {"image": images} | _source(table, rows), others)
    return labels.filter(labels["rating"].is_valid())


def popularity(table: Table) -> pa.Table:
    """Return counts of applause and, if the table has `exposures`, how often each picture was shown.

    Rows of the same `group` are compared with each other. A row whose count is null has no label and is left out.

    >>> _ = Path("likes.csv").write_text("image,count,exposures,group\\n1.jpg,3,90,cats\\n2.jpg,,80,cats\\n")
    >>> show(read_records("likes.csv").labels())
    image  prompt  count  exposures  group
    1.jpg  None    3.0    90.0       cats
    """
    side = picture(table, "image")
    optional = _present(table, {"prompt": STRING, "exposures": FLOAT, "group": STRING})
    rows, others = table.read(side.key_types() | {"count": FLOAT} | optional | _source_types(table))
    images = side.keys(table, rows)
    known, count = valid(rows["count"]), rows["count"].to_numpy()
    refuse(table, empty(images), "a picture without a name")
    refuse(table, known & ~((count >= 0) & np.isfinite(count)), "count is negative or not finite")
    refuse(table, known & (count % 1 != 0), "count is not a whole number")
    if "exposures" in rows.column_names and known.any() and valid(rows["exposures"])[known].any():
        exposures = rows["exposures"].to_numpy()
        refuse(table, known & ~np.isfinite(exposures), "exposures are missing, but other rows have them")
        refuse(table, known & (exposures < count), "count is above exposures")
    labels = _labels("counts", _columns(rows) | {"image": images} | _source(table, rows), others)
    return labels.filter(labels["count"].is_valid())


def _source_types(table: Table) -> dict[str, pa.DataType]:
    """Return the columns to read for the pictures that a row's pictures were made from, if there are any."""
    side = source_picture(table)
    return side.key_types() if side else {}


def _source(table: Table, rows: pa.Table) -> dict[str, Column]:
    """Return the names of those pictures as the column `source`, null in rows without one, or {} if there are no such
    columns."""
    side = source_picture(table)
    if side is None:
        return {}
    keys = side.keys(table, rows)
    return {"source": pc.if_else(pc.equal(keys, ""), None, keys)}


def _comparisons(
    table: Table,
    rows: pa.Table,
    others: pa.Table,
    images: Sequence[Column],
    prompt: Column,
    target: Floats,
    weight: Floats,
) -> pa.Table:
    for image in images:
        refuse(table, empty(image), "a picture without a name")
    refuse(table, prompt.is_null(), "no prompt")
    values = {"image_a": images[0], "image_b": images[1], "prompt_a": prompt, "prompt_b": prompt}
    values |= {"target": pa.array(target), "weight": pa.array(weight)} | _source(table, rows)
    return _labels("comparisons", values, others)


def _target(table: Table, first: Column, second: Column, decided: Bools) -> Floats:
    """Return (n,) shares of the first picture. Raise InputError if two shares do not sum to 1 where `decided`."""
    a: Floats = first.to_numpy()
    b: Floats = second.to_numpy()
    fine = (a >= 0) & (b >= 0) & (np.abs(a + b - 1) <= 1e-3)
    refuse(table, decided & ~fine, "the two labels contradict each other (wanted 1 and 0, 0 and 1, or shares of 1)")
    return a


def _groups(table: Table, paths: str, ranks: str) -> pa.Table:
    rows, others = table.read({"prompt": STRING, paths: STRINGS, ranks: FLOATS} | _source_types(table))
    source = _source(table, rows)
    ids = others["id"] if "id" in others.column_names else None
    many = lengths(rows[paths])
    refuse(table, many < 0, f"{paths} is null", ids=ids)
    refuse(table, many != lengths(rows[ranks]), f"{paths} and {ranks} differ in length", ids=ids)
    refuse(table, rows["prompt"].is_null(), "no prompt", ids=ids)
    pieces = []
    # In pieces, because prompts repeat and one array of strings cannot hold more than 2 GB.
    for start in range(0, len(rows), BATCH_ROWS):
        piece, here = rows.slice(start, BATCH_ROWS), many[start : start + BATCH_ROWS]
        named = None if ids is None else ids.slice(start, BATCH_ROWS)
        image, rank = pc.list_flatten(piece[paths]), pc.list_flatten(piece[ranks])
        refuse(table, any_in_list(empty(image), here), "a picture without a name", start, named)
        refuse(table, any_in_list(~np.isfinite(rank.to_numpy()), here), "a rank that is not a number", start, named)
        parents = np.repeat(np.arange(len(piece)), here)
        prompt, group = piece["prompt"].take(parents), pa.array(start + parents)
        values = {"image": image, "prompt": prompt, "group": group, "rank": rank}
        values |= {name: column.slice(start, BATCH_ROWS).take(parents) for name, column in source.items()}
        pieces.append(_labels("groups", values, others.slice(start, BATCH_ROWS).take(parents)))
    return pa.concat_tables(pieces)


def _labels(kind: Kind, values: dict[str, Column], others: pa.Table) -> pa.Table:
    """Return the columns of LABELS (null if not in `values`), then `source` if it is there, then `others`."""
    rows = len(next(iter(values.values())))
    columns = {
        name: values[name].cast(type) if name in values else pa.nulls(rows, type) for name, type in LABELS[kind].items()
    }
    if "source" in values:
        columns["source"] = values["source"].cast(STRING)
    taken = set(columns)
    for name, column in _columns(others).items():
        columns[f"own_{name}" if name in taken else name] = column
    return pa.table(columns)


def _columns(rows: pa.Table) -> dict[str, Column]:
    return dict(zip(rows.column_names, rows.columns, strict=True))


def _present(table: Table, types: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
    return {name: type for name, type in types.items() if name in table.types}


def hpd_paths(table: Table) -> str:
    """Return the column of the pictures' paths, which has another name in each of the two shapes."""
    return "image_path" if "image_path" in table.types else "file_path"
