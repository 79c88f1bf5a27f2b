"""Tables of pictures and prompts: scores equal the scorer's, a killed job goes on, bad rows carry their reason."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from export_tiny import write_pictures
from progress_told import Told

from embed.files import require_out
from embed.spec import InputError
from runtime.config import TableConfig
from runtime.scoring import tables
from runtime.scoring.scorer import Scorer
from runtime.scoring.tables import score_table


@pytest.fixture(scope="module")
def scorer(bundle: Path) -> Scorer:
    return Scorer.load(bundle)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Ten rows in two row groups, with paths, two of them bad."""
    names = [path.name for path in write_pictures(tmp_path, 8)]
    rows = {
        "id": list(range(10)),
        "image": [*names[:4], "missing.png", None, *names[4:]],
        "prompt": [f"prompt {i % 3}" for i in range(10)],
    }
    pq.write_table(pa.table(rows), tmp_path / "table.parquet", row_group_size=6)
    return tmp_path / "table.parquet"


def read(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("part-*.parquet"))])


def test_rows_keep_their_order_and_get_the_scorers_scores(
    scorer: Scorer, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "ROWS", 4)
    summary = score_table(scorer, table, tmp_path / "out", TableConfig())
    assert summary == {"format": 3, "rows": 10, "errors": 2}
    found = read(tmp_path / "out")
    assert found.schema.names == [
        "id",
        "image",
        "prompt",
        "score",
        "uncertainty",
        "calibrated_score",
        "percentile",
        "error",
    ]
    assert found["id"].to_pylist() == list(range(10))
    for row in found.to_pylist():
        if row["id"] in (4, 5):
            assert row["score"] is None and row["error"]
        else:
            expected = scorer.score(row["prompt"], [table.parent / row["image"]])[0]
            assert row["error"] is None and row["score"] == pytest.approx(expected, abs=1e-5)
    assert [len(pq.read_table(path)) for path in sorted((tmp_path / "out").glob("part-*"))] == [4, 4, 2]


def test_pictures_may_lie_elsewhere_than_the_table(scorer: Scorer, table: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    table.rename(elsewhere / "table.parquet")
    moved = TableConfig(images_root=str(tmp_path))
    assert score_table(scorer, elsewhere / "table.parquet", tmp_path / "out", moved)["errors"] == 2
    with pytest.raises(InputError, match="where the pictures should be, is not a folder"):
        score_table(scorer, elsewhere / "table.parquet", tmp_path / "none", TableConfig(images_root="/nowhere"))


def test_bytes_and_hugging_face_pictures(scorer: Scorer, table: Path, tmp_path: Path) -> None:
    data = (table.parent / "00.png").read_bytes()
    for name, values in {
        "bytes": [data, b"junk"],
        "struct": [{"bytes": data, "path": "a"}, {"bytes": b"", "path": None}],
    }.items():
        source = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"jpg": values}), source)
        score_table(scorer, source, tmp_path / name, TableConfig(image_column="jpg", prompt="a cat"))
        found = read(tmp_path / name)
        assert found.schema.names == ["score", "uncertainty", "calibrated_score", "percentile", "error"]
        assert found["score"][0].as_py() == pytest.approx(scorer.score("a cat", [data])[0], abs=1e-5)
        assert found["error"][0].as_py() is None and found["error"][1].as_py()


def test_a_stopped_job_goes_on_where_it_was_and_ends_the_same(
    scorer: Scorer, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "ROWS", 2)
    score_table(scorer, table, tmp_path / "whole", TableConfig())
    actual, done = tables.score_rows, []

    def stop_after_two(*args: Any) -> pa.Table:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return actual(*args)

    monkeypatch.setattr(tables, "score_rows", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        score_table(scorer, table, tmp_path / "out", TableConfig())
    assert not (tmp_path / "out" / "manifest.json").exists()
    again: list[int] = []
    monkeypatch.setattr(tables, "score_rows", lambda *args: again.append(1) or actual(*args))
    for _ in range(2):  # the second finds nothing to do
        score_table(scorer, table, tmp_path / "out", TableConfig(), told := Told())
        assert len(again) == 3 and told.works["scoring"].whole()
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_another_job_in_the_same_folder_is_refused(scorer: Scorer, table: Path, tmp_path: Path) -> None:
    score_table(scorer, table, tmp_path / "out", TableConfig())
    with pytest.raises(InputError, match="another job: prompt differs"):
        score_table(scorer, table, tmp_path / "out", TableConfig(prompt="a cat"))
    with pytest.raises(InputError, match="not a job of scores"):
        score_table(scorer, table, tmp_path, TableConfig())


def test_where_no_row_can_be_scored_the_reason_is_said_and_a_corrected_table_goes_there(
    scorer: Scorer, table: Path, tmp_path: Path
) -> None:
    wrong, out = tmp_path / "wrong.parquet", tmp_path / "out"
    pq.write_table(pa.table({"image": ["a.png", "b.png"], "prompt": ["a", "b"]}), wrong)
    for _ in range(2):
        with pytest.raises(InputError, match=r"none of the 2 rows of .* can be scored: a\.png: cannot be read"):
            score_table(scorer, wrong, out, TableConfig())
    assert len(read(out)) == 2 and not (out / "manifest.json").exists()
    assert score_table(scorer, table, out, TableConfig())["errors"] == 2
    assert len(read(out)) == 10 and (out / "manifest.json").exists()
    for name in ("a.png", "b.png"):  # and pictures that were not there
        (tmp_path / name).write_bytes((tmp_path / "00.png").read_bytes())
    with pytest.raises(InputError, match="another job: table differs"):
        score_table(scorer, wrong, out, TableConfig())
    with pytest.raises(InputError, match="is a job of scores, not a cache"):
        require_out(out, "cache", overwrite=True)
    assert score_table(scorer, wrong, tmp_path / "again", TableConfig())["errors"] == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rows": 1024}', '{"format": 9}'])
def test_a_damaged_job_is_said_in_words(scorer: Scorer, table: Path, tmp_path: Path, text: str) -> None:
    score_table(scorer, table, tmp_path / "out", TableConfig())
    (tmp_path / "out" / "job.json").write_text(text)
    with pytest.raises(InputError, match=r"job\.json (is|has) .*"):
        score_table(scorer, table, tmp_path / "out", TableConfig())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": ["a"], "prompt": ["b"]}, "no column 'image', only"),
        ({"image": ["a"], "text": ["b"]}, "no column 'prompt', only .* --prompt-column"),
        ({"image": ["a"], "prompt": ["b"], "score": [1.0]}, "column 'score', which is the name of a score"),
    ],
)
def test_columns_that_do_not_fit_are_named(
    scorer: Scorer, tmp_path: Path, columns: dict[str, list[Any]], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=message):
        score_table(scorer, tmp_path / "t.parquet", tmp_path / "out", TableConfig())
    assert not (tmp_path / "out").exists()


