"""GET /v1/catalogue and POST /v1/browse: what a catalogue holds, and all of it in an order."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from catalogue_fakes import make_cache, make_labels, unit_vectors
from service_server import Running

from runtime.catalogue.reader import Catalogue
from runtime.catalogue.writer import build
from runtime.config import IndexConfig, PopularityConfig
from runtime.scoring.scorer import Scorer

N = 40


@pytest.fixture(scope="module")
def small(scorer: Scorer, tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    folder = tmp_path_factory.mktemp("browse")
    cache = make_cache(folder / "cache", unit_vectors(N, scorer.identity.dim), of=scorer.identity)
    labels = make_labels(N).append_column("prompt", pa.array([f"prompt {i % 3}" for i in range(N)]))
    return build(folder / "catalogue", cache, labels, PopularityConfig(), IndexConfig("exact", 0.9))[0]


@pytest.fixture(scope="module")
def options(small: Catalogue) -> dict[str, Any]:
    names = [f"p{i}.png" for i in range(0, N, 2)]
    scores = small.path.parent / "scores.parquet"
    pq.write_table(pa.table({"image": names, "other": [float(i) for i in range(len(names))]}), scores)
    return {"catalogue": small.path, "scores": scores}


def browse(running: Running, status: int = 200, **asked: Any) -> dict[str, Any]:
    answer = running.client.post("/v1/browse", json=asked)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def keys(found: dict[str, Any]) -> list[str]:
    return [hit["key"] for hit in found["hits"]]


def names_of(catalogue: Catalogue, rows: np.ndarray) -> list[str]:
    return [str(catalogue.rows["image"][int(row)]) for row in rows]


def test_what_the_catalogue_holds(running: Running, scorer: Scorer) -> None:
    about = running.client.get("/v1/catalogue").json()
    assert about["pictures"] == N and about["catalogue"] == "v000001" and not about["report"]
    assert about["measures"][:3] == ["popularity", "count", "year"] and "table: other" in about["measures"]
    assert [f"head: {name}" for name in scorer.outputs] == [m for m in about["measures"] if m.startswith("head: ")]
    kinds = {column["name"]: column["kind"] for column in about["columns"]}
    assert kinds["kind"] == "text" and kinds["year"] == "number" and about["has_prompts"]
    assert sum(n for _, n in next(c for c in about["columns"] if c["name"] == "kind")["values"]) == N


def test_by_popularity_in_parts_filtered_and_grouped(running: Running, small: Catalogue) -> None:
    whole = browse(running, by="popularity", k=1000)
    assert keys(whole) == names_of(small, np.arange(N)) and whole["total"] == N
    parts = [browse(running, by="popularity", offset=start, k=15) for start in range(0, N, 15)]
    assert [key for part in parts for key in keys(part)] == keys(whole)
    some = [hit for hit in whole["hits"] if hit["metadata"]["year"] >= 2015]
    assert keys(browse(running, by="popularity", where="year >= 2015", k=1000)) == [hit["key"] for hit in some]
    first = {hit["metadata"]["creator"]: hit["key"] for hit in whole["hits"][::-1]}
    assert sorted(keys(browse(running, by="popularity", group_by="creator", k=1000))) == sorted(first.values())
    assert browse(running, by="popularity", offset=1000)["hits"] == []


def test_by_what_the_head_says(running: Running, small: Catalogue, scorer: Scorer) -> None:
    vectors = small.vectors.astype(np.float32)

    def scores(prompts: list[str]) -> np.ndarray:
        texts = {"text_embedding": scorer.embed_prompts(prompts)} if scorer.reads_text else {}
        return scorer.score_vectors({"image_embedding": vectors} | texts)["score"]

    own = scores(small.rows["prompt"].to_pylist())
    found = browse(running, by="head: score", k=N)
    np.testing.assert_allclose([hit["measures"]["head: score"] for hit in found["hits"]], np.sort(own)[::-1], rtol=1e-4)
    one = scores(["a cat"] * N)
    found = browse(running, by="head: score", prompt="a cat", k=N)
    np.testing.assert_allclose([hit["measures"]["head: score"] for hit in found["hits"]], np.sort(one)[::-1], rtol=1e-4)


def test_beside_a_table_of_scores_where_it_names_a_picture(running: Running, small: Catalogue) -> None:
    found = browse(running, by="table: other", against="popularity", order="apart", k=N)
    assert found["total"] == N // 2
    of = {name: i for i, name in enumerate(names_of(small, np.arange(N)))}
    named = [f"p{i}.png" for i in range(0, N, 2)]
    by_popularity = sorted(named, key=lambda name: -of[name])
    popular = np.array([float(small.popularity[of[name]]) for name in named])
    midranks = [((popular < p).sum() + (popular == p).sum() / 2) / len(named) for p in popular]
    apart = {
        name: 100 * ((i + 0.5) / len(named) - mid) for i, (name, mid) in enumerate(zip(named, midranks, strict=True))
    }
    assert len(by_popularity) == len(apart)
    for hit in found["hits"]:
        assert hit["gap"] == pytest.approx(apart[hit["key"]], abs=1e-3)
    assert [abs(hit["gap"]) for hit in found["hits"]] == sorted(
        (abs(hit["gap"]) for hit in found["hits"]), reverse=True
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"by": "nothing"}, "there is no measure 'nothing'; there are popularity"),
        ({"by": "table: nothing"}, "the table has other"),
        ({"by": "head: nothing"}, "there is no measure"),
        ({"by": "popularity", "group_by": "nothing"}, "no column 'nothing' to group by"),
        ({"by": "popularity", "where": "year >"}, "the filter"),
        ({"by": "popularity", "order": "random"}, "order"),
    ],
)
def test_what_is_not_there_is_refused(running: Running, asked: dict[str, Any], message: str) -> None:
    assert message in browse(running, 422, **asked)["error"]["message"]


def test_new_counts_are_seen_after_a_reload(running: Running, small: Catalogue) -> None:
    before = browse(running, by="popularity", k=3)
    same = browse(running, by="popularity", k=3)
    assert before == same
    running.service.room.engine.catalogue = Catalogue.open(Path(small.path))
    assert keys(browse(running, by="popularity", k=3)) == keys(before)
