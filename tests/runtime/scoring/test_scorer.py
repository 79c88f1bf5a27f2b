"""The scorer: any form of picture, one bad one among good, prompts encoded once, and no torch in the process."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_tiny import CALIBRATION, changed_manifest, write_pictures
from PIL import Image

from embed.arrays import softmax
from embed.inputs.images import ImageError
from embed.spec import InputError
from heads.evaluation.calibration import Curve
from runtime.config import SessionConfig
from runtime.scoring import scorer as scorer_module
from runtime.scoring.bundle import BundleError
from runtime.scoring.scorer import Scorer


@pytest.fixture(scope="module")
def scorer(bundle: Path) -> Scorer:
    return Scorer.load(bundle, SessionConfig(threads=2))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 7)


def test_every_form_of_a_picture_gives_the_same_score(scorer: Scorer, pictures: list[Path]) -> None:
    path = pictures[0]
    with Image.open(path) as image:
        image.load()
        forms: list[Any] = [str(path), path, path.read_bytes(), image, np.array(image)]
        scores = [float(scorer.score("a cat", [form])[0]) for form in forms]
    assert len(set(scores)) == 1


def test_batches_give_what_single_pictures_give(
    scorer: Scorer, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    single = [scorer.score("a cat", [path])[0] for path in pictures]
    monkeypatch.setattr(scorer_module, "BATCH", 3)
    np.testing.assert_allclose(scorer.score("a cat", iter(pictures)), single, atol=1e-6)
    assert len(set(np.round(single, 5))) == len(pictures)


def test_a_bad_picture_is_an_entry_and_the_others_are_scored(scorer: Scorer, pictures: list[Path]) -> None:
    images: list[Any] = [b"junk", pictures[0], "/nonexistent/x.png", np.zeros((4, 4), np.uint8), pictures[1]]
    scored = scorer.score_items("a cat", images)
    assert {number: error.stage for number, error in scored.errors.items()} == {0: "decode", 2: "read", 3: "read"}
    assert "No such file" in str(scored.errors[2])
    np.testing.assert_allclose(scored.scores[[1, 4]], scorer.score("a cat", pictures[:2]), atol=1e-6)
    assert np.isnan(scored.scores[[0, 2, 3]]).all()
    with pytest.raises(ImageError, match="unknown format"):
        scorer.score("a cat", images)


def test_all_bad_or_none_at_all(scorer: Scorer) -> None:
    assert len(scorer.score_items("a cat", [b"junk"]).errors) == 1
    assert scorer.score("a cat", []).shape == (0,)
    assert scorer.embed_images([]).shape == scorer.embed_prompts([]).shape == (0, 32)


def test_one_prompt_for_each_picture(scorer: Scorer, pictures: list[Path]) -> None:
    prompts = ["a cat", "a dog", "a cat"]
    expected = [scorer.score(prompt, [path])[0] for prompt, path in zip(prompts, pictures, strict=False)]
    np.testing.assert_allclose(scorer.score(prompts, pictures[:3]), expected, atol=1e-6)
    with pytest.raises(InputError, match="got 3 prompts for 2 images"):
        scorer.score(prompts, pictures[:2])


def test_rank_and_probabilities_follow_the_scores(scorer: Scorer, pictures: list[Path]) -> None:
    scores = scorer.score("a cat", pictures)
    order = scorer.rank("a cat", pictures)
    assert sorted(order) == list(range(7)) and (np.diff(scores[order]) <= 0).all()
    probabilities = scorer.probabilities("a cat", pictures)
    weights = np.exp((scores - scores.max()).astype(np.float64) / 0.25)  # the temperature of the bundle
    np.testing.assert_allclose(probabilities, weights / weights.sum(), rtol=1e-4)


def random_picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def test_softmax_does_not_overflow() -> None:
    np.testing.assert_allclose(softmax(np.array([1000, 1000, -1000], np.float32)), [0.5, 0.5, 0])


def test_calibrated_outputs_come_with_the_score(scorer: Scorer, pictures: list[Path]) -> None:
    outputs = scorer.score_items("a cat", pictures).outputs
    assert tuple(outputs) == scorer.outputs == ("score", "uncertainty", "calibrated_score", "percentile")
    assert (outputs["uncertainty"] > 0).all()
    np.testing.assert_allclose(outputs["calibrated_score"], outputs["score"] / 0.25)  # the bundle's temperature
    expected = Curve.from_json(CALIBRATION["percentiles"])(outputs["score"])
    np.testing.assert_allclose(outputs["percentile"], 100 * expected, atol=1e-3)
    assert outputs["percentile"].max() > 1


def test_prompts_are_encoded_once_and_the_oldest_are_forgotten(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer.load(bundle)
    asked: list[str] = []
    encode = scorer._encode_prompts
    monkeypatch.setattr(scorer, "_encode_prompts", lambda prompts: asked.extend(prompts) or encode(prompts))
    monkeypatch.setattr(scorer_module, "REMEMBERED_PROMPTS", 2)
    first = scorer.embed_prompts(["a", "b", "a"])
    assert sorted(asked) == ["a", "b"] and np.array_equal(first[0], first[2])
    scorer.embed_prompts(["a"])  # now b is the oldest
    scorer.embed_prompts(["c"])
    scorer.embed_prompts(["a", "b"])
    assert asked[2:] == ["c", "b"]


def test_prompts_are_encoded_beside_the_pictures(
    bundle: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer.load(bundle)
    begun, encode_prompts, encode = threading.Event(), scorer._encode_prompts, scorer._encode
    monkeypatch.setattr(scorer, "_encode_prompts", lambda prompts: begun.set() or encode_prompts(prompts))
    monkeypatch.setattr(scorer, "_encode", lambda *args, **options: begun.wait(60) and encode(*args, **options))
    assert np.isfinite(scorer.score("a cat", pictures)).all()


@pytest.mark.parametrize("count", [1, 2, 5, 23])
def test_side_by_side_gives_what_one_after_another_gives(bundle: Path, tmp_path: Path, count: int) -> None:
    """With a bad picture among them, first, last or alone."""
    images: list[Any] = [random_picture(i) for i in range(count)]
    images[count // 2] = b"junk"
    scorer = Scorer.load(bundle, SessionConfig(threads=2))
    scored = scorer.score_items("a cat", iter(images))
    assert list(scored.errors) == [count // 2] and np.isnan(scored.scores[count // 2])
    alone = [scorer.score("a cat", [image])[0] for i, image in enumerate(images) if i != count // 2]
    np.testing.assert_allclose(np.delete(scored.scores, count // 2), alone, atol=1e-5)
    assert (("image", 1) in scorer._sessions._open) == (count >= 2)


def test_many_prompts_give_what_one_at_a_time_gives(bundle: Path) -> None:
    prompts = [f"{'very ' * (i % 5)}number {i}" for i in range(200)]
    together, alone = Scorer.load(bundle).embed_prompts(prompts), Scorer.load(bundle)
    np.testing.assert_allclose(together, [alone.embed_prompts([prompt])[0] for prompt in prompts], atol=1e-5)


def test_a_prompt_that_cannot_be_encoded_ends_the_call(
    bundle: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer.load(bundle)

    def fails(prompts: list[str]) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(scorer, "_encode_prompts", fails)
    with pytest.raises(RuntimeError, match="no"):
        scorer.score("a cat", pictures)


def test_vectors_have_unit_length(scorer: Scorer, pictures: list[Path]) -> None:
    for vectors in (scorer.embed_images(pictures), scorer.embed_prompts(["a cat", ""])):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_are_near(bundle: Path, scorer: Scorer, pictures: list[Path], precision: str) -> None:
    other = Scorer.load(bundle, SessionConfig(precision=precision))
    scores, expected = other.score("a cat", pictures), scorer.score("a cat", pictures)
    assert 0 < np.abs(scores - expected).max() < 0.1
    assert other.check_reference()["score"] < 0.1


def test_reference_is_proven_on_this_machine(scorer: Scorer) -> None:
    found = scorer.check_reference()
    assert found["rows"] == 4
    assert max(found["score"], found["image_embedding"], found["text_embedding"]) < 1e-5


def test_reference_beyond_its_tolerance_is_an_error(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    changed_manifest(copy, lambda manifest: manifest["reference"]["fp32"].update(score=0.0))
    with pytest.raises(BundleError, match=r"score at fp32 is .* off the reference"):
        Scorer.load(copy).check_reference()


def test_many_threads_share_one_scorer(scorer: Scorer, pictures: list[Path]) -> None:
    expected = {f"prompt {i}": scorer.score(f"prompt {i}", pictures) for i in range(4)}
    found: dict[str, Any] = {}

    def work(prompt: str) -> None:
        found[prompt] = scorer.score(prompt, pictures)

    workers = [threading.Thread(target=work, args=(prompt,)) for prompt in expected]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for prompt, scores in expected.items():
        np.testing.assert_allclose(found[prompt], scores, atol=1e-6)


HEAVY = ("torch", "open_clip", "timm", "transformers", "onnx")


def heavy_after(code: str) -> str:
    """Which of HEAVY a fresh process has imported once it ran the code."""
    probe = f"import sys; {code}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_scoring_imports_no_torch(bundle: Path, pictures: list[Path]) -> None:
    argv = ["score", str(bundle), "--prompt", "a cat", str(pictures[0])]
    assert heavy_after(f"from runtime.cli.main import main; assert main({argv!r}) == 0") == "[]"
    argv = ["check", str(bundle), "--runtime-only"]
    assert heavy_after(f"from export.cli.main import main; assert main({argv!r}) == 0") == "[]"


def test_the_probe_sees_what_it_looks_for() -> None:
    assert heavy_after("import onnx") == "['onnx']"
