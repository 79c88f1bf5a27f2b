"""How often `embed cache` opens a table and passes over its rows, seen from the library that reads the file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import embed_tiny
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from embed_fakes import colors, picture

from embed.backbones import load
from embed.cache.store import Cache
from embed.cli.main import main
from embed.config import Wanted
from embed.jobs.build import BuildConfig, build_cache
from embed.spec import Source

OPENED = "opened"
COUNT, IMAGES, PROMPTS = ["image", "prompt"], ["image"], ["prompt"]  # the columns of each pass


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What was done with the table's file, in order: OPENED, or the columns of a pass."""
    found: list[Any] = []
    open_csv, read_metadata = csv.open_csv, pq.read_metadata

    def opened_csv(path: str, *, convert_options: csv.ConvertOptions, **options: Any) -> csv.CSVStreamingReader:
        found.append(list(convert_options.include_columns) or OPENED)
        return open_csv(path, convert_options=convert_options, **options)

    def opened_parquet(path: str) -> pq.FileMetaData:
        found.append(OPENED)
        return read_metadata(path)

    class ParquetFile(pq.ParquetFile):
        def iter_batches(self, *args: Any, columns: list[str], **options: Any) -> Iterator[pa.RecordBatch]:
            found.append(columns)
            return super().iter_batches(*args, columns=columns, **options)

    monkeypatch.setattr(csv, "open_csv", opened_csv)
    monkeypatch.setattr(pq, "read_metadata", opened_parquet)
    monkeypatch.setattr(pq, "ParquetFile", ParquetFile)
    monkeypatch.setattr(load, "load_backbone", embed_tiny.load_tiny)
    monkeypatch.setattr("embed.jobs.build.call_apart", embed_tiny.call_here)
    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path / "machine"))
    return found


@pytest.fixture(params=["csv", "parquet"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    for i, color in enumerate(colors(4)):
        (tmp_path / f"{i}.png").write_bytes(picture(color))
    rows = {"image": [f"{i}.png" for i in range(4)], "rating": [1.0, 2, 3, 4], "prompt": ["a", "b", "c", "d"]}
    path = tmp_path / f"t.{request.param}"
    (csv.write_csv if path.suffix == ".csv" else pq.write_table)(pa.table(rows), path)
    return path


def embed(table: Path, *options: str) -> None:
    out = str(table.parent / "c")
    assert main(["cache", str(table), "--model", "tiny", "--out", out, "--device=cpu", "--workers=1", *options]) == 0


def test_a_table_is_opened_once_counted_once_and_read_once_a_side(table: Path, reads: list[Any]) -> None:
    embed(table)
    assert reads == [OPENED, COUNT, IMAGES, PROMPTS]
    reads.clear()
    embed(table)  # nothing is new
    assert reads == [OPENED, COUNT, IMAGES, PROMPTS]


def test_what_cannot_be_added_to_is_known_before_a_row_is_read(
    table: Path, reads: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    embed(table)
    (table.parent / "head").mkdir()
    (table.parent / "head" / "head.json").touch()
    for out, option, opened, message in (
        ("c", "--ignore-exif", [OPENED], "come from different backbones"),
        ("c", "--features=projected,pooled", [OPENED], "holds the features projected"),
        ("head", "--device=cpu", [], "head is a head, not a cache; choose another --out"),
        ("", "--device=cpu", [], "is not a cache and not empty"),
    ):
        reads.clear()
        assert main(["cache", str(table), "--model", "tiny", "--out", str(table.parent / out), option]) == 2
        assert message in capsys.readouterr().err and reads == opened


def test_a_trial_of_engines_reads_each_side_once_more_and_one_of_scales_the_pictures(
    table: Path, reads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embed.jobs.build.TRIAL_RECORDS", 4)
    embed(table)
    assert reads == [OPENED, COUNT, IMAGES, IMAGES, IMAGES, PROMPTS, PROMPTS]
    reads.clear()
    embed(table)  # with the engines found, and as the cache has its pictures
    assert reads == [OPENED, COUNT, IMAGES, PROMPTS]


def test_a_table_of_pictures_alone_is_not_read_for_prompts(tmp_path: Path, reads: list[Any]) -> None:
    pq.write_table(pa.table({"image": [picture(color) for color in colors(4)]}), tmp_path / "t.parquet")
    embed(tmp_path / "t.parquet")
    assert reads == [OPENED, IMAGES], "the file itself knows how many pictures it has"


def test_a_table_in_memory_is_embedded_like_its_file(
    table: Path, reads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(table)
    rows = csv.read_csv(table) if table.suffix == ".csv" else pq.read_table(table)
    monkeypatch.chdir(table.parent)
    source = Source("tiny", None)
    build_cache(BuildConfig((rows,), Path("other"), source, Wanted(device="cpu"), workers=1))
    for file in sorted(Path("c").rglob("*.npy")):
        assert file.read_bytes() == (Path("other") / file.relative_to("c")).read_bytes()
    assert Cache.open("other").metadata("images").equals(Cache.open("c").metadata("images"))


@pytest.mark.parametrize(("starter", "least", "said"), [("tiny", 3, True), ("tiny", 4, False), ("other", 3, False)])
def test_the_starter_says_that_it_is_one_on_more_than_a_trial(
    starter: str, least: int, said: bool, table: Path, reads: list[Any],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr("embed.jobs.build.STARTER", starter)
    monkeypatch.setattr("embed.jobs.build.TRIAL_PICTURES", least)
    build_cache(BuildConfig([str(table)], table.parent / "c", Source("tiny"), Wanted(device="cpu"), workers=1))
    assert ("4 pictures are more than a trial" in caplog.text) == said
