import json
import os
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pytest
from catalogue_fakes import (
    assert_best,
    between,
    brute_force,
    identity,
    make_cache,
    make_catalogue,
    make_labels,
    unit_vectors,
)
from paths import HELPERS, ROOT
from progress_told import Told

from embed.spec import IdentityMismatch, InputError
from runtime.catalogue import writer as module
from runtime.catalogue.reader import Catalogue
from runtime.catalogue.writer import build, refresh
from runtime.config import IndexConfig, PopularityConfig
from runtime.index.effort import RecallTooLow

KINDS = ("exact", "ivf-pq", "ivf-sq", "hnsw")
VECTORS = unit_vectors(1500, 16, clusters=20)
LABELS = make_labels(1500)


def same(a: Catalogue, b: Catalogue) -> bool:
    return bool(
        np.array_equal(a.vectors, b.vectors) and a.rows.equals(b.rows) and np.array_equal(a.popularity, b.popularity)
    )


def check(catalogue: Catalogue) -> None:
    """The catalogue answers, and rightly."""
    queries = between(catalogue.vectors, 40)
    truth = brute_force(catalogue, queries, np.float32(0.3))
    rows, _, scores = found = catalogue.search_rows(queries, 10, 0.3)
    if catalogue.index is None:
        assert_best(found, truth, 10)
    np.testing.assert_allclose(scores, np.take_along_axis(truth, rows, axis=1), atol=1e-12)
    best = np.argsort(-truth, axis=1)[:, :10]
    assert np.mean([np.isin(b, r).mean() for b, r in zip(best, rows, strict=True)]) > 0.8


@pytest.fixture(params=KINDS)
def catalogue(request, tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.catalogue.reader.SCAN_ROWS", 100)
    monkeypatch.setattr("runtime.catalogue.reader.SCAN_COST", 1e9)
    return make_catalogue(tmp_path, VECTORS, LABELS, index=request.param)


def test_a_refresh_is_what_an_index_from_scratch_would_be(catalogue, tmp_path):
    labels = make_labels(1500, seed=1)
    fresh, _ = refresh(catalogue.path, labels, progress=(told := Told()))
    rows = {"exact": None, "hnsw": 0}.get(catalogue.manifest["index"]["kind"], 1500)  # a graph's nodes stay
    assert [(one.total, sum(one.steps)) for one in told.works.values()] == ([] if rows is None else [(1500, rows)])
    check(fresh)
    scratch = make_catalogue(tmp_path / "other", VECTORS, labels)
    assert same(fresh, scratch)
    assert fresh.manifest["version"] == "v000002"
    assert fresh.manifest["index"]["kind"] == catalogue.manifest["index"]["kind"]
    # The reader of the old version goes on, files and all.
    check(catalogue)


def test_pictures_are_added_and_deleted(catalogue, tmp_path):
    more = unit_vectors(1800, 16, seed=3)
    more[:1500] = VECTORS
    cache = make_cache(tmp_path / "more", more)
    labels = make_labels(1800).slice(50)  # the first fifty are no longer named
    grown, rows = refresh(catalogue.path, labels, cache)
    assert len(grown) == 1750 and rows.without_count == 50
    check(grown)
    smaller, _ = refresh(catalogue.path, delete=["p100.png", "p1700.png"])
    assert len(smaller) == 1748
    check(smaller)
    assert not {"p100.png", "p1700.png"} & set(smaller.rows["image"].to_pylist())
    # What the table said of the others is still there.
    assert smaller.rows.filter(pa.compute.equal(smaller.rows["image"], "p77.png"))["kind"].to_pylist() == ["it's"]
    with pytest.raises(InputError, match=r"no picture named 'p100\.png'"):
        refresh(catalogue.path, delete=["p100.png"])
    assert Catalogue.open(catalogue.path).manifest["version"] == "v000003"


def test_deleting_does_not_bring_back_what_has_no_count(tmp_path):
    made = make_catalogue(tmp_path, VECTORS, LABELS.slice(10), missing="zero")
    assert len(made) == 1500
    assert len(refresh(made.path, delete=["p3.png"])[0]) == 1499


def test_other_vectors_are_refused(tmp_path):
    made = make_catalogue(tmp_path, VECTORS, LABELS)
    with pytest.raises(IdentityMismatch, match="weights: w / other"):
        refresh(made.path, LABELS, make_cache(tmp_path / "other", VECTORS, weights="other"))
    assert made.identity == identity(16)


def test_the_manifest_says_the_recall_at_each_weight(tmp_path):
    index = make_catalogue(tmp_path, VECTORS, LABELS, index="ivf-sq").manifest["index"]
    assert [one["weight"] for one in index["efforts"]] == [0, 0.1, 0.3, 1, 3]
    assert all(0.8 < one["recall_at_10"] <= 1 for one in index["efforts"])


def test_auto_takes_the_first_kind_that_fits_and_reaches_the_recall(tmp_path, monkeypatch):
    cache = make_cache(tmp_path / "cache", VECTORS)
    config = PopularityConfig()

    def kind(**options):
        made, _ = build(tmp_path / "c", cache, LABELS, config, IndexConfig(**options), overwrite=True)
        return made.manifest["index"]["kind"]

    assert kind() == "exact"
    monkeypatch.setattr(module, "EXACT_UP_TO", 100)
    assert kind(min_recall=0.8) == "ivf-pq"
    with pytest.raises(InputError, match=r"ivf-pq takes \d+ bytes, more than 10; ivf-sq takes .*; hnsw"):
        kind(max_memory_bytes=10)
    tried = []

    def too_low(index, *_):
        tried.append(index.kind)
        raise RecallTooLow("the curve")

    monkeypatch.setattr(module, "tune", too_low)
    with pytest.raises(InputError, match="the curve; the curve; the curve"):
        kind()
    assert tried == ["ivf-pq", "ivf-sq", "hnsw"]


@pytest.mark.parametrize(("options", "message"), [({"kind": "lsh"}, "kind is 'lsh'"), ({"min_recall": 1.5}, "is 1.5")])
def test_bad_configs_are_said(options, message):
    with pytest.raises(InputError, match=message):
        IndexConfig(**options)


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "catalogue").mkdir()
    (tmp_path / "catalogue" / "thesis.txt").write_text("")
    with pytest.raises(InputError, match="not a catalogue and not empty"):
        make_catalogue(tmp_path, VECTORS, LABELS)
    assert (tmp_path / "catalogue" / "thesis.txt").exists()


