"""A bundle in a cosine head's space scores as the head does, and its embeddings are the head's."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from export_tiny import head_manifest, tiny_backbone, write_pictures

from embed.inputs.images import load_pixels
from export.bundle_writer import export_bundle
from export.config import ExportConfig
from export.graphs.space import into_space
from heads.config import HeadConfig
from heads.models import Cosine, build_head
from runtime.scoring.scorer import Scorer

PROMPTS = ("a cat", "two dogs on a bench", "a red square")


def test_scores_and_vectors_are_the_heads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = tiny_backbone()
    head = build_head(HeadConfig("cosine", backbone.identity.dim)).eval()
    assert isinstance(head, Cosine)
    for matrix in (head.image_residual, head.text_residual):
        torch.nn.init.normal_(matrix, std=0.2)
    moved, plain = into_space(backbone, head)
    pictures = write_pictures(tmp_path, 4)
    manifest = head_manifest(backbone) | {
        "head": dataclasses.asdict(HeadConfig("cosine", backbone.identity.dim)),
        "identity": moved.identity.to_json(),
    }
    export_bundle(tmp_path / "bundle", moved, plain, manifest, ExportConfig(pictures=tuple(pictures)))
    scorer = Scorer.load(tmp_path / "bundle")
    assert scorer.identity == moved.identity != backbone.identity

    pixels = np.stack([load_pixels(p.read_bytes(), backbone.identity.preprocess)[0] for p in pictures])
    with torch.inference_mode():
        v = backbone.image_tower()(torch.from_numpy(pixels))
        t = backbone.text_tower()(torch.from_numpy(backbone.tokenize(PROMPTS)))
        images, texts = head.embed_image(v).numpy(), head.embed_text(t).numpy()
        scores = head(v, t[:1].expand(len(v), -1)).numpy()
    np.testing.assert_allclose(scorer.embed_images(pictures), images, atol=1e-5)
    np.testing.assert_allclose(scorer.embed_prompts(PROMPTS), texts, atol=1e-5)
    np.testing.assert_allclose(scorer.score(PROMPTS[0], pictures), scores, atol=1e-3)  # of a scale of 100
    assert np.abs(images - v.numpy()).max() > 0.1
