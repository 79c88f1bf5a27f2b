import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from catalogue_fakes import identity, make_cache, unit_vectors

from embed.files import content_id
from runtime.cli import popularity, similar
from runtime.cli.main import COMMANDS, main
from runtime.scoring import vectors
from runtime.scoring.outputs import Output, Outputs

VECTORS = unit_vectors(60, 16, clusters=6)


def outputs_of(inputs):
    return Outputs((Output("score", inputs, {"score": "score"}),))


class FakeScorer:
    """Encodes a picture by the number in its name, a prompt by its length; its head scores the first number."""

    identity = identity(16)
    inputs = ("image_embedding",)
    reads_text = False
    named = outputs_of(inputs)

    def embed_images(self, images):
        return VECTORS[[int(path.stem) for path in images]]

    def embed_prompts(self, prompts):
        return VECTORS[[len(prompt) for prompt in prompts]]

    def score_vectors(self, features, asked=None):
        return {"score": features["image_embedding"][:, 0]}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_cache(tmp_path / "cache", VECTORS)
    with open("counts.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "likes", "kind"])
        writer.writerows([f"p{i}.png", (i * 7) % 61, "ab"[i % 2]] for i in range(50))
        writer.writerow(["p50.png", "", "c"])
    monkeypatch.setattr(similar, "load_encoder", lambda catalogue, bundle: FakeScorer())
    return tmp_path


def run(*argv):
    return main(list(map(str, argv)))


def index(*options):
    return run("index", "cache", "--popularity", "counts.csv", "--columns", "count=likes", "--out", "cat", *options)


def hits_of(capsys, *options):
    capsys.readouterr()
    assert run("similar", "cat", *options, "--json") == 0
    return [hit["key"] for hit in json.loads(capsys.readouterr().out)["hits"]]


def expected(query, weight=0.3, k=10):
    from runtime.catalogue.reader import Catalogue

    return [hit.key for hit in Catalogue.open("cat").search(query.reshape(1, -1), k, weight)[0]]


def test_what_index_suggests_can_be_run_without_a_bundle(place, capsys):
    assert index() == 0
    plaudit, package, *words = shlex.split(capsys.readouterr().err.splitlines()[-1])
    assert (plaudit, package, words[0]) == ("plaudit", "runtime", "similar")
    assert run(*words) == 0 and (place / "hits.html").exists()


def test_index_says_what_was_left_out(place, capsys):
    assert index("--json") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["pictures"], report["without_count"], report["not_embedded"]) == (50, 10, 0)
    assert report["index"] == {"kind": "exact"}
    assert "10 pictures have no count and are left out" in err
    assert index("--missing", "median") == 2
    assert "cat is a catalogue already; say --overwrite to replace it" in capsys.readouterr().err
    assert index("--missing", "median", "--overwrite") == 0
    assert "60 pictures in cat" in capsys.readouterr().out


