"""A head that reads what a picture was made from scores so in its bundle, over HTTP and in tables."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from catalogue_fakes import make_cache
from export_tiny import ImageOnly, head_manifest, tiny_backbone, write_pictures
from paths import ROOT
from service_server import Running, base64_of, serving

from embed.spec import InputError
from export.bundle_writer import export_outputs
from export.config import ExportConfig
from export.outputs import NamedHead, Outputs
from heads.config import HeadConfig
from heads.models import Head, build_head
from runtime.catalogue.reader import Catalogue
from runtime.cli.main import main
from runtime.cli.popularity import predictor
from runtime.client import AsyncClient, Client, ItemError, Ranked, Score
from runtime.config import SessionConfig
from runtime.scoring.best_of_n import TEMPLATES, best_of_n
from runtime.scoring.scorer import Scorer
from runtime.service.network import fetching

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


def test_popularity_is_predicted_with_what_pictures_were_made_from(place: Path, scorer: Scorer) -> None:
    pictures, sources = given(place)
    vectors = scorer.embed_images([*pictures, *filter(None, sources)])
    stored = SimpleNamespace(image_embeddings=lambda: vectors, pooled_embeddings=lambda: None)
    predict, prompts = predictor(scorer, "edited"), pa.chunked_array([PROMPTS])
    rows: list[Any] = [stored, np.arange(5), prompts]
    np.testing.assert_allclose(
        predict(*rows, np.array([5, -1, 6, 7, 8])), by_torch(scorer, pictures, sources), atol=1e-5
    )
    np.testing.assert_allclose(predict(*rows, np.full(5, -1)), by_torch(scorer, pictures, [None] * 5), atol=1e-5)


def test_a_catalogue_predicts_with_the_sources_that_its_table_names(
    place: Path, scorer: Scorer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, sources = given(place)
    names = [path.name for path in sorted((place / "pictures").iterdir())]
    vectors = scorer.embed_images([place / "pictures" / name for name in names])
    make_cache(tmp_path / "cache", vectors, of=scorer.identity, names=names)
    table = {
        "image": names[:5],
        "count": pa.nulls(5, pa.int64()),
        "prompt": PROMPTS,
        "source_path": [one and one.name for one in sources],
    }
    pq.write_table(pa.table(table), tmp_path / "counts.parquet")
    argv = ["index", str(tmp_path / "cache"), "--popularity", str(tmp_path / "counts.parquet"), "--prompt", "rest"]
    argv += ["--missing", f"predicted:{place / 'bundle'}", "--out", str(tmp_path / "catalogue")]
    assert main(argv) == 0
    rows = Catalogue.open(tmp_path / "catalogue").rows
    found = [name for name in rows["image"].to_pylist() if name in names[:5]]
    stored = vectors.astype(np.float16).astype(np.float32)
    made_from = np.stack(
        [np.zeros(32, np.float32) if one is None else stored[names.index(one.name)] for one in sources]
    )
    with torch.inference_mode():
        expected = sourced_head()(
            image_embedding=torch.from_numpy(stored[:5]),
            text_embedding=torch.from_numpy(scorer.embed_prompts(PROMPTS)),
            source_embedding=torch.from_numpy(made_from),
        ).numpy()
    assert found == [names[i] for i in np.argsort(-expected)]
    pq.write_table(pa.table(table | {"source_path": ["gone.png", *[None] * 4]}), tmp_path / "counts.parquet")
    assert main([*argv, "--overwrite"]) == 2
    assert "1 pictures were made from others that have no vector; the first is 'gone.png'" in capsys.readouterr().err


def test_the_best_of_edits_is_chosen_with_what_they_edit(place: Path, scorer: Scorer, tmp_path: Path) -> None:
    pictures, sources = given(place)
    (tmp_path / "0000").mkdir()
    for i, path in enumerate(pictures):
        shutil.copy(path, tmp_path / "0000" / f"00_{i}.png")
    (best,) = best_of_n(scorer, ["a cat"], TEMPLATES, tmp_path, sources=[sources[2]])
    scores = scorer.score_items("a cat", pictures, [sources[2]]).scores
    assert best.score == pytest.approx(scores.max()) and Path(best.image).stem == f"00_{scores.argmax()}"
    assert best.score != pytest.approx(scorer.score_items("a cat", pictures).scores.max(), abs=1e-3)
    (tmp_path / "broken.png").write_bytes(b"none")
    with pytest.raises(InputError, match="source"):
        best_of_n(scorer, ["a cat"], TEMPLATES, tmp_path, sources=[tmp_path / "broken.png"])


def test_a_bad_source_is_its_pictures_error(place: Path, scorer: Scorer) -> None:
    pictures, sources = given(place)
    bad = [sources[0], b"no picture", *sources[2:]]
    scored = scorer.score_items(PROMPTS, [*pictures[:3], b"none", pictures[4]], bad)
    assert set(scored.errors) == {1, 3} and "its source picture" in str(scored.errors[1])
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
    with serving(place / "bundle", dialects=("flow-factory", "unirl")) as running:
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
    assert "its source picture" in one_bad[4]["error"]["message"]
    answer = running.client.post("/v1/score", json={**body, "source": made_from[:2]})
    assert answer.status_code == 422 and "got 2 sources for 5 pictures" in answer.json()["error"]["message"]


def asked_of_clients(place: Path, scorer: Scorer) -> tuple[list[Path], list[Path | None], list[np.ndarray]]:
    """Pictures and their sources, and the scores of these, and of all as made from the first source."""
    pictures, sources = given(place)
    expected = [by_torch(scorer, pictures, sources), by_torch(scorer, pictures, [sources[0]] * 5)]
    return pictures, sources, expected


@pytest.mark.parametrize("batch", [2, 32])
def test_the_clients_in_python_send_sources(running: Running, place: Path, scorer: Scorer, batch: int) -> None:
    pictures, sources, (each, one) = asked_of_clients(place, scorer)
    url = str(running.client.base_url)

    def scores(found: list[Score | ItemError]) -> list[float]:
        return [score.score for score in found if isinstance(score, Score)]

    with Client(url, batch=batch, http=httpx.Client(trust_env=False)) as client:
        np.testing.assert_allclose(scores(client.score(pictures, PROMPTS, sources=sources)), each, atol=1e-5)
        np.testing.assert_allclose(scores(client.score(pictures, PROMPTS, sources=sources[0])), one, atol=1e-5)
        ranked = client.rank(pictures, "a cat", sources=[path and path.read_bytes() for path in sources])
        assert [one.rank for one in ranked if isinstance(one, Ranked)] != []
        elsewhere = ["http://elsewhere.example/a.png", sources[0], place / "none.png", None, b"none"]
        bad = client.score(pictures, PROMPTS, sources=elsewhere)
        reasons = [one.reason if isinstance(one, ItemError) else None for one in bad]
        assert reasons == ["host not allowed", None, "no such file", None, "unknown format"]
        assert all("its source picture" in one.message for one in bad if isinstance(one, ItemError))
        with pytest.raises(InputError, match="got 2 sources for 5 pictures"):
            client.score(pictures, PROMPTS, sources=sources[:2])

    async def ask() -> list[Score | ItemError]:
        async with AsyncClient(url, batch=batch, http=httpx.AsyncClient(trust_env=False)) as client:
            return await client.score(pictures, PROMPTS, sources=sources)

    np.testing.assert_allclose(scores(asyncio.run(ask())), each, atol=1e-5)


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_client_in_javascript_sends_sources(running: Running, place: Path, scorer: Scorer) -> None:
    pictures, sources, (each, one) = asked_of_clients(place, scorer)
    sent = [{"base64": base64_of(path.read_bytes())} for path in pictures]
    made_from = [path and {"base64": base64_of(path.read_bytes())} for path in sources]
    url, options = str(running.client.base_url), {"batch": 2}
    elsewhere = [*made_from[:4], "http://elsewhere.example/a.png"]
    calls = [["score", sent, PROMPTS, {"sources": given}] for given in (made_from, made_from[0], elsewhere, [None])]
    calls.append(["rank", sent, "a cat", {"sources": made_from[0]}])
    asked = json.dumps({"url": url, "options": options, "calls": calls})
    command = ["node", str(ROOT / "tests/runtime/clients/calls.mjs")]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=120, check=True)
    scored, for_all, refused, short, ranked = json.loads(done.stdout)["done"]
    np.testing.assert_allclose([item["score"] for item in scored["found"]], each, atol=1e-5)
    np.testing.assert_allclose([item["score"] for item in for_all["found"]], one, atol=1e-5)
    assert [item["ok"] for item in refused["found"]] == [True] * 4 + [False]
    assert short["name"] == "RangeError" and "got 1 sources for 5 pictures" in short["message"]
    expected = by_torch_of(scorer, "a cat", pictures, sources[0])
    assert [item["rank"] - 1 for item in ranked["found"]] == np.argsort(np.argsort(-expected)).tolist()


def by_torch_of(scorer: Scorer, prompt: str, pictures: list[Path], source: Path | None) -> np.ndarray:
    return scorer.score_items(prompt, pictures, [source]).scores


def test_trainers_send_what_a_picture_was_made_from(running: Running, place: Path, scorer: Scorer) -> None:
    pictures, sources, (each, _) = asked_of_clients(place, scorer)
    images = [base64_of(path.read_bytes()) for path in pictures]
    made_from = [path and base64_of(path.read_bytes()) for path in sources]
    body = {"prompt": PROMPTS, "image": images, "kwargs": {"reward": "edited"}}
    for conditions in (made_from, [[one] if one else [] for one in made_from]):
        found = running.client.post("/compute", json={**body, "condition_images": conditions}).json()
        np.testing.assert_allclose(found["rewards"], each, atol=1e-5)
    for conditions in (made_from[:2], [[images[0]] * 2] * 5):
        answer = running.client.post("/compute", json={**body, "condition_images": conditions})
        assert answer.status_code == 422 and "condition_images" in answer.json()["error"]["message"]
    turns = [
        [{"text": "begin"}, {"text": "first", "image_b64": source}, {"text": text, "image_b64": image}]
        for text, image, source in zip(PROMPTS, images, made_from, strict=True)
    ]
    asked = [{"history": history, "required_rewards": ["edited", "plain"]} for history in turns]
    results = running.client.post("/score", json={"requests": asked}).json()["results"]
    np.testing.assert_allclose([one["edited"]["edited"] for one in results], each, atol=1e-5)


def test_sources_by_address_and_in_forms(place: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, sources, (each, _) = asked_of_clients(place, scorer)

    async def fetched(fetcher: fetching.Fetcher, url: str, *_: object) -> bytes:
        return (place / "pictures" / url.rpartition("/")[2]).read_bytes()

    with serving(place / "bundle", url_hosts=("pictures.example",)) as (client, _service):
        monkeypatch.setattr(fetching.Fetcher, "fetch", fetched)
        urls = [path and f"http://pictures.example/{path.name}" for path in sources]
        images = [base64_of(path.read_bytes()) for path in pictures]
        body = {"prompt": PROMPTS, "images": images, "source": [url and {"url": url} for url in urls]}
        items = client.post("/v1/score", json=body).json()["items"]
        np.testing.assert_allclose([item["score"] for item in items], each, atol=1e-5)
        files = [("images", path.read_bytes()) for path in pictures]
        form = {"prompts": PROMPTS, "sources": [url or "" for url in urls]}
        items = client.post("/v1/score", data=form, files=files).json()["items"]
        np.testing.assert_allclose([item["score"] for item in items], each, atol=1e-5)


def test_a_bundle_without_sources_says_so(bundle: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures, _ = given(place)
    argv = ["score", str(bundle), str(pictures[0]), "--prompt", "a", "--source", str(pictures[1])]
    assert main(argv) == 2
    assert "no head of this bundle reads source pictures" in capsys.readouterr().err