def test_what_is_no_table_is_said(scorer: Scorer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        score_table(scorer, tmp_path / "t.parquet", tmp_path / "out", TableConfig())
    (tmp_path / "t.parquet").write_bytes(np.zeros(100, np.uint8).tobytes())
    with pytest.raises(InputError, match="cannot be read"):
        score_table(scorer, tmp_path / "t.parquet", tmp_path / "out", TableConfig())


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.json", "t.arrow", "{0..1}.parquet", "t.tar"])
def test_every_kind_of_table_gets_the_same_scores(
    name: str, scorer: Scorer, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "ROWS", 4)
    score_table(scorer, table, tmp_path / "expected", TableConfig())
    rows = pq.read_table(table)
    if name == "t.csv":
        csv.write_csv(rows, tmp_path / name)
    elif name == "t.arrow":
        feather.write_feather(rows, tmp_path / name)
    elif name == "t.tar":
        with tarfile.open(tmp_path / name, "w") as tar:
            for row in rows.to_pylist():
                members = {"json": json.dumps(row).encode()}
                if (path := tmp_path / str(row["image"])).exists():
                    members["png"] = path.read_bytes()
                for extension, data in members.items():
                    info = tarfile.TarInfo(f"{row['id']}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    elif name.startswith("t."):
        lines = list(map(json.dumps, rows.to_pylist()))
        (tmp_path / name).write_text("\n".join(lines) if name == "t.jsonl" else f"[{','.join(lines)}]")
    else:
        for number in range(2):
            pq.write_table(rows.slice(7 * number, 7), tmp_path / f"{number}.parquet")
    assert score_table(scorer, tmp_path / name, tmp_path / "out", TableConfig())["errors"] == 2
    expected, found = read(tmp_path / "expected"), read(tmp_path / "out")
    assert set(found.column_names) == set(expected.column_names)
    assert found["id"].to_pylist() == expected["id"].to_pylist()
    for column in ("prompt", "score", "percentile"):
        assert found[column].to_pylist() == pytest.approx(expected[column].to_pylist())
    assert [error is None for error in found["error"].to_pylist()] == [i not in (4, 5) for i in range(10)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [["a.png"]]}, "column 'image' holds list<.*>; wanted text: cast it"),
        ({"prompt": [["a"]]}, "column 'prompt' holds list<.*>; wanted text: cast it"),
        ({"prompt": [{"a": 1}]}, "column 'prompt' holds struct<.*>; wanted text: cast it"),
        ({"prompt": [b"\xff"]}, r"column 'prompt' has b'\\xff' in row 0"),
    ],
)
def test_types_that_are_no_pictures_and_prompts_are_named(
    scorer: Scorer, tmp_path: Path, columns: dict[str, list[Any]], message: str
) -> None:
    pq.write_table(pa.table({"image": ["a.png"], "prompt": ["a"]} | columns), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=message):
        score_table(scorer, tmp_path / "t.parquet", tmp_path / "out", TableConfig())


def test_numbers_are_read_as_text_and_names_are_not_repeated(scorer: Scorer, table: Path, tmp_path: Path) -> None:
    (tmp_path / "7").write_bytes((tmp_path / "00.png").read_bytes())
    pq.write_table(pa.table({"image": [7], "prompt": [12]}), tmp_path / "t.parquet")
    score_table(scorer, tmp_path / "t.parquet", tmp_path / "out", TableConfig())
    score = scorer.score("12", [tmp_path / "00.png"])[0]
    assert read(tmp_path / "out")["score"].to_pylist() == [pytest.approx(score, abs=1e-5)]
    pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["image", "image", "prompt"]), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="more than one column called 'image'"):
        score_table(scorer, tmp_path / "t.parquet", tmp_path / "other", TableConfig())


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_table_that_changed_is_another_job(name: str, scorer: Scorer, table: Path, tmp_path: Path) -> None:
    for number, prompt in enumerate(("a cat", "a dog")):
        rows = pa.table({"image": ["00.png"], "prompt": [prompt]})
        (csv.write_csv if name == "t.csv" else pq.write_table)(rows, tmp_path / name)
        if number == 0:
            score_table(scorer, tmp_path / name, tmp_path / "out", TableConfig())
    with pytest.raises(InputError, match="another job: table differs"):
        score_table(scorer, tmp_path / name, tmp_path / "out", TableConfig())
