"""Files of every kind, how their format is recognised, and what is said of those that cannot be read."""

import gzip
import tarfile
from pathlib import Path

import pytest
from embed_record_files import images, labels, prompts, write

from embed.config import parse_columns
from embed.records.formats import FORMATS, read_records
from embed.spec import InputError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


SOCIAL = [
    {"prompt": "a cat, sitting", "pos_path": "1.jpg", "neg_path": "sub/2.jpg", "user": 7},
    {"prompt": "a \u4e2d dog", "pos_path": "007", "neg_path": "https://example.org/a%20b.jpg", "user": 8},
]


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.csv.gz", "t.tsv", "t.json", "t.jsonl", "t.jsonl.gz"])
def test_social_reward_in_every_kind_of_file(name: str, here: Path) -> None:
    plain = name.removesuffix(".gz")
    if plain.endswith("sv"):
        between = "," if plain == "t.csv" else "\t"
        lines = [list(SOCIAL[0]), *([f'"{value}"' if "," in str(value) else str(value) for value in row.values()]
                                    for row in SOCIAL)]  # fmt: skip
        Path(plain).write_text("\ufeff" + "\n".join(between.join(line) for line in lines))
    else:
        write(plain, SOCIAL)
    if name != plain:
        Path(name).write_bytes(gzip.compress(Path(plain).read_bytes()))
    records = read_records(name)
    assert (records.path, records.format, records.kind) == (name, "social-reward", "comparisons")
    assert sorted(images(records)) == [
        ("007", f"{here}/007", None),  # a name of digits keeps its zeros
        ("1.jpg", f"{here}/1.jpg", None),
        ("https://example.org/a%20b.jpg", "https://example.org/a%20b.jpg", None),
        ("sub/2.jpg", f"{here}/sub/2.jpg", None),
    ]
    assert prompts(records) == ["a cat, sitting", "a \u4e2d dog"]
    assert labels(records) == [
        ("1.jpg", "sub/2.jpg", "a cat, sitting", "a cat, sitting", 1, 1, 7),
        ("007", "https://example.org/a%20b.jpg", "a \u4e2d dog", "a \u4e2d dog", 1, 1, 8),
    ]


# Pictures as paths, addresses and bytes


def test_images_root(here: Path) -> None:
    rows = [{"image": name} for name in ("a.jpg", "/abs/b.jpg", "s3://bucket/c.jpg", "file:///d%20d.jpg", "e:/f.jpg")]
    path = write("i.csv", rows)
    (here / "pictures").mkdir()
    whole = ["/abs/b.jpg", "s3://bucket/c.jpg", "file:///d%20d.jpg"]
    for given, root in ((None, str(here)), ("pictures", f"{here}/pictures"), ("gs://b/x/", "gs://b/x")):
        records = read_records(path, images_root=given)
        assert records.format == "images"
        assert [uri for _, uri, _ in images(records)] == [f"{root}/a.jpg", *whole, f"{root}/e:/f.jpg"]
        assert [key for key, *_ in images(records)] == [row["image"] for row in rows]
    with pytest.raises(InputError, match="nowhere, where the pictures should be, is not a folder"):
        read_records(path, images_root="nowhere")


# Columns by other names


def test_columns_under_other_names() -> None:
    rows = [{"name": "1.jpg", "mos": 2.5, "prompt": "long", "short": "a cat", "image": 5}]
    records = read_records(write("m.csv", rows), columns=parse_columns("image=name, rating=mos,prompt=short,who=name"))
    assert (records.format, records.table.aliases) == (
        "ratings",
        {"image": "name", "rating": "mos", "prompt": "short", "who": "name"},
    )
    # A column stays under its own name too, unless that name has been given to another.
    assert records.labels().to_pylist() == [
        {"image": "1.jpg", "prompt": "a cat", "rating": 2.5, "name": "1.jpg", "mos": 2.5, "short": "a cat"}
    ]
    assert prompts(records) == ["a cat"]
    assert parse_columns("") == {}
    with pytest.raises(InputError, match=r"m\.csv has no column 'moss' to read as 'rating'; it has name, mos, "):
        read_records("m.csv", columns={"rating": "moss"})
    for text in ("image", "image=", "=name", "a=b,,"):
        with pytest.raises(InputError, match="is not of the form name=your_name"):
            parse_columns(text)


# What cannot be read


def test_a_table_of_no_format_says_what_it_has_and_what_each_format_needs() -> None:
    with pytest.raises(InputError) as caught:
        read_records(write("x.csv", [{"picture": "1.jpg", "likes": 3}]))
    message = str(caught.value)
    assert "x.csv has the columns picture, likes, which fit no format" in message
    assert "\n" not in message
    for name, shapes in FORMATS.items():
        for shape in shapes:
            if name not in ("folder", "webdataset"):
                assert f"{name} ({', '.join(' or '.join(need) for need in shape.needs)})" in message