def test_counts_of_any_types_in_shards_make_the_same_catalogue(place, capsys):
    index()
    Path("3.jpg").write_bytes(b"a picture")
    with open("counts.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["likes"]]
    expected = [hits_of(capsys, "3.jpg", "--popularity-weight", weight) for weight in ("0", "0.3", "1")]
    table = pa.table({
        "image": pa.array([row["image"] for row in rows], pa.string_view()),
        "count": pa.array([int(row["likes"]) for row in rows], pa.uint16()).dictionary_encode(),
        "kind": pa.array([row["kind"] for row in rows], pa.large_string()).dictionary_encode(),
    })  # fmt: skip
    for number in range(2):
        pq.write_table(table.slice(25 * number, 25), f"counts-{number}.parquet")
    assert run("index", "cache", "--popularity", "counts-{0..1}.parquet", "--out", "cat", "--overwrite") == 0
    assert [hits_of(capsys, "3.jpg", "--popularity-weight", weight) for weight in ("0", "0.3", "1")] == expected
    assert set(hits_of(capsys, "3.jpg", "--where", "kind = 'a'")) <= {f"p{i}.png" for i in range(0, 50, 2)}
    pq.write_table(pa.table({"image": ["p0.png", "p1.png"], "count": [2.0, 2.5]}), "half.parquet")
    assert run("index", "cache", "--popularity", "half.parquet", "--out", "cat", "--overwrite") == 2
    assert "half.parquet: count is not a whole number: row 1 (counted from 0)" in capsys.readouterr().err


def test_every_kind_of_query(place, capsys):
    index("--missing", "zero")
    (place / "3.jpg").write_bytes(b"a picture")
    v = Path("v.npy")
    np.save(v, VECTORS[9] * 5)
    assert hits_of(capsys, "3.jpg", "--popularity-weight", "0.3") == expected(VECTORS[3], 0.3)
    assert hits_of(capsys, "--text", "hello") == expected(VECTORS[5])
    mean = VECTORS[3] + VECTORS[5]
    assert hits_of(capsys, "3.jpg", "--text", "hello", "-k", "4") == expected(mean / np.linalg.norm(mean), k=4)
    assert hits_of(capsys, "--vector", v) == expected(VECTORS[9])
    others = [key for key in expected(VECTORS[8]) if key != "p8.png"][:5]
    assert hits_of(capsys, "--id", "p8.png", "-k", "5") == hits_of(capsys, "p8.png", "-k", "5") == others
    assert hits_of(capsys, "--id", "p8.png", "-k", "5", "--include-query") == expected(VECTORS[8], k=5)
    mixed = VECTORS[[3, 8]].mean(axis=0) - VECTORS[20]
    got = hits_of(capsys, "--like", "3.jpg", "p8.png", "--dislike", "p20.png")
    nearest = expected(mixed / np.linalg.norm(mixed), k=51)
    assert got == [key for key in nearest if key not in ("p8.png", "p20.png")][:10]  # the query's own are no hits
    assert hits_of(capsys, "--like", "3.jpg", "p8.png", "--dislike", "p20.png", "--include-query") == nearest[:10]
    assert hits_of(capsys, "--id", "p8.png", "--where", "kind = 'c'") == ["p50.png"]
    assert "p8.png" not in hits_of(capsys, "--id", "p8.png", "--front")
    assert run("similar", "cat", "--id", "p8.png", "--front", "-k", "2") == 2
    assert "leave one of them out" in capsys.readouterr().err
    assert len(hits_of(capsys, "--id", "p8.png", "--group-by", "kind", "--where", "kind is not null")) == 3


def test_the_file_of_a_picture_in_the_catalogue_does_not_find_itself(place, capsys):
    (place / "3.jpg").write_bytes(b"a picture")
    ids = [content_id(b"a picture" if i == 3 else str(i).encode()) for i in range(60)]
    make_cache(place / "by-content", VECTORS, ids=ids)
    options = ("--popularity", "counts.csv", "--columns", "count=likes", "--out", "cat")
    assert run("index", "by-content", *options) == 0
    found = expected(VECTORS[3], k=11)
    assert "p3.png" in found
    assert hits_of(capsys, "3.jpg") == [key for key in found if key != "p3.png"]
    assert hits_of(capsys, "3.jpg", "--include-query", "-k", "11") == found


def test_refresh_and_deletion(place, capsys):
    index()
    assert run("refresh", "cat", "--delete", "p3.png", "p4.png", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["pictures"] == 48
    assert run("refresh", "cat", "--popularity", "counts.csv", "--columns", "count=likes", "--cache", "cache") == 0
    assert "50 pictures in cat" in capsys.readouterr().out
    assert run("refresh", "cat") == 2
    assert "nothing to do" in capsys.readouterr().err


def test_index_refresh_is_refresh(place, capsys):
    index()
    assert run("index", "refresh", "cat", "--delete", "p3.png") == 0
    assert "49 pictures in cat" in capsys.readouterr().out


def test_predicted_popularity(place, capsys, monkeypatch):
    import runtime.scoring.scorer

    monkeypatch.setattr(runtime.scoring.scorer.Scorer, "load", lambda bundle: FakeScorer())
    assert run("index", "cache", "--out", "cat") == 2
    assert "--popularity TABLE or --predicted BUNDLE" in capsys.readouterr().err
    assert run("index", "cache", "--predicted", "bundle", "--popularity", "counts.csv", "--out", "cat") == 2
    assert "--missing predicted:BUNDLE" in capsys.readouterr().err
    assert run("index", "cache", "--predicted", "bundle", "--out", "cat") == 0
    from runtime.catalogue.reader import Catalogue

    order = np.argsort(-VECTORS.astype(np.float16)[:, 0], kind="stable")
    assert Catalogue.open("cat").rows["image"].to_pylist() == [f"p{i}.png" for i in order]
    assert index("--missing", "predicted:bundle", "--overwrite") == 0
    assert len(Catalogue.open("cat")) == 60
    monkeypatch.setattr(FakeScorer, "identity", identity(16, "other"))
    assert run("index", "cache", "--popularity", "predicted:bundle", "--out", "cat", "--overwrite") == 2
    assert "come from different backbones" in capsys.readouterr().err


def test_a_predictor_reads_what_the_cache_has(monkeypatch):
    import pyarrow as pa

    from embed.spec import InputError

    class Pictures:
        pooled = None

        def image_embeddings(self):
            return VECTORS

        def pooled_embeddings(self):
            return self.pooled

    scorer, pictures, rows = FakeScorer(), Pictures(), np.array([5, 3, 8])
    scorer.bundle = SimpleNamespace(path="b")
    scorer.named = outputs_of(("image_embedding", "image_pooled"))
    scorer.score_vectors = lambda f, asked: {"score": f["image_embedding"][:, 0] + f["image_pooled"][:, 0]}
    prompts = pa.chunked_array([["a", "b", None]])
    with pytest.raises(InputError, match="pooled features, which are not in these vectors"):
        popularity.predictor(scorer)(pictures, rows, prompts, np.full(3, -1))
    pictures.pooled = 10 * VECTORS
    monkeypatch.setattr(vectors, "BLOCK_ROWS", 2)
    np.testing.assert_allclose(
        popularity.predictor(scorer)(pictures, rows, prompts, np.full(3, -1)), 11 * VECTORS[rows, 0]
    )
    scorer.named = outputs_of(("image_embedding", "text_embedding"))
    with pytest.raises(InputError, match="1 pictures have no prompt: give --prompt TEXT"):
        popularity.predictor(scorer)(pictures, rows, prompts, np.full(3, -1))
    scorer.score_vectors = lambda f, asked: {"score": f["image_embedding"][:, 0] + f["text_embedding"][:, 1]}
    found = popularity.predictor(scorer, prompt="three")(pictures, rows, prompts, np.full(3, -1))
    np.testing.assert_allclose(found, VECTORS[rows, 0] + VECTORS[[1, 1, 5], 1])  # by the prompts' lengths


def test_the_sheet(place, capsys):
    index()
    assert run("similar", "cat", "--id", "p8.png", "--sheet", "s.html") == 0
    assert "contact sheet: s.html" in capsys.readouterr().out
    assert (place / "s.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["index", "cache", "--popularity", "counts.csv", "--out", "x"],
            "no column 'count'; it has image, likes, kind",
        ),
        (["index", "nowhere", "--popularity", "counts.csv", "--out", "x"], "nowhere is not a cache"),
        (["index", "cache", "--popularity", "no.csv", "--out", "x"], "no.csv does not exist"),
        (["similar", "cat"], "the query is empty; give a picture"),
        (["similar", "cat", "--id", "p99.png"], "no picture named 'p99.png'"),
        (["similar", "cat", "p99.png"], "p99.png is not a file, and cat has no picture of that name"),
        (["similar", "cat", "--vector", "counts.csv"], "counts.csv is not a .npy file"),
        (
            ["similar", "cat", "--vector", "short.npy"],
            r"holds float64(3,); wanted floats (16,), as the catalogue's vectors",
        ),
        (["similar", "cat", "--id", "p8.png", "--where", "x = 1"], "there are count, height"),
        (["similar", "cat", "--id", "p8.png", "--sheet", "s.gif"], "neither .png nor .html"),
    ],
)
def test_bad_input_is_one_line(place, capsys, argv, message):
    index()
    np.save("short.npy", np.ones(3))
    capsys.readouterr()
    assert run(*argv) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1 and message in err[0]


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_imports_nothing_heavy(name):
    code = (
        f"import sys; from runtime.cli.main import main; assert main('{name} --help'.split()) == 0;"
        "heavy = {'faiss', 'numpy', 'pyarrow', 'PIL', 'torch', 'cyclopts'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    failing = subprocess.run([sys.executable, "-c", "import numpy; " + code], capture_output=True)
    assert failing.returncode != 0
