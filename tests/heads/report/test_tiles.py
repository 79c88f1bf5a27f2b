"""Pictures wherever they come from."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from heads_tiny import make_cache
from PIL import Image

from embed.records.formats import read_records
from heads.report.tiles import read_tiles


def test_pictures_come_from_files_and_from_the_table_itself(tmp_path: Path) -> None:
    for name, colour in (("a.png", (250, 0, 0)), ("b.png", (0, 250, 0))):
        Image.new("RGB", (30, 30), colour).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    names = ["a.png", "b.png", "broken.png", "gone.png"]
    cache = make_cache(tmp_path / "cache", names, [])
    data = [(tmp_path / name).read_bytes() if name == "b.png" else None for name in names]
    table = {"image": names, "bytes": pa.array(data, pa.binary()), "rating": [1.0, 2.0, 3.0, 4.0]}
    pq.write_table(pa.table(table), tmp_path / "table.parquet")
    (tmp_path / "b.png").unlink()
    tiles = read_tiles(read_records(tmp_path / "table.parquet"), cache, {0, 1, 2, 3})
    assert tiles.keys() == {0, 1} and tiles[0] != tiles[1]
