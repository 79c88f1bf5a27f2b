"""Every format's labels against tables written by hand, and against the counts published for ImageReward."""

import doctest
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embed_record_files import Rows, images, labels, prompts, write
from paths import DATA

from embed.cli.console import table as aligned
from embed.records import labels as module
from embed.records.formats import read_records
from embed.spec import InputError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("example", ["social_reward", "pick_a_pic", "imagereward", "hpd_ranks", "hpd_preferences",
                                     "ratings", "popularity"])  # fmt: skip
def test_the_worked_examples_of_the_docstrings(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    def show(table: pa.Table) -> None:
        lines = aligned(table.column_names, [[str(value) for value in row.values()] for row in table.to_pylist()])
        print("\n".join(" ".join(line.split()) for line in lines))

    names = {"Path": Path, "json": json, "pa": pa, "pq": pq, "read_records": read_records, "show": show}
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(module, example), example, globs=names)
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert (result.attempted > 1, result.failed) == (True, 0), capsys.readouterr().out


def pick_a_pic(**changes: Any) -> Rows:
    row = {"caption": "a cat", "label_0": 1.0, "label_1": 0.0, "has_label": True, "num_example_per_prompt": 4}
    return [row | {"jpg_0": b"A", "jpg_1": b"B", "image_0_uid": "a", "image_1_uid": "b"} | changes]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_0": 0.0}, "the two labels contradict each other"),
        ({"label_1": 1.0}, "the two labels contradict each other"),
        ({"label_0": None}, "the two labels contradict each other"),
        ({"label_0": 1.5, "label_1": -0.5}, "the two labels contradict each other"),
        ({"num_example_per_prompt": 0}, "num_example_per_prompt is not at least 1"),
        ({"image_1_uid": None}, "a picture without a name"),
        ({"caption": None}, "no prompt"),
    ],
)
def test_pick_a_pic_rows_that_nobody_can_mean(changes: dict[str, Any], message: str) -> None:
    records = read_records(write("p.parquet", pick_a_pic() * 2 + pick_a_pic(**changes)))
    with pytest.raises(InputError, match=rf"^p\.parquet: {message}.*: row 2 \(counted from 0\)$"):
        records.labels()


def ranked(**changes: Any) -> Rows:
    row = {"id": "r7", "prompt": "a cat", "generations": ["1.webp", "2.webp", "3.webp"], "ranking": [2, 1, 2]}
    return [row | changes]


@pytest.mark.parametrize("name", ["r.json", "r.jsonl", "r.parquet"])
def test_imagereward_groups(name: str, here: Path) -> None:
    records = read_records(write(name, ranked() + ranked(id="r8", prompt="a dog", generations=["9.webp"], ranking=[1])))
    assert (records.format, records.kind) == ("imagereward", "groups")
    assert images(records) == [(f"{n}.webp", f"{here}/{n}.webp", None) for n in (1, 2, 3, 9)]
    assert prompts(records) == ["a cat", "a dog"]
    assert labels(records) == [
        ("1.webp", "a cat", 0, 2, "r7"),
        ("2.webp", "a cat", 0, 1, "r7"),
        ("3.webp", "a cat", 0, 2, "r7"),
        ("9.webp", "a dog", 1, 1, "r8"),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranking": [1, 2]}, "generations and ranking differ in length: 'bad'"),
        ({"generations": None}, "generations is null: 'bad'"),
        ({"generations": ["1.webp", None, "3.webp"]}, "a picture without a name: 'bad'"),
        ({"ranking": [1, None, 2]}, "a rank that is not a number: 'bad'"),
        ({"prompt": None}, "no prompt: 'bad'"),
    ],
)
def test_imagereward_records_that_nobody_can_mean(changes: dict[str, Any], message: str) -> None:
    records = read_records(write("r.json", ranked() + ranked(id="bad", **changes) + ranked()))
    with pytest.raises(InputError, match=rf"^r\.json: {message}$"):
        records.labels()


