import datetime
import json
from functools import reduce

import numpy as np
import pyarrow as pa
import pytest
from catalogue_fakes import make_cache, make_catalogue, make_labels, unit_vectors
from progress_told import Told

from embed.spec import IdentityMismatch, InputError
from runtime.catalogue.queries import find
from runtime.catalogue.writer import build, refresh
from runtime.config import IndexConfig, PopularityConfig, Wish

pytest.importorskip("pymilvus", reason="needs the extra milvus: pip install 'plaudit[milvus]'")
# The client's own warnings are not ours.
pytestmark = pytest.mark.filterwarnings("ignore:::(pymilvus|milvus_lite|pkg_resources|google)")

N = 400
VECTORS = unit_vectors(N, 16, clusters=12)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    from runtime.catalogue.milvus import upload

    path = tmp_path_factory.mktemp("m")
    local = make_catalogue(path, VECTORS, make_labels(N))
    milvus = upload(local, str(path / "milvus.db"))
    yield local, milvus, path
    milvus.close()


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.3, 1.0, 3.0])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_percentile": 90},
        {"where": "kind = 'it''s' and year >= 2015"},
        {"where": "image in ('p1.png', 'p2.png') or not kind = 'objects'", "min_percentile": 40},
        {"where": "year > 3000"},
    ],
)
def test_answers_are_those_of_the_exact_catalogue(both, weight, options):
    local, milvus, _ = both
    queries = unit_vectors(20, 16, seed=8)
    for ours, theirs in zip(
        local.search(queries, 10, weight, **options), milvus.search(queries, 10, weight, **options), strict=True
    ):
        assert [hit.key for hit in ours] == [hit.key for hit in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert (a.id, a.count, a.metadata) == (b.id, b.count, b.metadata)
            np.testing.assert_allclose(
                [a.similarity, a.popularity, a.blended_score],
                [b.similarity, b.popularity, b.blended_score],
                atol=1e-6,
            )


def test_wishes_work_there_too(both):
    local, milvus, _ = both
    wish = Wish(10, 0.3, dedup=0.9, group_by="creator", per_group=2)
    query = unit_vectors(1, 16, seed=4)[0]
    assert [hit.key for hit in find(local, query, wish)] == [hit.key for hit in find(milvus, query, wish)]


def test_an_upload_follows_a_refresh(tmp_path):
    from runtime.catalogue.milvus import MilvusCatalogue, upload

    local = make_catalogue(tmp_path, VECTORS, make_labels(N))
    upload(local, str(tmp_path / "m.db")).close()
    fresh, _ = refresh(local.path, make_labels(N, seed=1), delete=["p7.png"])
    milvus = upload(fresh, str(tmp_path / "m.db"), progress=(told := Told()))
    assert len(milvus) == told.works["uploading"].total == N - 1 and told.works["uploading"].whole()
    queries = unit_vectors(10, 16, seed=8)
    assert [[hit.key for hit in hits] for hits in fresh.search(queries, 10, 1.0)] == [
        [hit.key for hit in hits] for hits in milvus.search(queries, 10, 1.0)
    ]
    milvus.close()
    other = make_cache(tmp_path / "other", VECTORS, weights="other")
    foreign, _ = build(tmp_path / "o", other, make_labels(N), PopularityConfig(), IndexConfig())
    with pytest.raises(IdentityMismatch):
        upload(foreign, str(tmp_path / "m.db"))
    with pytest.raises(InputError, match="no collection 'nothing'"):
        MilvusCatalogue(str(tmp_path / "m.db"), "nothing")


def test_bad_requests_are_said(both):
    _, milvus, _ = both
    with pytest.raises(InputError, match="'colour'; there are count, creator"):
        milvus.search(VECTORS[:1], 3, where="colour = 1")
    with pytest.raises(InputError, match=r"\(m, 16\)"):
        milvus.search(np.ones((1, 3)), 3)


def test_columns_that_milvus_needs_itself(tmp_path):
    from runtime.catalogue.milvus import upload

    days = pa.array([datetime.date(2024, 5, 1)] * N)
    for number, taken in enumerate(({"key": days}, {"day": days, "day_as_number": days})):
        labels = reduce(lambda table, name: table.append_column(name, taken[name]), taken, make_labels(N))
        with pytest.raises(InputError, match=f"named '{list(taken)[-1]}', a name that is needed"):
            upload(make_catalogue(tmp_path / str(number), VECTORS, labels), str(tmp_path / "m.db"))


def test_a_collection_of_before_is_searched_and_filtered_after_another_upload(tmp_path):
    from runtime.catalogue.milvus import MANIFEST, MilvusCatalogue, upload

    local = make_catalogue(tmp_path, VECTORS, make_labels(N))
    milvus = upload(local, str(tmp_path / "m.db"))
    text = milvus.client.get("plaudit" + MANIFEST, ["manifest"], output_fields=["text"])[0]["text"]
    old = {name: value for name, value in json.loads(text).items() if name in ("identity", "columns")}
    milvus.client.upsert("plaudit" + MANIFEST, [{"key": "manifest", "vector": [0.0, 0.0], "text": json.dumps(old)}])
    milvus.close()
    before = MilvusCatalogue(str(tmp_path / "m.db"))
    assert len(before.search(VECTORS[:1], 3)[0]) == 3
    with pytest.raises(InputError, match="upload the catalogue again"):
        before.search(VECTORS[:1], 3, where="year > 2000")
    before.close()
    after = upload(local, str(tmp_path / "m.db"))
    assert len(after.search(VECTORS[:1], 3, where="year > 2000")[0]) == 3
    after.close()


def test_the_command_uploads_what_a_connection_then_finds(both, tmp_path, capsys):
    from runtime.catalogue.milvus import MilvusCatalogue
    from runtime.cli.main import main

    local = both[0]
    uri = str(tmp_path / "other.db")
    assert main(["upload", str(local.path), uri, "--collection", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"uri": uri, "collection": "mine", "pictures": N}
    there = MilvusCatalogue(uri, "mine")
    query = unit_vectors(1, 16, seed=4)
    assert [h.key for h in there.search(query, 5, 0.3)[0]] == [h.key for h in local.search(query, 5, 0.3)[0]]
    there.close()
