"""Outputs of a bundle are asked for by name: in tables, on the command line, and as popularity."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from catalogue_fakes import make_cache
from export_tiny import write_pictures
from many_heads import make_many

from embed.spec import InputError
from runtime.catalogue.reader import Catalogue
from runtime.cli.main import main
from runtime.config import SessionConfig
from runtime.scoring.best_of_n import best_of_n
from runtime.scoring.scorer import Scorer

PROMPT = "a cat"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_many(tmp_path_factory)


@pytest.fixture(scope="module")
def scorer(many: Path) -> Scorer:
    return Scorer.load(many, SessionConfig(threads=1))


def test_a_name_stands_for_its_values(scorer: Scorer, bundle: Path) -> None:
    named = scorer.named
    assert named.names == ("aesthetic", "liked", "relu", "clip_similarity", "blend", "odd")
    assert named.columns(None) == {"score": "score"}
    assert named.columns(["score"]) == {"aesthetic": "score"} == named.columns(["aesthetic", "aesthetic"])
    assert list(named.columns(["relu", "odd"])) == [
        *("relu", "relu_uncertainty", "relu_calibrated_score", "relu_percentile"),
        "odd",
    ]
    assert len(named.chosen(["all"])) == 6
    assert [named.needs_prompt(asked) for asked in (None, ["liked"], ["odd"], ["aesthetic"])] == [
        False,
        True,
        True,
        False,
    ]
    with pytest.raises(InputError, match="unknown output 'like'; near names: liked"):
        named.chosen(["like"])
    with pytest.raises(InputError, match="the list of outputs is empty"):
        named.chosen([])
    one = Scorer.load(bundle).named
    assert one.names == ("score",) and one.columns(None) == one.columns(["all"])
    assert list(one.columns(None)) == ["score", "uncertainty", "calibrated_score", "percentile"]


def test_what_an_output_does_not_read_may_be_missing(scorer: Scorer) -> None:
    vectors = np.eye(3, scorer.identity.dim, dtype=np.float32)
    alone = scorer.score_vectors({"image_embedding": vectors}, ["aesthetic"])
    assert list(alone) == ["score"]
    both = scorer.score_vectors({"image_embedding": vectors, "text_embedding": vectors[::-1].copy()})
    np.testing.assert_array_equal(alone["score"], both["score"])
    with pytest.raises(KeyError):
        scorer.score_vectors({"image_embedding": vectors}, ["liked"])


def test_scores_on_the_command_line(
    many: Path, scorer: Scorer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(path) for path in write_pictures(tmp_path, 4)]
    expected = scorer.score_items(PROMPT, paths).outputs
    assert main(["score", str(many), *paths, "--json"]) == 0  # the first head reads no prompt
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert [set(one) for one in scores] == [{"image", "score"}] * 4
    np.testing.assert_allclose([one["score"] for one in scores], expected["score"], atol=1e-5)
    argv = ["score", str(many), *paths, "--outputs", "odd,liked"]
    assert main([*argv, "--prompt", PROMPT]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    values = ["liked", "liked_uncertainty", "liked_calibrated_score", "liked_percentile"]
    assert header.split() == ["image", "odd", *values]
    order = np.argsort(-expected["odd"])
    assert [line.split()[0] for line in lines[-4:]] == [paths[i] for i in order]
    assert main(argv) == 2
    assert "scores pictures under a prompt; add --prompt" in capsys.readouterr().err
    assert main([*argv[:-1], "none"]) == 2
    assert "unknown output 'none'" in capsys.readouterr().err


def test_tables_have_a_column_for_each_value(many: Path, scorer: Scorer, tmp_path: Path) -> None:
    names = [path.name for path in write_pictures(tmp_path, 3)]
    prompts = ["a", "b", "c"]
    pq.write_table(pa.table({"image": names, "prompt": prompts}), tmp_path / "table.parquet")
    expected = scorer.score_items(prompts, [tmp_path / name for name in names]).outputs
    out = tmp_path / "out"
    argv = ["score-table", str(many), "--data", str(tmp_path / "table.parquet"), "--out", str(out)]
    assert main([*argv, "--outputs", "blend,liked"]) == 0
    table = pq.read_table(out / "part-000000.parquet")
    values = ["liked", "liked_uncertainty", "liked_calibrated_score", "liked_percentile"]
    assert table.column_names == ["image", "prompt", "blend", *values, "error"]
    for name in ("blend", *values):
        np.testing.assert_allclose(table[name], expected[name], atol=1e-4)
    assert main([*argv, "--outputs", "blend,liked"]) == 0  # goes on with the same job
    assert main([*argv, "--outputs", "blend"]) == 2  # which this is not


def test_the_best_of_n_by_an_output(scorer: Scorer, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "0000", 5)
    expected = scorer.score_items(PROMPT, paths).outputs
    for output, name in (("liked", "liked"), ("odd", "odd"), (None, "score")):
        (best,) = best_of_n(scorer, [PROMPT], ["{prompt}"], tmp_path, output)
        assert best.image == str(paths[int(expected[name].argmax())])
        assert (best.uncertainty is not None) == (output == "liked")


def test_a_catalogue_by_what_one_output_predicts(many: Path, scorer: Scorer, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20, scorer.identity.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    make_cache(tmp_path / "cache", vectors, of=scorer.identity)
    with open(tmp_path / "counts.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image", "count", "prompt"], *([f"p{i}.png", "", f"p {i}"] for i in range(20))])
    kept = vectors.astype(np.float16).astype(np.float32)
    prompts = scorer.embed_prompts([f"p {i}" for i in range(20)])
    scores = scorer.score_vectors({"image_embedding": kept, "text_embedding": prompts})
    for output, name in (("aesthetic", "score"), ("odd", "odd")):
        argv = ["index", str(tmp_path / "cache"), "--popularity", str(tmp_path / "counts.csv"), "--overwrite"]
        argv += ["--missing", f"predicted:{many}#{output}", "--out", str(tmp_path / "catalogue")]
        assert main(argv) == 0
        catalogue = Catalogue.open(tmp_path / "catalogue")
        rows = (catalogue.vectors @ kept.T).argmax(axis=1)  # of the catalogue's pictures in ours
        assert rows[np.argsort(-catalogue.popularity)].tolist() == np.argsort(-scores[name]).tolist()
    assert main([*argv[:-3], f"predicted:{many}#none", *argv[-2:]]) == 2
