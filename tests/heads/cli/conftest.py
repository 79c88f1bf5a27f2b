"""What commands of heads are tried on."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from heads_commands import ROWS
from heads_tiny import make_cache


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache, and a table whose counts follow the first coordinate of the pictures' vectors."""
    monkeypatch.chdir(tmp_path)
    images, prompts = [f"p{i}.png" for i in range(ROWS)], [f"prompt {i}" for i in range(ROWS)]
    cache = make_cache(tmp_path / "cache", images, prompts)
    count = np.exp(4 + 6 * cache.image_embeddings()[:, 0].astype(float)).round().astype(int)
    group = [f"g{i % 12}" for i in range(ROWS)]
    pq.write_table(pa.table({"image": images, "prompt": prompts, "count": count, "sub": group}), "table.parquet")
    return tmp_path
