"""Names joined to where they start, as the examples say, and as tables read them."""

import doctest
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embed import addresses
from embed.records.formats import read_records


def test_the_examples() -> None:
    result = doctest.testmod(addresses)
    assert result.attempted == 4 and result.failed == 0


@pytest.mark.parametrize(
    "root", ["https://host/p", "https://host/p/?sig=a%2Fb/", "file:///data", "s3://bucket/p", None]
)
def test_a_table_joins_its_names_as_join_does(tmp_path: Path, root: str | None) -> None:
    names = ["a#1.png", "%41.png", "b c/d.png", "/e%20f.png", "https://other/%41?x#y", "s3://g/h i"]
    pq.write_table(pa.table({"image": pa.array(names, pa.string())}), tmp_path / "t.parquet")
    (batch,) = read_records(tmp_path / "t.parquet", images_root=root).images()
    wanted = [addresses.join(root or str(tmp_path), name) for name in names]
    assert batch["uri"].to_pylist() == wanted
