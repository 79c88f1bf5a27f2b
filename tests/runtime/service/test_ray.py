"""The service on a local Ray cluster: two replicas answer what one scorer answers."""

import socket
from pathlib import Path

import httpx
import numpy as np
import pytest
from paths import ROOT
from service_server import PATIENCE_S, TOKEN, base64_of

from runtime.config import ServiceConfig
from runtime.scoring.scorer import Scorer

pytest.importorskip("ray.serve", reason="needs the extra ray", exc_type=ImportError)


@pytest.mark.filterwarnings("default")  # Ray's own, of its many parts
def test_replicas_score_like_the_scorer(
    bundle: Path, scorer: Scorer, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray gives its workers the lowest priority, and up after seconds, which fails on a machine that is busy.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    for what in ("READY_CHECK", "HEALTH_CHECK"):
        monkeypatch.setenv(f"RAY_SERVE_PROXY_{what}_TIMEOUT_S", "60")
    import ray
    from ray import serve

    from runtime.service.ray import NAME, deployment

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runtime_env = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env=runtime_env, log_to_driver=False)
    try:
        config = ServiceConfig(bundle, threads=1, decoders=1, tokens=(TOKEN,), deadline_s=PATIENCE_S)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(deployment(config, replicas=2), name=NAME, route_prefix="/")
        expected = scorer.score("a cat", pictures)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            asked = {"prompt": "a cat", "images": [*map(base64_of, pictures), "junk"]}
            assert client.post("/v1/score", json=asked).status_code == 401
            client.headers["Authorization"] = f"Bearer {TOKEN}"
            for _ in range(6):
                *items, bad = client.post("/v1/score", json=asked).json()["items"]
                np.testing.assert_allclose([item["score"] for item in items], expected, atol=1e-5)
                assert not bad["ok"]
            assert client.get("/health/ready").status_code == 200
            assert client.post("/admin/reload").status_code == 404
    finally:
        serve.shutdown()
        ray.shutdown()
