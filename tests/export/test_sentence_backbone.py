"""A bundle of a backbone of sentence-transformers scores as that library's own vectors say."""

import json
from pathlib import Path

import numpy as np
import torch
from export_tiny import head_manifest, write_pictures
from PIL import Image
from sentence_tiny import DIM, save_tiny
from sentence_transformers import SentenceTransformer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from embed.backbones.load import load_backbone
from embed.spec import Source
from export.bundle_writer import export_bundle
from export.config import ExportConfig
from heads.config import HeadConfig
from heads.models import build_head
from runtime.cli.main import main
from runtime.config import SessionConfig
from runtime.scoring.scorer import Scorer

PROMPTS = ["a photo of a cat", "A Photo,  of A CAT!", "", "café cafÃ© &amp; 北京", "longer than any context " * 9]


def test_a_bundle_gives_the_vectors_and_scores_of_encode(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    pictures = write_pictures(tmp_path / "pictures", 5)
    backbone = load_backbone(Source(f"st:{folder}"))
    head = build_head(HeadConfig("fusion", DIM, hidden=8))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    config = ExportConfig(pictures=tuple(pictures))
    export_bundle(tmp_path / "bundle", backbone, head.eval(), head_manifest(backbone), config)

    theirs = SentenceTransformer(str(folder), device="cpu")
    processor = theirs[0].processor
    processor.image_processor = CLIPImageProcessorPil(**processor.image_processor.to_dict())
    image, text = theirs.encode([Image.open(path) for path in pictures]), theirs.encode(PROMPTS)
    scorer = Scorer.load(tmp_path / "bundle", SessionConfig(threads=1))
    np.testing.assert_allclose(scorer.embed_images(pictures), image, atol=1e-5)
    np.testing.assert_allclose(scorer.embed_prompts(PROMPTS), text, atol=1e-5)
    with torch.no_grad():
        scores = head(image_embedding=torch.from_numpy(image), text_embedding=torch.from_numpy(text)).numpy()
    np.testing.assert_allclose(scorer.score_items(PROMPTS, pictures).scores, scores, atol=1e-4)
    manifest = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    figures = manifest["parity"]["precisions"]["fp32"]
    assert figures["vectors"]["text_embedding"]["cosine_min"] > 0.99999 and figures["whole_graph"] < 1e-5
    assert manifest["tokenizer"]["cleaning"] == "none"
    assert main(["score", str(tmp_path / "bundle"), str(pictures[0]), "--prompt", "a cat"]) == 0
