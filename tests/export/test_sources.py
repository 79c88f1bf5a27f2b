"""A head that reads what a picture was made from scores so in its bundle, over HTTP and in tables."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from export_tiny import ImageOnly, head_manifest, tiny_backbone, write_pictures
from service_server import Running, base64_of, serving

from embed.spec import InputError
from export.bundle_writer import export_outputs
from export.config import ExportConfig
from export.outputs import NamedHead, Outputs
from heads.config import HeadConfig
from heads.models import Head, build_head
from runtime.cli.main import main
from runtime.cli.popularity import predictor
from runtime.config import SessionConfig
from runtime.scoring.scorer import Scorer

PROMPTS = ["a cat", "two dogs", "", "a cat", "rain"]


def sourced_head() -> Head:
    head = build_head(HeadConfig("fusion", 32, hidden=8, reads="all"))
    generator = torch.Generator().manual_seed(1)
    for parameter in head.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return head.eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of that head and of one that reads pictures alone; `pictures` to score."""
    folder = tmp_path_factory.mktemp("sources")
    pictures = tuple(write_pictures(folder / "pictures", 8))
    backbone = tiny_backbone()
    manifest = {**head_manifest(backbone), "head": asdict(HeadConfig("fusion", 32, hidden=8, reads="all"))}
    heads = (
        NamedHead("edited", sourced_head(), None, manifest),
        NamedHead("plain", ImageOnly().eval(), None, head_manifest(backbone)),
    )
    export_outputs(folder / "bundle", backbone, Outputs(heads), ExportConfig(pictures=pictures))
    return folder


@pytest.fixture(scope="module")
def scorer(place: Path) -> Scorer:
    return Scorer.load(place / "bundle", SessionConfig(threads=1))


def by_torch(scorer: Scorer, pictures: list[Path], sources: list[Path | None]) -> np.ndarray:
    """The scores of pictures under PROMPTS, each with its source."""
    backbone = tiny_backbone()

    def vectors(paths: list[Path]) -> torch.Tensor:
        return backbone.image_tower()(torch.from_numpy(np.stack([np.asarray(p) for p in scorer.decode(paths)])))

    with torch.inference_mode():
        made_from = torch.stack([torch.zeros(32) if one is None else vectors([one])[0] for one in sources])
        text = backbone.text_tower()(torch.from_numpy(backbone.tokenize(PROMPTS)))
        scores = sourced_head()(image_embedding=vectors(pictures), text_embedding=text, source_embedding=made_from)
        return scores.numpy()


def given(place: Path) -> tuple[list[Path], list[Path | None]]:
    paths = sorted((place / "pictures").iterdir())
    return paths[:5], [paths[5], None, paths[6], paths[5], paths[0]]


def test_a_bundle_scores_edits_as_torch_does(place: Path, scorer: Scorer) -> None:
    pictures, sources = given(place)
    expected = by_torch(scorer, pictures, sources)
    np.testing.assert_allclose(scorer.score_items(PROMPTS, pictures, sources).scores, expected, atol=1e-5)
    without = by_torch(scorer, pictures, [None] * 5)
    assert np.abs(expected - without).max() > 1e-2
    np.testing.assert_allclose(scorer.score_items(PROMPTS, pictures).scores, without, atol=1e-5)
    figures = scorer.bundle.manifest["parity"]["precisions"]["fp32"]
    assert figures["scores"]["max_score_difference"] < 1e-5 and figures["whole_graph"] < 1e-5
    assert "source_embedding" not in figures["vectors"]


def test_popularity_is_predicted_as_of_pictures_without_a_source(place: Path, scorer: Scorer) -> None:
    pictures, _ = given(place)
    vectors = scorer.embed_images(pictures)
    stored = SimpleNamespace(image_embeddings=lambda: vectors, pooled_embeddings=lambda: None)
    found = predictor(scorer, "edited")(stored, np.arange(5), pa.chunked_array([PROMPTS]))  # type: ignore[arg-type]
    np.testing.assert_allclose(found, by_torch(scorer, pictures, [None] * 5), atol=1e-5)


def test_a_bad_source_is_its_pictures_error(place: Path, scorer: Scorer) -> None:
    pictures, sources = given(place)
    bad = [sources[0], b"no picture", *sources[2:]]
    scored = scorer.score_items(PROMPTS, [*pictures[:3], b"none", pictures[4]], bad)
    assert set(scored.errors) == {1, 3} and "made from" in str(scored.errors[1])
    expected = by_torch(scorer, pictures, sources)
    np.testing.assert_allclose(scored.scores[[0, 2, 4]], expected[[0, 2, 4]], atol=1e-5)
    assert np.isnan(scored.scores[[1, 3]]).all()
    with pytest.raises(InputError, match="got 2 sources for 5 pictures; wanted one, or as many"):
        scorer.score_items(PROMPTS, pictures, sources[:2])


def test_tables_have_a_column_of_sources(place: Path, scorer: Scorer, tmp_path: Path) -> None:
    pictures, sources = given(place)
    columns = {"image": [*map(str, pictures)], "source_path": [one and str(one) for one in sources], "prompt": PROMPTS}
    pq.write_table(pa.table(columns), tmp_path / "edits.parquet")
    argv = ["score-table", str(place / "bundle"), "--data", str(tmp_path / "edits.parquet"), "--out"]
    assert main([*argv, str(tmp_path / "out")]) == 0
    found = pq.read_table(tmp_path / "out" / "part-000000.parquet")["score"].to_numpy()
    np.testing.assert_allclose(found, by_torch(scorer, pictures, sources), atol=1e-5)
    assert main([*argv, str(tmp_path / "other"), "--source-column", "none"]) == 2


@pytest.fixture(scope="module")
def running(place: Path) -> Iterator[Running]:
    with serving(place / "bundle") as running:
        yield running


def test_the_service_takes_a_source_for_each_picture(running: Running, place: Path, scorer: Scorer) -> None:
    pictures, sources = given(place)
    images = [base64_of(path.read_bytes()) for path in pictures]
    made_from = [path and base64_of(path.read_bytes()) for path in sources]
    body = {"prompt": PROMPTS, "images": images, "source": made_from, "outputs": ["edited", "plain"]}
    items = running.client.post("/v1/score", json=body).json()["items"]
    np.testing.assert_allclose([item["score"] for item in items], by_torch(scorer, pictures, sources), atol=1e-5)
    form = [("images", path.read_bytes()) for path in pictures] + [("source", pictures[0].read_bytes())]
    items = running.client.post("/v1/score", data={"prompts": PROMPTS}, files=form).json()["items"]
    expected = by_torch(scorer, pictures, [pictures[0]] * 5)
    np.testing.assert_allclose([item["score"] for item in items], expected, atol=1e-5)
    one_bad = running.client.post("/v1/score", json={**body, "source": [*made_from[:4], "bm9uZQ=="]}).json()["items"]
    assert [item["ok"] for item in one_bad] == [True] * 4 + [False]
    assert "made from" in one_bad[4]["error"]["message"]
    answer = running.client.post("/v1/score", json={**body, "source": made_from[:2]})
    assert answer.status_code == 422 and "got 2 sources for 5 pictures" in answer.json()["error"]["message"]


def test_a_bundle_without_sources_says_so(bundle: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures, _ = given(place)
    argv = ["score", str(bundle), str(pictures[0]), "--prompt", "a", "--source", str(pictures[1])]
    assert main(argv) == 2
    assert "no head of this bundle reads the pictures that others were made from" in capsys.readouterr().err