def test_the_format_can_be_chosen() -> None:
    both = write("b.csv", [{"image": "1.jpg", "count": 3, "rating": 4}])
    with pytest.raises(InputError, match=r"fits the formats ratings and popularity; choose one with --format"):
        read_records(both)
    assert labels(read_records(both, "ratings")) == [("1.jpg", None, 4, 3)]
    assert read_records(both, "images").kind is None
    with pytest.raises(InputError, match=r"lacks what format hpd needs: prompt, image_path or file_path, rank; or "):
        read_records(both, "hpd")
    with pytest.raises(InputError, match=r"unknown format 'rating'; near names: ratings"):
        read_records(both, "rating")
    with pytest.raises(InputError, match=r"b\.csv has no labels; it has the columns image, count, rating"):
        read_records(both, "images").labels()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.parquet", None, "no.parquet does not exist"),
        ("t.xlsx", b"x", "t.xlsx has an unknown file type"),
        ("t.parquet", b"PAR1 and nothing", "t.parquet cannot be read: "),
        ("t.parquet", b"", "t.parquet cannot be read: "),
        ("t.csv", b"", "t.csv cannot be read: "),
        ("t.csv", b"image,count\n", "t.csv has no rows"),
        ("t.csv", b"image,count\n1.jpg\n", "t.csv cannot be read: "),
        ("t.csv", b"image,image\n1.jpg,2.jpg\n", "t.csv has more than one column called 'image'"),
        ("t.csv", b"image,count\n\xff\xfe.jpg,1\n", "t.csv cannot be read: "),
        ("t.csv.gz", b"not gzip", "t.csv.gz cannot be read: "),
        ("t.json", b"[]", "t.json has no rows"),
        ("t.json", b'[{"image": "1.jpg", "count": 1}', "t.json cannot be read: "),
        ("t.json", b'[{"image": "1.jpg"}, 5]', "t.json: record 1 is '5'; wanted a JSON object"),
        ("t.json", b'[{"image": "\\ud800.jpg"}]', "t.json cannot be read: "),
        ("t.json", b'[{"image": ' + b"[" * 200_000, "t.json cannot be read: "),
        ("t.jsonl", b'{"image": "1.jpg"\n', "t.jsonl cannot be read: "),
        ("t.jsonl", b"", "t.jsonl has no rows"),
    ],
)
def test_files_that_cannot_be_read(name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        images(read_records(name))
    assert message in str(caught.value)


def test_values_of_the_wrong_kind() -> None:
    Path("t.csv").write_text("image,count\n1.jpg,many\n")
    with pytest.raises(InputError, match=r"^t\.csv: column 'count' has 'many' in row 0 \("):
        read_records("t.csv").labels()
    with pytest.raises(InputError, match=r"^t\.parquet: column 'count' has 'many' in row 0 \("):
        read_records(write("t.parquet", [{"image": "1.jpg", "count": "many"}])).labels()
    with pytest.raises(InputError, match=r"^t\.json: column 'count' has 'many' in row 0 \("):
        read_records(write("t.json", [{"image": "1.jpg", "count": "many"}])).labels()
    # Numbers written as text are numbers.
    assert labels(read_records(write("t.parquet", [{"image": "1.jpg", "count": "12"}])))[0][2] == 12


def test_records_are_counted_without_reading_pictures(here: Path) -> None:
    for name in ("t.parquet", "t.csv"):
        records = read_records(write(name, [{"prompt": "a", "pos_path": "1", "neg_path": "2"}] * 3))
        assert records.counts() == {"images": len(images(records)), "prompts": 1} == {"images": 6, "prompts": 1}
    side = {"label_0": 1, "label_1": 0, "has_label": True, "image_0_uid": "a", "image_1_uid": "b"}
    rows = [{"caption": f"c{i}", "jpg_0": b"x", "jpg_1": b"y", **side} for i in range(3)]
    records = read_records(write("p.parquet", rows))
    assert records.counts() == {"images": len(images(records)), "prompts": 3} == {"images": 6, "prompts": 3}
    groups = [{"id": "1", "prompt": "p", "generations": ["a", "b", "c"], "ranking": [1, 2, 3]}]
    assert read_records(write("g.json", groups)).counts()["images"] == 3
    with tarfile.open("t.tar", "w") as tar:
        (here / "a.jpg").write_bytes(b"x")
        tar.add("a.jpg")
    assert read_records("t.tar").counts() == {"images": None, "prompts": None}


def test_what_csv_holds_beside_the_labels_is_kept_whole() -> None:
    users = [2**70, 2**70 + 1]  # one number in floats
    Path("t.csv").write_text("image,count,user\n" + "".join(f"{n}.jpg,1,{user}\n" for n, user in enumerate(users)))
    assert read_records("t.csv").labels()["user"].to_pylist() == [str(user) for user in users]
    Path("t.csv").write_bytes("image,count,by\n1.jpg,1,caf\u00e9\n".encode("latin-1"))
    assert [key for key, *_ in images(read_records("t.csv"))] == ["1.jpg"]
    with pytest.raises(InputError, match=r"t\.csv: column 'by' is not in UTF-8; save the file as UTF-8"):
        read_records("t.csv").labels()
