import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embed_fakes import colors, picture
from embed_image_files import encoded
from embed_image_files import picture as noisy
from paths import HELPERS, ROOT

from embed.cache.store import Cache

# Ray warns of its own deprecations, so it lives in a process of its own. The actors find the graph that the first,
# local run exported, and need no model.
SCRIPT = """
import json, sys
from pathlib import Path
import embed_tiny
from embed.backbones import load
from embed.jobs import build
from embed.jobs.build import BuildConfig, build_cache
from embed.config import Wanted
from embed.spec import Source
if __name__ == "__main__":
    load.load_backbone = embed_tiny.load_tiny
    build.call_apart = embed_tiny.call_here
    from ray.cluster_utils import Cluster
    import ray
    folder = sys.argv[1]
    def cache(table, out, ray, decoding="exact"):
        build_cache(BuildConfig(
            (f"{folder}/{table}",), Path(folder, out), Source("tiny"), wanted=Wanted("onnx", "fp32", "cpu", 0.9),
            workers=1, batch_size=8, ray=ray, decoding=decoding,
        ))
    cache("all.parquet", "local", False)
    cache("large.parquet", "large-local", False, "scaled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    print(json.dumps({"nodes": len([n for n in ray.nodes() if n["Alive"]])}))
    cache("half.parquet", "ray", True)
    cache("all.parquet", "ray", True)
    cache("large.parquet", "large-ray", True, "scaled")
    cache("more.parquet", "large-ray", True, "auto")
    cache("large.parquet", "large-exact", True)
    ray.shutdown()
    cluster.shutdown()
"""


def by_content(path: Path) -> tuple[list[str], np.ndarray]:
    cache = Cache.open(path)
    ids = cache.metadata("images")["image_id"].to_pylist()
    order = np.argsort(ids)
    return [ids[i] for i in order], cache.image_embeddings()[order].astype(np.float32)


def test_a_cluster_of_two_nodes_gives_the_local_cache(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`")
    pictures = [picture(color, (30, 20)) for color in colors(50)]
    pictures[7] = b"broken"
    pictures[9] = pictures[8]
    (tmp_path / "50.png").write_bytes(picture((200, 100, 50)))
    (tmp_path / "51.png").write_bytes(b"broken too")
    names = [f"{i:02}.png" for i in range(50)]
    for name, data in zip(names, pictures, strict=True):
        (tmp_path / name).write_bytes(data)
    rows = pa.table({"image": [*names, "50.png", "51.png"], "rating": [0.0] * 52})
    pq.write_table(rows, tmp_path / "all.parquet")
    pq.write_table(rows.slice(0, 20), tmp_path / "half.parquet")
    large = [f"large{i}.jpg" for i in range(8)]
    for i, name in enumerate(large):
        (tmp_path / name).write_bytes(encoded(noisy(90 + i, 75, i), "JPEG"))
    for table, count in (("large", 6), ("more", 8)):
        pq.write_table(pa.table({"image": large[:count], "rating": [0.0] * count}), tmp_path / f"{table}.parquet")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HELPERS)]),
        "PLAUDIT_CACHE": str(tmp_path / "machine"),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{"))) == {"nodes": 2}
    (local_ids, local), (ray_ids, ray) = by_content(tmp_path / "local"), by_content(tmp_path / "ray")
    assert ray_ids == local_ids and len(ray_ids) == 49
    np.testing.assert_allclose(ray, local, atol=1e-3)
    for name in ("local", "ray"):
        cache = Cache.open(tmp_path / name)
        assert cache.failures()["key"].to_pylist() == ["07.png", "51.png"]
        assert (cache.image_rows(names) >= 0).sum() == 49
    (note,), (noted,) = (Cache.open(tmp_path / f"large-{name}").decoding for name in ("local", "ray"))
    assert note["scale"] == 2 and noted == {**note, "pictures": 8} and note["pictures"] == 6
    assert Cache.open(tmp_path / "large-exact").decoding == []
    scaled, on_ray, exact = (
        Cache.open(tmp_path / f"large-{name}").image_embeddings()[:6].astype(np.float32)
        for name in ("local", "ray", "exact")
    )
    np.testing.assert_allclose(on_ray, scaled, atol=1e-3)
    assert np.abs(on_ray - exact).max() > 2e-3