def test_a_failed_write_leaves_no_trace(tmp_path, monkeypatch):
    made = make_catalogue(tmp_path, VECTORS, LABELS)
    monkeypatch.setattr(module, "_carry_index", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        refresh(made.path, LABELS)
    assert sorted(os.listdir(made.path)) == [".lock", "manifest.json", "v000001"]
    check(Catalogue.open(made.path))


def test_two_writers_do_not_meet(tmp_path):
    made = make_catalogue(tmp_path, VECTORS, LABELS)
    with module._writing(made.path), pytest.raises(InputError, match="another job is writing"):
        refresh(made.path, LABELS)


def test_only_the_version_before_is_kept(tmp_path):
    made = make_catalogue(tmp_path, VECTORS, LABELS)
    for _ in range(3):
        refresh(made.path, LABELS)
    assert sorted(name for name in os.listdir(made.path) if name[0] == "v") == ["v000003", "v000004"]


def test_places_move_with_the_catalogue(tmp_path):
    cache = make_cache(tmp_path / "cache", VECTORS)
    made, _ = build(
        tmp_path / "a" / "c",
        cache,
        LABELS,
        PopularityConfig(),
        IndexConfig(),
        tmp_path / "pictures",
        tmp_path / "bundle",
    )
    assert made.manifest["bundle"] == "../../bundle"
    assert made.bundle == tmp_path / "bundle" and made.images_root == str(tmp_path / "pictures")
    assert refresh(made.path, LABELS)[0].bundle == tmp_path / "bundle"


def test_readers_open_while_a_writer_writes(tmp_path):
    made = make_catalogue(tmp_path, VECTORS, LABELS)
    faults, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            try:
                assert len(Catalogue.open(made.path)) == 1500
            except Exception as error:
                faults.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for seed in range(15):
        refresh(made.path, make_labels(1500, seed))
    stop.set()
    reader.join()
    assert not faults


# Says how many steps with files a refresh takes; then, told a number, forks a writer that kills itself at that step.
KILLER = """
import os, signal, sys
import faiss
from catalogue_fakes import make_labels
from runtime.catalogue.writer import refresh

faiss.omp_set_num_threads(1)
STEPS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "fcntl.flock"}
steps, last = 0, 10**9

def step(event, args):
    global steps
    if event in STEPS:
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1

refresh(sys.argv[1], make_labels(1500, 1))  # imports what it needs
sys.addaudithook(step)
refresh(sys.argv[1], make_labels(1500, 2))
print(steps, flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        steps, last = 0, int(line)
        refresh(sys.argv[1], make_labels(1500, last))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    print("killed" if os.WIFSIGNALED(status) else "ended", flush=True)
"""


def test_fifty_kills_leave_a_whole_version(tmp_path):
    made = make_catalogue(tmp_path, VECTORS, LABELS, index="ivf-pq")
    roots = [str(HELPERS), str(ROOT)]
    killer = subprocess.Popen(
        [sys.executable, "-c", KILLER, str(made.path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(roots), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killer.stdin is not None and killer.stdout is not None
    steps = int(killer.stdout.readline())
    versions, leftovers = set(), 0
    for last in np.linspace(0, steps - 1, 50).astype(int):
        print(last, file=killer.stdin, flush=True)
        assert killer.stdout.readline() == "killed\n"
        opened = Catalogue.open(made.path)
        leftovers += any(name > opened.manifest["version"] for name in os.listdir(made.path) if name[0] == "v")
        versions.add(opened.manifest["version"])
        assert len(opened) == 1500
        # The counts are those of one refresh, and vectors and rows belong together.
        ids = np.array([int(value, 16) for value in opened.rows["image_id"].to_pylist()])
        assert np.array_equal(opened.vectors, VECTORS.astype(np.float16)[ids])
        assert (np.diff(opened.popularity) <= 0).all()
        assert (opened.search_rows(VECTORS[:3], 10, 0.3)[0] >= 0).all()
    check(Catalogue.open(made.path))
    killer.stdin.close()
    killer.stdout.close()
    killer.wait()
    # Some were killed after the new version counted, most within one that never did.
    assert len(versions) > 1 and leftovers > 10
    assert json.loads((made.path / "manifest.json").read_text())["format"] == 2


def test_an_index_of_the_first_format_is_named_and_the_rest_still_opens(tmp_path):
    for kind in ("ivf-pq", "hnsw", "exact"):
        path = make_catalogue(tmp_path / kind, VECTORS, LABELS, index=kind).path
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
        if kind == "ivf-pq":
            with pytest.raises(InputError, match="an index of an older plaudit; make the catalogue again"):
                Catalogue.open(path)
        else:
            assert len(Catalogue.open(path)) == len(VECTORS)
