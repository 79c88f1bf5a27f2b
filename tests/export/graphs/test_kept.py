"""A head takes another's place in a bundle; what else the bundle has is the same to the last bit."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from export_tiny import ImageOnly, head_manifest, tiny_backbone, tiny_committee, tiny_head, write_pictures
from many_heads import make_many
from onnx import numpy_helper

from embed.spec import InputError
from export.bundle_writer import export_outputs
from export.config import ExportConfig
from export.exported import outputs_with
from export.head_alone import export_head_alone
from export.outputs import NamedHead, Outputs
from runtime.scoring.bundle import open_bundle
from runtime.scoring.scorer import Scorer


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_many(tmp_path_factory)


def parameters(bundle: Path) -> dict[str, bytes]:
    graph = onnx.load(str(bundle / "head.onnx")).graph
    return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in graph.initializer}


def values(bundle: Path) -> dict[str, np.ndarray]:
    """All that the heads give for some vectors."""
    scorer, rng = Scorer.load(bundle), np.random.default_rng(0)
    vectors = rng.standard_normal((2, 9, scorer.identity.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    return scorer.score_vectors(dict(zip(("image_embedding", "text_embedding"), vectors, strict=True)))


@pytest.mark.parametrize("name", ["liked", "aesthetic"])  # the second is the first head of the bundle
def test_the_others_keep_every_bit(many: Path, tmp_path: Path, name: str) -> None:
    backbone = tiny_backbone()
    head: Any = ImageOnly().eval() if name == "aesthetic" else tiny_head(seed=21)
    committee = tiny_committee() if name == "liked" else None
    new = NamedHead(name, head, committee, head_manifest(backbone))
    pictures = tuple(write_pictures(tmp_path / "pictures", 8))
    outputs = outputs_with(open_bundle(many), [new])
    export_outputs(
        tmp_path / "new", backbone, outputs, ExportConfig(("fp32", "fp16"), pictures=pictures, max_flips=0.5)
    )

    before, after = parameters(many), parameters(tmp_path / "new")
    kept = {key: value for key, value in before.items() if not key.startswith(f"{name}.")}
    assert kept == {key: value for key, value in after.items() if not key.startswith(f"{name}.")}
    assert kept and {key for key in kept if key.startswith("relu.committee.")}
    assert any(after[key] != before[key] for key in after.keys() & before.keys() if key.startswith(f"{name}."))

    old, found = open_bundle(many).manifest["outputs"], open_bundle(tmp_path / "new").manifest["outputs"]
    assert [one for one in found if one["name"] != name] == [one for one in old if one["name"] != name]
    was, now = values(many), values(tmp_path / "new")
    others = [key for key in was if key.startswith("relu") or key == "clip_similarity"]
    if name == "liked":
        others += ["score"]
    assert len(others) >= 5
    for key in others:
        np.testing.assert_array_equal(now[key], was[key])
    changed = "score" if name == "aesthetic" else "liked"
    assert np.abs(now[changed] - was[changed]).max() > 1e-3
    np.testing.assert_allclose(now["blend"], 0.7 * now["liked"] + 0.3 * now["relu"], rtol=1e-5, atol=1e-6)


def of_heads_alone() -> dict[str, Any]:
    return head_manifest(tiny_backbone(), source=asdict(tiny_backbone().source))


def test_heads_alone_too(tmp_path: Path) -> None:
    manifest = of_heads_alone()
    two = Outputs(tuple(NamedHead(name, tiny_head(seed=seed), None, manifest) for seed, name in enumerate(("a", "b"))))
    export_head_alone(tmp_path / "old", two, ExportConfig())
    outputs = outputs_with(open_bundle(tmp_path / "old"), [NamedHead("b", tiny_head(seed=7), None, manifest)])
    export_head_alone(tmp_path / "new", outputs, ExportConfig())
    was, now = values(tmp_path / "old"), values(tmp_path / "new")
    np.testing.assert_array_equal(now["score"], was["score"])
    assert np.abs(now["b"] - was["b"]).max() > 1e-3


def test_only_a_head_of_that_name_can_be_replaced(many: Path, tmp_path: Path) -> None:
    manifest = of_heads_alone()
    for name in ("blend", "other"):
        with pytest.raises(InputError, match="unknown head"):
            outputs_with(open_bundle(many), [NamedHead(name, tiny_head(), None, manifest)])
    export_head_alone(tmp_path / "one", Outputs.of(tiny_head(), None, manifest), ExportConfig())
    with pytest.raises(InputError, match="has one output"):
        outputs_with(open_bundle(tmp_path / "one"), [NamedHead("score", tiny_head(), None, manifest)])
