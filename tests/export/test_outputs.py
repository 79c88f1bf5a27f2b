"""Several heads in one bundle say what each says in a bundle of its own, from one set of weights."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from export_tiny import head_manifest, tiny_backbone, tiny_head, write_pictures
from many_heads import heads, make_many, some_outputs

from embed.backbones import load as loading
from embed.spec import IdentityMismatch, InputError
from export import exported, measure
from export.bundle_writer import export_bundle
from export.cli.main import main
from export.config import ExportConfig
from export.head_alone import export_head_alone
from export.outputs import NamedHead, Outputs, parse_blends
from export.parity import ParityError
from heads.store.disk import save_head
from runtime.scoring.scorer import Scorer
from runtime.scoring.weights import external_places

PROMPTS = ["a cat", "", "two dogs", "a cat"]


@pytest.fixture(autouse=True)
def few_generated_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "GENERATED_PICTURES", 6)
    for module in (exported, loading):
        monkeypatch.setattr(module, "load_backbone", lambda source: tiny_backbone())


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_many(tmp_path_factory)


def test_each_output_equals_that_of_its_own_bundle(many: Path, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", len(PROMPTS))
    scorer = Scorer.load(many)
    found = scorer.score_items(PROMPTS, pictures).outputs
    own = {}
    for one in heads():
        out = tmp_path / one.name
        export_bundle(out, tiny_backbone(), one.head, one.manifest, ExportConfig(), committee=one.committee)
        own[one.name] = Scorer.load(out).score_items(PROMPTS, pictures).outputs
        for value, there in dict(zip(scorer.named.names, scorer.named.all, strict=True))[one.name].values.items():
            expected = own[one.name].pop(value)
            np.testing.assert_allclose(found[there], expected, atol=1e-3 if value == "percentile" else 1e-5)
        assert not own[one.name]
    pixels = np.stack([p for p in scorer.decode(pictures) if isinstance(p, np.ndarray)])
    with torch.inference_mode():
        image = tiny_backbone().image_tower()(torch.from_numpy(pixels))
        text = tiny_backbone().text_tower()(torch.from_numpy(tiny_backbone().tokenize(PROMPTS)))
    np.testing.assert_allclose(found["clip_similarity"], torch.cosine_similarity(image, text), atol=1e-5)
    np.testing.assert_allclose(found["blend"], 0.7 * found["liked"] + 0.3 * found["relu"], atol=1e-5)
    np.testing.assert_allclose(found["odd"], 5 * found["clip_similarity"] - 2 * found["score"], atol=1e-5)
    whole = scorer.run_whole(pixels, PROMPTS)
    for name in found:
        factor = 100 if name.endswith("percentile") else 1
        np.testing.assert_allclose(factor * whole[name], found[name], atol=1e-3 if factor == 100 else 1e-5)


def test_no_weight_is_on_disk_twice(many: Path) -> None:
    weights = (many / "weights.bin").read_bytes()
    places = {place for path in many.glob("*.onnx") for place in external_places(path.read_bytes())}
    contents = [hashlib.sha256(weights[start : start + length]).digest() for start, length in places]
    assert len(contents) == len(set(contents)) > 10
    assert sum(length for _, length in places) > 0.9 * len(weights)
    for path in many.glob("*.onnx"):
        onnx.checker.check_model(str(path), full_check=True)


def test_every_output_is_certified_and_described(many: Path) -> None:
    manifest = json.loads((many / "bundle.json").read_text())
    assert [entry["name"] for entry in manifest["outputs"]] == list(some_outputs().names)
    assert manifest["head"]["inputs"] == ["image_embedding", "text_embedding"]
    for precision in ("fp32", "fp16"):
        figures = manifest["parity"]["precisions"][precision]
        assert set(figures["outputs"]) == {"liked", "relu", "clip_similarity", "blend", "odd"}
        assert "uncertainty" not in figures and figures["outputs"]["liked"]["uncertainty"]["mean"] > 0
    for one in manifest["parity"]["precisions"]["fp32"]["outputs"].values():
        assert one["scores"]["max_score_difference"] < 1e-4 and one["scores"]["decided_pairs"] > 20
    assert {"score", "liked", "liked_uncertainty", "odd"} <= set(manifest["reference"]["fp16"])
    card = (many / "README.md").read_text()
    for line in ("# 5 outputs on tiny-vit", "| blend | 0.7 * liked + 0.3 * relu |", "| fp16 | odd |", "## relu"):
        assert line.replace("5 outputs", f"{len(manifest['outputs'])} outputs") in card


def test_an_output_that_is_off_is_named_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = (NamedHead("a", tiny_head(), None, alone()), NamedHead("b", tiny_head(seed=5), None, alone()))
    right = Outputs.scores
    monkeypatch.setattr(Outputs, "scores", lambda self, v: right(self, v) | {"b": 1.01 * right(self, v)["b"]})
    with pytest.raises(ParityError, match="fp32 and torch disagree about b: a score differs by"):
        export_head_alone(tmp_path / "out", Outputs(named), ExportConfig())
    assert not list(tmp_path.iterdir())


def alone() -> dict[str, Any]:
    return head_manifest(tiny_backbone(), source={"model": "tiny-vit", "pretrained": None})


def test_heads_without_towers_stand_together_too(tmp_path: Path) -> None:
    named = (NamedHead("a", tiny_head(), None, alone()), NamedHead("b", tiny_head(seed=5), None, alone()))
    export_head_alone(tmp_path / "out", Outputs(named, True), ExportConfig())
    scorer, rng = Scorer.load(tmp_path / "out"), np.random.default_rng(0)
    vectors = {name: rng.normal(size=(5, 32)).astype(np.float32) for name in scorer.inputs}
    vectors = {name: rows / np.linalg.norm(rows, axis=1, keepdims=True) for name, rows in vectors.items()}
    found = scorer.score_vectors(vectors)
    assert list(found) == ["score", "b", "clip_similarity"]
    with torch.inference_mode():
        expected = tiny_head(seed=5)(**{name: torch.from_numpy(rows) for name, rows in vectors.items()})
    np.testing.assert_allclose(found["b"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.7*liked + 0.3*aesthetic", {"blend": {"liked": 0.7, "aesthetic": 0.3}}),
        ("mix=liked-.5 * other_one", {"mix": {"liked": 1.0, "other_one": -0.5}}),
        ("- 2e-1*a", {"blend": {"a": -0.2}}),
    ],
)
def test_blends_are_read_as_written(text: str, expected: dict[str, dict[str, float]]) -> None:
    assert parse_blends([text]) == expected


@pytest.mark.parametrize(
    "text", ["", "a b", "a +", "2*", "a*2", "a = ", "0..1*a", "a + a", "1e99*a", "a / b", "a ++ b"]
)
def test_what_is_no_sum_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--blend"):
        parse_blends([text])


def test_names_that_would_mean_two_things_are_refused() -> None:
    first, second, _ = heads()
    for names in (
        ("a", "a"),
        ("a", "score"),
        ("a", "all"),
        ("a", "a_percentile"),
        ("a", "b c"),
        ("a", "clip_similarity"),
    ):
        with pytest.raises(InputError, match="output"):
            Outputs((replace(first, name=names[0]), replace(second, name=names[1])), True)
    with pytest.raises(InputError, match="unknown output in --blend 'likd'; near names: liked"):
        Outputs((first, second), False, {"blend": {"likd": 1.0}})
    with pytest.raises(InputError, match="two blends are called blend"):
        parse_blends(["a", "b"])
    theirs = {**second.manifest, "identity": {**second.manifest["identity"], "activation": "quick_gelu"}}
    with pytest.raises(IdentityMismatch, match="the head liked"):
        Outputs((first, replace(second, manifest=theirs)))


def test_the_commands_take_several_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(tmp_path / name) for name in ("liked", "second")]
    for folder, seed in zip(folders, (1, 5), strict=True):
        save_head(Path(folder), tiny_head(seed=seed), [], pa.array(["a"]), alone())
    out = str(tmp_path / "bundle")
    options = ["--clip-similarity", "--blend", "liked + 0.5*second", "--blend", "mix = second", "--out", out]
    assert main(["onnx", *folders, *options]) == 0
    text = capsys.readouterr().out
    for name in ("liked", "second", "clip_similarity", "blend", "mix"):
        assert re.search(rf"^fp32 +{name} ", text, re.MULTILINE)
    assert main(["check", out, "--head", folders[0], "--head", folders[1]]) == 0
    assert re.search("^fp32 +mix ", capsys.readouterr().out, re.MULTILINE)
    for argv, message in (
        (["check", out, "--head", folders[0]], "got 1 heads for a bundle of 2"),
        (["onnx", *folders, "--names", "a", "--out", out, "--overwrite"], "--names has 1 names for 2 heads"),
        (
            ["onnx", *folders, "--space", "--out", out, "--overwrite"],
            "--space makes the vectors those of a single head",
        ),
        (["onnx", *folders, "--blend", "a", "--out", out, "--overwrite"], "unknown output in --blend 'a'"),
    ):
        assert main(argv) == 2
        assert message in capsys.readouterr().err
