"""A table of edits is learnt by a head that sees what was edited, and by no other; other tables are as they were."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from edits import write_edits
from heads_tiny import make_cache

from embed.cache.store import Cache
from embed.records.formats import read_records
from embed.spec import InputError
from heads.api.choices import chosen_head
from heads.cli.main import main
from heads.config import HeadConfig, Kind, SplitConfig, TrainConfig
from heads.data.comparisons import join_labels, match_labels
from heads.data.features import Features, features_of
from heads.data.split import rows_apart_from, split_rows
from heads.evaluation.baselines import WITHOUT_SOURCE, trained_scores, without_source
from heads.evaluation.evaluate import head_scores
from heads.models import build_head
from heads.store.disk import load_head
from heads.training.folds import Task, train_heads

ROWS = 400
MLP_EPOCHS = 20


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edits")
    write_edits(folder, ROWS)
    return folder


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> dict:
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("head", ["fusion", "kernel"])
def test_only_a_head_with_the_source_learns_edits(
    head: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", place / "edits.parquet", "--head", head, "--out", tmp_path / "head", "--overwrite",
               "--test-fraction", "0.3"]  # fmt: skip
    found = run(capsys, "train", place / "cache", *options)
    assert found["pair_accuracy"]["value"] >= 0.9
    assert load_head(tmp_path / "head")[1]["head"]["reads"] == "all"
    without = run(capsys, "train", place / "cache", *options, "--reads", "both")
    interval = without["pair_accuracy"]
    assert interval["low"] <= 0.5 <= interval["high"] and interval["value"] < 0.65


def test_an_mlp_with_the_source_learns_edits_too(place: Path) -> None:
    cache = Cache.open(place / "cache")
    labels = match_labels(read_records(place / "edits.parquet"), cache)
    seen = features_of(
        cache.image_embeddings(), cache.text_embeddings(), labels.image, labels.prompt, None, labels.source
    )
    split = split_rows(labels, SplitConfig())  # a fifth of the rows is held out
    training = TrainConfig("preference", learning_rate=3e-3, batch_size=64, epochs=MLP_EPOCHS)
    accuracy = {}
    for reads, features in (("all", seen), ("both", without_source(seen))):
        config = HeadConfig("mlp", cache.identity.dim, reads=reads)  # type: ignore[arg-type]
        scores = head_scores(
            train_heads(Task(labels, features, split, config, training)).scorers, labels, features, split
        )
        better, worse = scores[~np.isnan(scores).any(axis=1)].T
        assert len(better) == ROWS // 5
        accuracy[reads] = float((better > worse).mean())
    assert accuracy["all"] >= 0.9 and 0.3 < accuracy["both"] < 0.7, accuracy


def test_the_choice_of_a_head_knows_sources(tmp_path: Path) -> None:
    write_edits(tmp_path, 60)
    cache = Cache.open(tmp_path / "cache")
    labels = match_labels(read_records(tmp_path / "pick.parquet"), cache)
    vectors = cache.image_embeddings(), cache.text_embeddings()
    features = features_of(*vectors, labels.image, labels.prompt, None, labels.source)

    def chosen(seen: Features = features, **options: str) -> tuple[object, object]:
        found, _ = chosen_head({"loss": "preference", **options}, [labels], seen, ["preference"], None)
        return found["head"], found.get("reads")

    assert chosen() == ("fusion", "all") == chosen(reads="all")
    assert chosen(reads="both") == ("blend", "both") and chosen(head="blend") == ("blend", None)
    assert chosen(head="kernel") == ("kernel", "all") and chosen(head="mlp", reads="image") == ("mlp", "image")
    bare = without_source(features)
    assert chosen(bare) == ("blend", None) and chosen(bare, head="mlp") == ("mlp", None)
    with pytest.raises(InputError, match="--reads all reads source pictures, but no table has"):
        chosen(bare, reads="all")
    with pytest.raises(InputError, match="the head blend does not read source pictures"):
        build_head(HeadConfig("blend", 8, reads="all"))


def test_the_same_head_without_sources_is_a_baseline(tmp_path: Path) -> None:
    write_edits(tmp_path, 60)
    cache = Cache.open(tmp_path / "cache")
    labels = match_labels(read_records(tmp_path / "pick.parquet"), cache)
    features = features_of(
        cache.image_embeddings(), cache.text_embeddings(), labels.image, labels.prompt, None, labels.source
    )
    split = split_rows(labels, SplitConfig())
    for reads in ("all", "both"):
        config = HeadConfig("kernel", 8, landmarks=40, reads=reads)  # type: ignore[arg-type]
        manifest = {"head": asdict(config), "training": asdict(TrainConfig("preference"))}
        found = trained_scores(WITHOUT_SOURCE, labels, features, split, manifest)  # type: ignore[arg-type]
        if reads == "both":
            assert found is None
            continue
        bare = without_source(features)
        task = Task(labels, bare, split, config, TrainConfig("preference"))
        np.testing.assert_allclose(found, head_scores(train_heads(task).scorers, labels, bare, split), atol=1e-6)


def test_items_are_pictures_with_their_prompt_and_source(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", [f"{i}.png" for i in range(6)], ["a", "b"])
    rows = [
        "prompt,pos_path,neg_path,source_path",
        *("a,1.png,2.png,0.png", "a,1.png,2.png,", "b,1.png,3.png,0.png", "b,4.png,5.png,", "b,4.png,5.png,1.png"),
    ]
    (tmp_path / "edits.csv").write_text("\n".join(rows))
    labels = match_labels(read_records(tmp_path / "edits.csv"), cache)
    assert labels.source is not None
    vectors = cache.image_embeddings().astype(np.float32)
    features = features_of(
        cache.image_embeddings(), cache.text_embeddings(), labels.image, labels.prompt, None, labels.source
    )
    for row, (images, source) in enumerate([((1, 2), 0), ((1, 2), None), ((1, 3), 0), ((4, 5), None), ((4, 5), 1)]):
        found = features.take(torch.from_numpy(labels.items[row]), ("image_embedding", "source_embedding"))
        np.testing.assert_array_equal(found["image_embedding"], vectors[list(images)])
        expected = np.zeros_like(vectors[:2]) if source is None else vectors[[source, source]]
        np.testing.assert_array_equal(found["source_embedding"], expected)
    assert len(np.unique(labels.items)) == 10
    # What is a picture here and a source there is shared all the same; lacking a source is nothing in common.
    assert rows_apart_from(labels, np.array([0])).tolist() == [3]
    assert rows_apart_from(labels, np.array([4])).tolist() == []
    (tmp_path / "plain.csv").write_text("prompt,pos_path,neg_path\na,1.png,2.png\n")
    plain = match_labels(read_records(tmp_path / "plain.csv"), cache)
    assert plain.source is None
    both = join_labels([labels, plain])
    assert both[1].source is not None and both[1].source[both[1].items].tolist() == [[-1, -1]]
    (tmp_path / "lost.csv").write_text("prompt,pos_path,neg_path,source_path\na,1.png,2.png,lost.png\n")
    with pytest.raises(InputError, match="1 of 1 rows have a source picture without a vector"):
        match_labels(read_records(tmp_path / "lost.csv"), cache)


@pytest.mark.parametrize(("kind", "pooled"), [("fusion", 0), ("fusion", 5), ("kernel", 0), ("kernel", 5), ("mlp", 0)])
def test_rows_score_alone_as_together_and_the_source_counts(kind: Kind, pooled: int) -> None:
    head = build_head(HeadConfig(kind, 8, pooled, hidden=4, landmarks=6, reads="all")).eval()
    generator = torch.Generator().manual_seed(0)
    names = {"image_embedding": 8, "text_embedding": 8, "image_pooled": pooled, "source_embedding": 8}
    rows = {name: torch.randn(6, names[name], generator=generator) for name in head.inputs}
    rows = {name: torch.nn.functional.normalize(values, dim=-1) for name, values in rows.items()}
    rows["source_embedding"][::2] = 0
    head.prepare(**rows)
    for parameter in head.parameters():
        parameter.data.normal_(0, 0.5, generator=generator)
    together = head(**rows)
    alone = torch.cat([head(**{name: values[i : i + 1] for name, values in rows.items()}) for i in range(6)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    moved = head(**{**rows, "source_embedding": torch.zeros(6, 8)})
    assert (moved != together).tolist() == [False, True] * 3