def test_groups_are_numbered_over_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embed.records.labels.BATCH_ROWS", 2)
    monkeypatch.setattr("embed.records.tables.BATCH_ROWS", 2)
    rows = [{"prompt": str(n), "image_path": [f"{n}a", f"{n}b"], "rank": [1, 2]} for n in range(5)]
    records = read_records(write("t.json", rows))
    assert labels(records) == [(f"{n}{x}", str(n), n, r) for n in range(5) for x, r in (("a", 1), ("b", 2))]
    rows[3]["image_path"] = ["3a", ""]
    write("t.json", rows)
    for read in (labels, images):
        with pytest.raises(InputError, match=r"a picture without a name: row 3 \("):
            read(records)


def test_the_published_imagereward_test_set() -> None:
    path = DATA / "imagereward" / "test.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    records = read_records(path)
    table = records.labels()
    groups, ranks = np.asarray(table["group"]), np.asarray(table["rank"])
    strict = ties = 0
    for group in range(466):
        rank = ranks[groups == group]
        assert 4 <= len(rank) <= 9
        for i in range(len(rank)):
            for j in range(i):
                strict += int(rank[i] != rank[j])
                ties += int(rank[i] == rank[j])
    assert (groups.max() + 1, strict, ties) == (466, 6399, 831)
    assert len(images(records)) == len(table)


def test_hpd_test_and_train_shapes(here: Path) -> None:
    test = [{"prompt": "a cat", "image_path": ["1.jpg", "2.jpg"], "rank": [1, 0], "raw_annotations": [{"rank": [1]}]}]
    records = read_records(write("test.json", test))
    assert (records.format, records.kind) == ("hpd", "groups")
    assert labels(records) == [("1.jpg", "a cat", 0, 1), ("2.jpg", "a cat", 0, 0)]
    assert images(records) == [("1.jpg", f"{here}/1.jpg", None), ("2.jpg", f"{here}/2.jpg", None)]
    train = [
        {"prompt": "a cat", "file_path": ["1.jpg", "2.jpg"], "human_preference": [1, 0], "user_hash": "u"},
        {"prompt": "a dog", "file_path": ["3.jpg", "4.jpg"], "human_preference": [0.5, 0.5], "user_hash": "v"},
    ]
    records = read_records(write("train.json", train))
    assert (records.format, records.kind) == ("hpd", "comparisons")
    assert labels(records) == [
        ("1.jpg", "2.jpg", "a cat", "a cat", 1, 1, "u"),
        ("3.jpg", "4.jpg", "a dog", "a dog", 0.5, 1, "v"),
    ]
    assert [key for key, *_ in images(records)] == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"human_preference": [1, 1]}, "the two labels contradict"),
        ({"human_preference": [1]}, "human_preference has not two entries"),
        ({"file_path": ["1.jpg", "2.jpg", "3.jpg"]}, "file_path has not two entries"),
        ({"file_path": ["1.jpg", None]}, "a picture without a name"),
    ],
)
def test_hpd_records_that_nobody_can_mean(changes: dict[str, Any], message: str) -> None:
    row = {"prompt": "a cat", "file_path": ["1.jpg", "2.jpg"], "human_preference": [1, 0]}
    with pytest.raises(InputError, match=rf"{message}.*row 1 \("):
        read_records(write("train.json", [row, row | changes])).labels()


