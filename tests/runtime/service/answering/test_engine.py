"""The service decodes as its bundle says."""

import shutil
from pathlib import Path

import numpy as np
from embed_image_files import encoded, picture
from export_tiny import changed_manifest
from service_server import form, serving

from runtime.scoring.scorer import Scorer


def test_large_pictures_are_decoded_at_the_scale_of_the_bundle(bundle: Path, scorer: Scorer, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "scaled")
    note = {"scale": 2, "rows": 32, "cosine_mean": 0.9999, "cosine_min": 0.9995}
    changed_manifest(tmp_path / "scaled", lambda manifest: manifest.update(decoding=note))
    pictures = [encoded(picture(531, 403, seed), "JPEG") for seed in range(3)]
    scores = {}
    for path in (bundle, tmp_path / "scaled"):
        with serving(path) as (client, _):
            answer = client.post("/v1/score", data={"prompt": "a cat"}, files=form(pictures)).json()
            scores[path] = [item["score"] for item in answer["items"]]
            np.testing.assert_allclose(scores[path], Scorer.load(path).score("a cat", pictures), atol=1e-6)
    assert np.abs(np.subtract(*scores.values())).max() > 1e-5
