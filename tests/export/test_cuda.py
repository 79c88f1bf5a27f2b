"""A bundle's graphs for CUDA, made and proven where there is none."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from export_tiny import head_manifest, tiny_backbone, tiny_head, write_pictures

from embed.graphs import rewrite
from embed.spec import InputError
from export import measure
from export.bundle_writer import export_bundle
from export.config import ExportConfig
from export.parity import ParityError
from runtime.config import SessionConfig
from runtime.scoring import graphs
from runtime.scoring.bundle import BundleError, open_bundle
from runtime.scoring.scorer import Scorer


@pytest.fixture(autouse=True)
def few_generated_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "GENERATED_PICTURES", 6)


def export(folder: Path, *precisions: str) -> Path:
    backbone = tiny_backbone()
    pictures = tuple(write_pictures(folder / "pictures", 6))
    config = ExportConfig(precisions, pictures=pictures, max_flips=0.9)  # type: ignore[arg-type]
    export_bundle(folder / "bundle", backbone, tiny_head(), head_manifest(backbone), config)
    return folder / "bundle"


def test_a_bundle_has_them_beside_the_others_and_a_cpu_does_without(tmp_path: Path) -> None:
    bundle = export(tmp_path, "fp32", "fp16", "fp16-cuda")
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert list(manifest["parity"]["precisions"]) == ["fp16", "fp32"]
    assert manifest["reference"]["fp16-cuda"] == manifest["reference"]["fp16"]
    assert "fp16-cuda runs only on CUDA, and this bundle was made without CUDA" in (bundle / "README.md").read_text()
    operators = {path.name for path in bundle.glob("*.onnx") if b"SkipLayerNormalization" in path.read_bytes()}
    assert operators == {f"{part}.fp16-cuda.onnx" for part in ("image", "text", "model")}
    assert Scorer.load(bundle).precision == "fp32"
    with pytest.raises(BundleError, match=r"fp16-cuda run only on CUDA.*--provider cuda"):
        Scorer.load(bundle, SessionConfig(precision="fp16-cuda"))


def test_on_cuda_they_are_the_default(tmp_path: Path) -> None:
    bundle = open_bundle(export(tmp_path, "fp32", "fp16", "fp16-cuda"))
    assert bundle.precision(None, on_cuda=True) == "fp16-cuda"
    assert bundle.precision("fp32", on_cuda=True) == "fp32"
    assert bundle.precision(None) == "fp32"


def test_without_cuda_the_fp16_graphs_have_to_stand_for_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fp16-cuda cannot be measured.*--precision fp32,fp16,fp16-cuda"):
        export(tmp_path, "fp32", "fp16-cuda")


def test_where_there_is_cuda_they_are_measured_and_need_no_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    from export.bundle_files import _tolerances

    scores = {"max_score_difference": 0.25, "limit": None}
    figures = {"scores": scores, "vectors": {}}
    manifest = {
        "precisions": ["fp16-cuda"],
        "parity": {"precisions": {"fp16-cuda": figures}},
        "reference": {"fp16-cuda": {"score": 1e9}},
    }

    class Checked:
        def check_reference(self) -> dict[str, float]:
            return {"score": 0.1}

    monkeypatch.setattr("export.bundle_files.Scorer.load", lambda *_: Checked())
    assert _tolerances(Path("bundle"), manifest) == {"fp16-cuda": {"score": 0.5}}  # type: ignore[arg-type]


def test_a_wrong_structure_is_found_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = rewrite.self_attention

    def wrong(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, heads: int, causal: bool) -> torch.Tensor:
        return right(x, weight, bias, heads, not causal)

    monkeypatch.setattr(rewrite, "self_attention", wrong)
    with pytest.raises(ParityError, match="the graph for CUDA and torch disagree in float32"):
        export(tmp_path, "fp32", "fp16", "fp16-cuda")


def test_runs_that_cannot_be_recorded_are_not(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a CPU that is taken for a device: recording refused, the picture tower's batches are right nevertheless."""
    opened = graphs.open_session

    def open_session(*args: object, **more: object) -> object:
        if any(isinstance(provider, tuple) for provider in args[1] or ()):  # type: ignore[attr-defined]
            raise InputError("not all nodes are on the device")
        return opened(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(graphs, "open_session", open_session)
    monkeypatch.setattr(graphs, "CUDA_PRECISION", "fp32")
    plain, device = (
        graphs.Sessions(open_bundle(bundle), "fp32", SessionConfig(providers=("cpu",), threads=1)) for _ in range(2)
    )
    monkeypatch.setitem(vars(device), "provider", graphs.CUDA)
    size = open_bundle(bundle).identity.preprocess.size
    pixels = np.random.default_rng(0).integers(0, 256, (5, *size, 3), dtype=np.uint8)
    expected = plain.encode(pixels)["image_embedding"]
    np.testing.assert_allclose(device.encode(list(pixels))["image_embedding"], expected, atol=1e-6)
    assert "not recorded" in caplog.text
    device.close()
