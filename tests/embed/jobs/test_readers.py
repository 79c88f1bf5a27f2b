"""A cache's sides are laid out as clip-retrieval lays out its embeddings: the tools made for those read them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from embed_fakes import IDENTITY, SOURCE

from embed.cache.store import METADATA, CacheWriter


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, np.ndarray]:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(70, 4)).astype(np.float32)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    with CacheWriter(tmp_path / "c", IDENTITY, SOURCE) as writer:
        for start, stop in ((0, 40), (40, 70)):
            n = stop - start
            columns = [
                [f"p{i}" for i in range(start, stop)],
                [f"{i:032x}" for i in range(start, stop)],
                [1] * n,
                [1] * n,
            ]
            writer.append("images", pa.table(columns, METADATA["images"]), img_emb=vectors[start:stop])
        writer.commit()
    return tmp_path / "c" / "images", vectors


@pytest.mark.filterwarnings("ignore")
def test_embedding_reader_gives_our_vectors_beside_their_names(images: tuple[Path, np.ndarray]) -> None:
    module = pytest.importorskip("embedding_reader", reason="pip install embedding-reader")
    folder, vectors = images
    reader = module.EmbeddingReader(
        embeddings_folder=str(folder / "img_emb"),
        metadata_folder=str(folder / "metadata"),
        file_format="parquet_npy",
        meta_columns=["image_path", "image_id"],
    )
    parts = list(reader(batch_size=25, show_progress=False))
    np.testing.assert_array_equal(np.concatenate([part for part, _ in parts]), vectors.astype(np.float32))
    names = [name for _, metadata in parts for name in metadata["image_path"]]
    assert names == [f"p{i}" for i in range(70)]


@pytest.mark.filterwarnings("ignore")
def test_autofaiss_indexes_our_vectors(images: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    module = pytest.importorskip("autofaiss", reason="pip install autofaiss")
    folder, vectors = images
    index, _ = module.build_index(
        str(folder / "img_emb"),
        index_path=str(tmp_path / "knn.index"),
        index_infos_path=str(tmp_path / "infos.json"),
        metric_type="ip",
        max_index_memory_usage="100MB",
        current_memory_available="1GB",
        nb_cores=1,
    )
    _, nearest = index.search(vectors.astype(np.float32), 1)
    assert nearest[:, 0].tolist() == list(range(70))
