"""A bundle holds what it should, equals torch, comes out the same twice, and is not written when it is off."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_tiny import ImageOnly, changed_manifest, head_manifest, tiny_backbone, tiny_head, write_pictures
from progress_told import Told
from service_server import TOKEN, serving

from embed.spec import IdentityMismatch, InputError
from export import bundle_writer, measure
from export.bundle_writer import export_bundle
from export.cli.update import _as_before
from export.config import ExportConfig
from export.parity import ParityError
from runtime.scoring.bundle import open_bundle
from runtime.scoring.scorer import Scorer


@pytest.fixture(autouse=True)
def few_generated_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "GENERATED_PICTURES", 6)


def test_bundle_has_the_files_of_its_layout(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    expected = {"weights.bin", "tokenizer.json", "reference.npz", "README.md", "head.onnx"}
    expected |= {f"{part}{p}.onnx" for part in ("model", "image", "text") for p in ("", ".fp16", ".int8")}
    assert set(manifest["files"]) == expected == {path.name for path in bundle.iterdir()} - {"bundle.json"}
    assert manifest["precisions"] == ["fp32", "fp16", "int8"]
    assert manifest["head"]["inputs"] == ["image_embedding", "text_embedding"]
    assert manifest["tokenizer"]["shortens"] is True
    for path in bundle.glob("*.onnx"):
        onnx.checker.check_model(str(path), full_check=True)


def test_certificates_are_measured_and_the_whole_graph_equals_its_parts(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    figures = manifest["parity"]["precisions"]
    assert manifest["parity"]["pictures"] == "real"
    assert figures["fp32"]["scores"]["max_score_difference"] < 1e-5
    assert figures["fp32"]["scores"]["flips"] == 0
    assert figures["fp32"]["vectors"]["text_embedding"]["cosine_min"] > 0.9999999
    cosines = [figures[p]["vectors"]["image_embedding"]["cosine_min"] for p in ("fp32", "fp16", "int8")]
    assert cosines == sorted(cosines, reverse=True) and cosines[2] > 0.99
    assert figures["fp32"]["whole_graph"] < 1e-5
    card = (bundle / "README.md").read_text()
    assert "tiny-vit" in card and "| int8 |" in card


def test_score_differs_from_torch_by_rounding_alone(bundle: Path, tmp_path: Path) -> None:
    backbone, head = tiny_backbone(), tiny_head()
    pictures, prompts = write_pictures(tmp_path, 5), ["a cat", "a dog on a mat", "", "z " * 99, "a cat"]
    scorer = Scorer.load(bundle)
    pixels = torch.from_numpy(np.stack([p for p in scorer.decode(pictures) if isinstance(p, np.ndarray)]))
    with torch.inference_mode():
        vectors = backbone.image_tower()(pixels)
        texts = backbone.text_tower()(torch.from_numpy(backbone.tokenize(prompts)))
        expected = head(image_embedding=vectors, text_embedding=texts).numpy()
    np.testing.assert_allclose(scorer.score(prompts, pictures), expected, atol=1e-5)


def test_same_head_gives_same_bytes(tmp_path: Path) -> None:
    backbone, head = tiny_backbone(), ImageOnly().eval()
    for name in ("one", "two"):
        export_bundle(tmp_path / name, backbone, head, head_manifest(backbone), ExportConfig(), told := Told())
    assert told.works["export"].whole() and "comparing with torch" in told.works["export"].notes
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]  # nothing temporary is left
    assert "text.onnx" not in first and "tokenizer.json" not in first
    scorer = Scorer.load(tmp_path / "one")
    assert not scorer.reads_text
    picture = write_pictures(tmp_path / "pictures", 1)
    assert np.array_equal(scorer.score("", picture), scorer.score("whatever", picture))
    with pytest.raises(InputError, match="export the head again with --text-search"):
        scorer.embed_prompts(["a cat"])
    # A head without folds cannot say how sure it is; a bundle from before any could is served as it was.
    changed_manifest(tmp_path / "two", lambda manifest: manifest["head"].pop("committee"))
    for name in ("one", "two"):
        assert set(Scorer.load(tmp_path / name).score_items("", picture).outputs) == {"score"}
    assert "ncertaint" not in (tmp_path / "one" / "README.md").read_text()


def test_a_tower_for_texts_can_be_kept_for_searching(tmp_path: Path) -> None:
    backbone, head = tiny_backbone(), ImageOnly().eval()
    pictures = tuple(write_pictures(tmp_path / "pictures", 12))
    config = ExportConfig(("fp32", "int8"), pictures=pictures, max_flips=0.5)
    export_bundle(tmp_path / "plain", backbone, head, head_manifest(backbone), config)
    kept = tmp_path / "kept"
    export_bundle(kept, backbone, head, head_manifest(backbone), replace(config, text_search=True))
    plain, scorer = Scorer.load(tmp_path / "plain"), Scorer.load(kept)
    prompts = ["a cat", "a dog on a mat", ""]
    with torch.inference_mode():
        expected = backbone.text_tower()(torch.from_numpy(backbone.tokenize(prompts))).numpy()
    np.testing.assert_allclose(scorer.embed_prompts(prompts), expected, atol=1e-5)
    assert np.array_equal(scorer.score("a cat", pictures), plain.score("a cat", pictures))
    assert not scorer.reads_text and scorer.inputs == ("image_embedding",)
    whole = onnx.load(str(kept / "model.onnx"), load_external_data=False)
    assert [one.name for one in whole.graph.input] == ["pixels"]
    figures = json.loads((kept / "bundle.json").read_text())["parity"]["precisions"]
    cosines = [figures[precision]["vectors"]["text_embedding"]["cosine_min"] for precision in ("fp32", "int8")]
    assert cosines[0] > 0.999999 and cosines[1] > 0.99
    assert figures["fp32"]["scores"]["prompts"] == 1, "since the head reads none"
    assert {"score", "text_embedding"} <= set(scorer.check_reference())
    with serving(kept, tokens=(TOKEN,)) as running:
        found = running.client.post("/v1/embed", json={"prompts": prompts}).json()["prompts"]
    np.testing.assert_allclose([one["embedding"] for one in found], expected, atol=1e-5)
    assert "--text-search" in _as_before(open_bundle(kept)) and "--text-search" not in _as_before(plain.bundle)


def test_parity_beyond_the_limit_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, head = tiny_backbone(), ImageOnly().eval()
    actual = bundle_writer.compose.export_head

    def other_head(head: Any, widths: Any) -> Any:
        changed = ImageOnly().eval()
        changed.load_state_dict({name: value * 1.01 for name, value in head.state_dict().items()})
        return actual(changed, widths)

    monkeypatch.setattr(bundle_writer.compose, "export_head", other_head)
    with pytest.raises(ParityError, match="fp32 and torch disagree: a score differs by"):
        export_bundle(tmp_path / "out", backbone, head, head_manifest(backbone), ExportConfig())
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_said_first(tmp_path: Path) -> None:
    backbone, head = tiny_backbone(), tiny_head()
    manifest = head_manifest(backbone)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not a bundle and not empty"):
        export_bundle(tmp_path, backbone, head, manifest, ExportConfig())
    other = {**manifest, "identity": {**manifest["identity"], "activation": "quick_gelu"}}
    with pytest.raises(IdentityMismatch, match="activation: quick_gelu / gelu"):
        export_bundle(tmp_path / "out", backbone, head, other, ExportConfig())
    with pytest.raises(InputError, match="near names: fp16"):
        ExportConfig(("fp61",))
    with pytest.raises(InputError, match="max_flips is 1"):
        ExportConfig(max_flips=1)


def test_lower_precision_wants_real_pictures(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    with pytest.raises(InputError, match="add --images FOLDER"):
        export_bundle(tmp_path / "out", backbone, ImageOnly().eval(), head_manifest(backbone), ExportConfig(("fp16",)))
