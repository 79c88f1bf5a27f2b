"""Whatever is wrong with a bundle is found before any score."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_tiny import changed_manifest

from runtime.config import SessionConfig
from runtime.scoring.bundle import BundleError, manifest_bytes, open_bundle
from runtime.scoring.scorer import Scorer


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def test_a_flipped_bit_anywhere_is_an_error(copy: Path) -> None:
    """Every file, at places drawn over its length; bundle.json more often, since it guards the others."""
    generator = np.random.default_rng(0)
    for path in sorted(copy.iterdir()):
        data = path.read_bytes()
        for position in generator.integers(0, len(data), 60 if path.name == "bundle.json" else 3):
            changed = bytearray(data)
            changed[position] ^= 1 << int(generator.integers(8))
            path.write_bytes(changed)
            with pytest.raises(BundleError):
                open_bundle(copy)
        path.write_bytes(data)
    open_bundle(copy)


def test_faults_name_every_file(copy: Path) -> None:
    (copy / "weights.bin").unlink()
    with open(copy / "README.md", "a") as file:
        file.write("!")
    with pytest.raises(BundleError, match=r"README\.md has \d+ bytes instead of \d+; weights\.bin is missing"):
        Scorer.load(copy)


def test_newer_format_asks_for_an_upgrade(copy: Path) -> None:
    changed_manifest(copy, lambda manifest: manifest.update(format=2))
    with pytest.raises(BundleError, match="bundle format 2; this version of plaudit reads \\[1\\]: upgrade"):
        open_bundle(copy)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: it has no bundle\.json"):
        open_bundle(tmp_path)


def test_manifest_that_contradicts_its_backbone_is_an_error(copy: Path) -> None:
    def other_size(manifest: dict[str, Any]) -> None:
        manifest["identity"]["preprocess"]["size"] = [32, 32]

    changed_manifest(copy, other_size)
    with pytest.raises(BundleError, match=r"pixels .*64, 64.* but the backbone's is .*32, 32"):
        open_bundle(copy)


def test_graph_that_contradicts_its_manifest_is_an_error_before_any_score(copy: Path) -> None:
    def other_context(manifest: dict[str, Any]) -> None:
        manifest["graphs"]["fp32"]["text"]["inputs"]["tokens"] = ["int32", ["n", 77]]

    changed_manifest(copy, other_context)
    with pytest.raises(BundleError, match=r"text\.onnx has inputs .*'c'.*, its manifest .*77"):
        Scorer.load(copy).embed_prompts(["a cat"])


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/file"])
def test_files_outside_of_the_folder_are_refused(copy: Path, name: str) -> None:
    entry = {"sha256": "0" * 64, "bytes": 1}
    changed_manifest(copy, lambda manifest: manifest["files"].update({name: entry}))
    with pytest.raises(BundleError, match="outside of the folder"):
        open_bundle(copy)


def test_missing_and_unknown_fields_are_errors(copy: Path) -> None:
    changed_manifest(copy, lambda manifest: manifest.pop("graphs"))
    with pytest.raises(BundleError, match="lacks graphs"):
        open_bundle(copy)


def test_precision_that_is_not_there(bundle: Path, copy: Path) -> None:
    changed_manifest(copy, lambda manifest: (manifest["precisions"].remove("int8"), manifest["graphs"].pop("int8")))
    with pytest.raises(BundleError, match="no graphs at int8, only at"):
        Scorer.load(copy, SessionConfig(precision="int8"))


def test_digest_covers_the_manifest(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert manifest_bytes(manifest) == (bundle / "bundle.json").read_bytes()
    assert manifest_bytes({**manifest, "opset": 21}) != manifest_bytes(manifest)
    assert open_bundle(bundle).digest == manifest["digest"]
