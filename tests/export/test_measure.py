"""How a bundle says that large JPEGs are decoded, what that changes, and that the runtime does so."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from export_tiny import ImageOnly, changed_manifest, head_manifest, tiny_backbone, tiny_head
from PIL import Image

from embed.config import DecodingPolicy
from embed.inputs.images import load_pixels, load_scaled
from embed.spec import InputError
from export.bundle_writer import export_bundle
from export.config import ExportConfig
from export.measure import choose_decoding, torch_vectors
from export.outputs import torch_scores
from export.parity import generated_pictures
from runtime.scoring.bundle import open_bundle
from runtime.scoring.manifest import BundleManifest
from runtime.scoring.scorer import Scorer

NOTED = {"scale": 2, "rows": 32, "cosine_mean": 0.9999, "cosine_min": 0.9995, "pictures": 400}
SPEC = tiny_backbone().identity.preprocess


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight JPEGs that are large for a backbone of 64 pixels, two that are not, a PNG and no picture."""
    folder = tmp_path_factory.mktemp("large")
    for i, pixels in enumerate(generated_pictures(10, seed=3)):
        image = Image.fromarray(pixels).resize((531, 403) if i < 8 else (200, 100))
        image.save(folder / f"{i}.jpg", quality=90)
    image.resize((600, 500)).save(folder / "x.png")
    (folder / "y.jpg").write_bytes(b"no picture")
    return sorted(folder.iterdir())


def exported(
    out: Path, pictures: Sequence[Path], policy: DecodingPolicy = "auto", noted: dict[str, float] | None = None
) -> BundleManifest:
    backbone = tiny_backbone()
    config = ExportConfig(pictures=tuple(pictures), prompts=("a cat", "a dog"), decoding=policy)
    return export_bundle(out, backbone, tiny_head(), head_manifest(backbone, decoding=noted), config)


def test_a_bundle_decodes_as_the_heads_cache_did_and_says_what_that_changes(
    tmp_path: Path, pictures: list[Path]
) -> None:
    backbone, head = tiny_backbone(), tiny_head()
    manifest = exported(tmp_path / "b", pictures, noted=NOTED)
    bundle = open_bundle(tmp_path / "b")
    assert manifest["decoding"] == {name: NOTED[name] for name in NOTED if name != "pictures"}
    assert bundle.scale == 2
    # A slow loop over the pairs of the eight large pictures under both prompts.
    data = [path.read_bytes() for path in pictures[:8]]
    both = [np.stack([load_pixels(one, SPEC)[0] for one in data])]
    both += [np.stack([load_scaled(one, SPEC, scale=2)[0] for one in data])]
    exact, scaled = (torch_vectors(backbone, head.inputs, pixels, ["a cat", "a dog"]) for pixels in both)
    cosine = (exact["image_embedding"] * scaled["image_embedding"]).sum(1)
    flips = 0
    for text in exact["text_embedding"]:
        texts = np.tile(text, (8, 1))
        ours, theirs = (
            torch_scores(head, {"image_embedding": v["image_embedding"], "text_embedding": texts})
            for v in (exact, scaled)
        )
        flips += sum((ours[i] > ours[j]) != (theirs[i] > theirs[j]) for i in range(8) for j in range(i))
    found = manifest["parity"]["decoding"]
    assert found["pictures"] == 8 and found["decided_pairs"] == 56
    assert found["cosine_min"] == pytest.approx(cosine.min(), abs=1e-6) and cosine.min() < 1
    assert found["flips"] == pytest.approx(flips / 56)
    assert "8 of the pictures have a cosine of at least" in (tmp_path / "b" / "README.md").read_text()


def test_the_runtime_follows_the_bundle(tmp_path: Path, pictures: list[Path]) -> None:
    exported(tmp_path / "b", pictures, noted=NOTED)
    decoded = list(Scorer.load(tmp_path / "b").decode([*pictures[:2], pictures[0].read_bytes(), pictures[9]]))
    data = [pictures[i].read_bytes() for i in (0, 1, 0, 9)]
    for found, one in zip(decoded, data, strict=True):
        assert np.array_equal(found, load_scaled(one, SPEC, scale=2)[0])
    assert not np.array_equal(decoded[0], load_pixels(data[0], SPEC)[0])


def test_bundles_that_say_nothing_are_exact(tmp_path: Path, pictures: list[Path]) -> None:
    manifest = exported(tmp_path / "b", pictures)
    assert manifest["decoding"] is None and "decoding" not in manifest["parity"]
    assert exported(tmp_path / "asked", pictures, "exact", NOTED)["decoding"] is None
    changed_manifest(tmp_path / "b", lambda written: written.pop("decoding"))
    assert "decoding" not in json.loads((tmp_path / "b" / "bundle.json").read_text())
    (found,) = Scorer.load(tmp_path / "b").decode([pictures[0]])
    assert np.array_equal(found, load_pixels(pictures[0].read_bytes(), SPEC)[0])


def test_the_least_scale_is_chosen_where_the_cache_was_exact(tmp_path: Path, pictures: list[Path]) -> None:
    manifest = exported(tmp_path / "b", pictures, "scaled")
    assert manifest["decoding"] is not None and manifest["decoding"]["scale"] in (2, 3, 4)
    assert manifest["decoding"]["rows"] == 8 and manifest["decoding"]["cosine_min"] >= 0.999
    for few in (pictures[8:], pictures[:1], ()):
        with pytest.raises(InputError, match="give at least two of them with --images"):
            choose_decoding(tiny_backbone(), ["image_embedding"], ExportConfig(pictures=tuple(few)))


def test_no_scale_is_an_error(pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embed.config.Wanted.min_cosine", 1.0)
    with pytest.raises(InputError, match=r"at no scale .*at 2: 0\.9.*at 3: 0\.9.*--decoding exact"):
        choose_decoding(tiny_backbone(), ImageOnly.inputs, ExportConfig(pictures=tuple(pictures)))
