"""Pictures are found by their names, by where they lie, and never by a name that means two pictures."""

import numpy as np
import pyarrow as pa
import pytest

from embed.addresses import place_of
from embed.arrays import positions
from embed.cache.names import rows_of_names

NAMES = pa.table({
    "image_path": ["a.png", "b.png", "a.png", "http://h/c.png", "d", "b.png", "e.png", "e.png"],
    "image_id": ["1", "2", "3", "4", "5", "6", "7", "7"],
    "uri": ["/x/a.png", "/x/b.png", "/y/a.png", "http://h/c.png", None, "/x/b.png", "/x/e.png", "/y/e.png"],
})  # fmt: skip
IDS = pa.array(["1", "2", "3", "4", "5", "6", "7"])


def below(root: str):
    return lambda key: place_of(key, key if key.startswith(("/", "http")) else f"{root}/{key}")


def rows(keys: list[str], root: str | None) -> list[int]:
    return rows_of_names(keys, NAMES, IDS, below(root) if root else None).tolist()


def test_a_name_is_its_latest_content() -> None:
    assert rows(["a.png", "b.png", "d", "http://h/c.png", "nothing"], None) == [2, 5, 4, 3, -1]


@pytest.mark.parametrize("spelling", ["/x/b.png", "./b.png", "../x/b.png", "/x/../x/b.png"])
def test_one_picture_under_several_spellings(spelling: str) -> None:
    assert rows([spelling], "/x") == rows(["b.png"], "/x") == [5]


def test_a_name_of_two_pictures_is_told_apart_by_where_they_lie() -> None:
    assert rows(["a.png"], "/x") == [0] and rows(["a.png"], "/y") == [2]
    assert rows(["a.png", "b.png"], "/z") == [-1, 5], "rather none than another one"
    assert rows(["e.png"], "/z") == [6], "the same content at two places"


def test_of_no_names_nothing_is_found() -> None:
    assert rows_of_names(["a"], NAMES.slice(0, 0), IDS.slice(0, 0), below("/x")).tolist() == [-1]


def test_positions_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    among, values = ([str(i) for i in rng.integers(0, 50, n)] for n in (60, 200))
    wanted = [among.index(value) if value in among else -1 for value in values]
    assert positions(values, pa.chunked_array([among[:30], among[30:]])).tolist() == wanted


@pytest.mark.parametrize(
    "key, uri, place",
    [
        ("a.png", None, None),
        ("a.png", "/data/./sub/../a.png", "/data/a.png"),
        ("a.png", "https://host/p/a.png?sig=secret", "https://host/p/a.png"),
        ("https://host/show?id=7", "https://host/show?id=7", "https://host/show?id=7"),
        ("a#1.png", "s3://bucket/a#1.png", "s3://bucket/a#1.png"),
    ],
)
def test_where_a_picture_lies_has_one_spelling_and_no_secret(key: str, uri: str | None, place: str | None) -> None:
    assert place_of(key, uri) == place