def test_ratings() -> None:
    rows = [
        {"image": "1.jpg", "rating": 3, "prompt": "a cat", "model": "x"},
        {"image": "2.jpg", "rating": None, "prompt": None, "model": "y"},
        {"image": "3.jpg", "rating": 4.5, "prompt": None, "model": "z"},
    ]
    records = read_records(write("r.csv", rows))
    assert (records.format, records.kind) == ("ratings", "ratings")
    # A picture without a rating has a vector, but no label.
    assert [key for key, *_ in images(records)] == ["1.jpg", "2.jpg", "3.jpg"]
    assert labels(records) == [("1.jpg", "a cat", 3, "x"), ("3.jpg", None, 4.5, "z")]
    assert prompts(records) == ["a cat"]
    for value, message in ((float("nan"), "rating is not finite"), (float("inf"), "rating is not finite")):
        with pytest.raises(InputError, match=rf"{message}: row 1 \("):
            read_records(write("r.parquet", [rows[0], rows[2] | {"rating": value}])).labels()


def test_popularity() -> None:
    rows = [
        {"image": "1.jpg", "count": 3, "exposures": 10, "prompt": "a cat", "group": 1, "seen": True},
        {"image": "2.jpg", "count": None, "exposures": None, "prompt": "a dog", "group": 1, "seen": False},
    ]
    records = read_records(write("p.parquet", rows))
    assert (records.format, records.kind) == ("popularity", "counts")
    assert prompts(records) == ["a cat", "a dog"]
    assert labels(records) == [("1.jpg", "a cat", 3, 10, "1", True)]
    bare = read_records(write("q.csv", [{"image": "1.jpg", "count": 2.0}]))
    assert labels(bare) == [("1.jpg", None, 2, None, None)]
    assert prompts(bare) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": -1.0}, "count is negative or not finite"),
        ({"count": 2.5}, "count is not a whole number"),
        ({"count": float("nan")}, "count is negative or not finite"),
        ({"count": float("inf")}, "count is negative or not finite"),
        ({"exposures": 2.0}, "count is above exposures"),
        ({"exposures": None}, "exposures are missing, but other rows have them"),
        ({"exposures": float("nan")}, "exposures are missing, but other rows have them"),
        ({"image": None}, "a picture without a name"),
        ({"image": ""}, "a picture without a name"),
    ],
)
def test_counts_that_nobody_can_mean(changes: dict[str, Any], message: str) -> None:
    row = {"image": "1.jpg", "count": 3.0, "exposures": 10.0}
    records = read_records(write("p.parquet", [row, row | changes]))
    with pytest.raises(InputError, match=rf"{message}: row 1 \("):
        records.labels()
    if "image" in changes:
        with pytest.raises(InputError, match=rf"{message}: row 1 \("):
            images(records)


def test_an_error_names_the_first_rows_and_counts_the_others() -> None:
    rows = [{"image": f"{n}.jpg", "count": -1 if n > 1 else 1} for n in range(10)]
    with pytest.raises(InputError, match=r": row 2, row 3, row 4, row 5, row 6 and 3 more \(counted from 0\)$"):
        read_records(write("p.parquet", rows)).labels()


def test_agiqa_as_ratings() -> None:
    path = DATA / "agiqa3k" / "data.csv"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    table = read_records(path, columns={"image": "name", "rating": "mos_quality"}).labels()
    assert len(table) == 2982
    rating, names = np.asarray(table["rating"]), table["image"].to_pylist()
    means = {
        model: round(float(np.mean([r for r, name in zip(rating, names, strict=True) if name.startswith(model)])), 3)
        for model in ("AttnGAN", "glide", "DALLE2", "sd1.5", "midjourney", "xl2.2")
    }
    assert list(means.values()) == [0.986, 1.092, 2.624, 2.752, 3.007, 3.298]


def test_a_column_that_labels_need_is_kept_as_our_own() -> None:
    rows = [{"prompt": "a cat", "pos_path": "1.jpg", "neg_path": "2.jpg", "weight": 9}]
    assert read_records(write("s.parquet", rows)).labels().to_pylist()[0] == {
        "image_a": "1.jpg",
        "image_b": "2.jpg",
        "prompt_a": "a cat",
        "prompt_b": "a cat",
        "target": 1.0,
        "weight": 1.0,
        "own_weight": 9,
    }
