"""What a head trained in folds says of its own scores comes out of the bundle, and its scores stay as they are."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from export_tiny import head_manifest, tiny_backbone, write_pictures

from embed.engines.sessions import open_session
from export import measure
from export.bundle_writer import export_bundle
from export.config import ExportConfig
from export.graphs import compose
from heads.config import HeadConfig, Kind, SplitConfig, TrainConfig
from heads.data.comparisons import Labels
from heads.data.features import features_of
from heads.data.split import split_rows
from heads.store.disk import load_committee, save_head
from heads.training.committees import committee_of
from heads.training.folds import Task, TrainedHeads, train_heads
from heads.training.train import score_items
from runtime.scoring.scorer import Scorer

DIM, ROWS = tiny_backbone().identity.dim, 60
PROMPTS = ["a cat", "two dogs", "", "a cat", "an old boat"]


@pytest.fixture(autouse=True)
def few_generated_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "GENERATED_PICTURES", 6)


def in_folds(kind: Kind) -> tuple[Task, TrainedHeads]:
    """A head on ratings of random vectors, as long as the tiny backbone's, in three folds."""
    rng = np.random.default_rng(0)
    images, texts = (rng.normal(size=(ROWS, DIM)).astype(np.float32) for _ in range(2))
    for vectors in (images, texts):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    number = np.arange(ROWS)
    prompt = number // 6
    rating = 40 + 30 * images[:, 0] + 10 * texts[prompt, 0].astype(np.float64)
    labels = Labels("ratings", number, prompt, number[:, None], {"rating": rating}, pa.table({"x": number}), 0)
    split = split_rows(labels, SplitConfig(folds=3))
    config = HeadConfig(kind, DIM, landmarks=ROWS, hidden=8)
    task = Task(labels, features_of(images, texts, number, prompt), split, config, TrainConfig("rating", epochs=3))
    return task, train_heads(task)


def jackknife(task: Task, trained: TrainedHeads, vectors: dict[str, torch.Tensor]) -> np.ndarray:
    """What three folds' heads say of these vectors, each brought to the head's mean and spread over the table."""
    with torch.inference_mode():
        scores = [one(**vectors).numpy().astype(np.float64) for one in trained.fold_heads]
    own, *others = (score_items(one, task.features).astype(np.float64) for one in (trained.head, *trained.fold_heads))
    moved = [(s - o.mean()) / o.std() * own.std() + own.mean() for s, o in zip(scores, others, strict=True)]
    found: np.ndarray = np.sqrt(2 / 3 * sum((one - np.mean(moved, axis=0)) ** 2 for one in moved))
    return found


def test_the_graphs_uncertainty_is_the_fold_heads_own_and_no_bit_of_a_score_changes() -> None:
    task, trained = in_folds("blend")
    committee = committee_of(trained, task)
    assert committee is not None
    widths = {"image_embedding": DIM, "text_embedding": DIM}
    plain = compose.export_head(trained.head, widths)
    vectors = task.features.take(torch.arange(20), committee.inputs)
    feed = {name: values.numpy() for name, values in vectors.items()}
    sessions = [open_session(m.SerializeToString()) for m in (plain, compose.add_committee(plain, committee, widths))]
    (alone,), (score, uncertainty) = (session.run(None, feed) for session in sessions)
    np.testing.assert_array_equal(score, alone)
    expected = jackknife(task, trained, vectors)
    assert expected.max() > 1e-2
    np.testing.assert_allclose(uncertainty, expected, atol=1e-5 * max(1.0, np.abs(score).max()))


def test_a_head_in_folds_says_in_its_bundle_how_sure_it_is(tmp_path: Path) -> None:
    task, trained = in_folds("kernel")
    committee = committee_of(trained, task)
    assert committee is not None
    described = {"head": asdict(task.head_config), "split": {"folds": 3}, "committee": committee.alignment}
    manifest = head_manifest(tiny_backbone(), **described)
    save_head(tmp_path / "head", trained.head, trained.fold_heads, pa.array(["a"]), manifest)
    backbone, kept = tiny_backbone(), load_committee(tmp_path / "head")
    export_bundle(tmp_path / "bundle", backbone, trained.head, manifest, ExportConfig(), committee=kept)
    scorer, pictures = Scorer.load(tmp_path / "bundle"), write_pictures(tmp_path / "pictures", len(PROMPTS))
    found = scorer.score_items(PROMPTS, pictures).outputs
    pixels = np.stack([p for p in scorer.decode(pictures) if isinstance(p, np.ndarray)])
    with torch.inference_mode():
        vectors = {
            "image_embedding": backbone.image_tower()(torch.from_numpy(pixels)),
            "text_embedding": backbone.text_tower()(torch.from_numpy(backbone.tokenize(PROMPTS))),
        }
    np.testing.assert_allclose(found["uncertainty"], jackknife(task, trained, vectors), atol=1e-4)  # scores are near 40
    np.testing.assert_allclose(scorer.run_whole(pixels, PROMPTS)["uncertainty"], found["uncertainty"], atol=1e-4)
    figures = scorer.bundle.manifest["parity"]["precisions"]["fp32"]["uncertainty"]
    assert figures["max_difference"] < 1e-4 < figures["mean"]
    assert "uncertainty" in scorer.check_reference()
    assert "How sure a score is" in (tmp_path / "bundle" / "README.md").read_text()
