"""A head on vectors that were made elsewhere: trained, exported without towers, and used as far as that goes."""

import json
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from adopted import DIM, clip_retrieval, declare, unit
from export_tiny import CALIBRATION, changed_manifest

from embed.cache.store import Cache
from embed.cli import main as embed_main
from export.cli.main import main
from export.config import ExportConfig
from export.graphs import compose
from export.head_alone import export_head_alone
from export.outputs import Outputs
from export.parity import ParityError
from heads.cli import main as heads_main
from heads.committee import Committee
from heads.config import HeadConfig
from heads.models import Head, build_head
from heads.store.disk import load_head
from runtime.cli import main as runtime_main
from runtime.scoring.bundle import BundleError
from runtime.scoring.scorer import Scorer

ROWS = 80


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of adopted vectors, a table of ratings that lie along one direction, and a head trained on both."""
    folder = tmp_path_factory.mktemp("adopted")
    images, texts = unit(ROWS).astype(np.float16), unit(ROWS, seed=1).astype(np.float16)
    clip_retrieval(folder / "f", [images], [texts])
    identity, cache = declare(folder), str(folder / "cache")
    assert embed_main.main(["adopt", str(folder / "f"), "--identity", str(identity), "--out", cache]) == 0
    liked = images.astype(float) @ np.arange(1, DIM + 1)
    columns = {"image": [f"p{i}" for i in range(ROWS)], "prompt": [f"c{i % 8}" for i in range(ROWS)], "rating": liked}
    pq.write_table(pa.table(columns), folder / "ratings.parquet")
    table = str(folder / "ratings.parquet")
    training = ["train", cache, "--data", table, "--head", "linear", "--loss", "rating", "--folds", "3"]
    assert heads_main.main([*training, "--out", str(folder / "head")]) == 0
    return folder


@pytest.fixture(scope="module")
def bundle(place: Path) -> Path:
    assert main(["onnx", str(place / "head"), "--out", str(place / "bundle")]) == 0
    return place / "bundle"


def test_the_bundle_scores_vectors_as_torch_does(place: Path, bundle: Path) -> None:
    assert {path.name for path in bundle.iterdir()} == {
        *("bundle.json", "head.onnx", "weights.bin", "reference.npz", "README.md")
    }
    onnx.checker.check_model(str(bundle / "head.onnx"), full_check=True)
    vectors = Cache.open(place / "cache").image_embeddings().astype(np.float32)
    with torch.inference_mode():
        expected = load_head(place / "head")[0](image_embedding=torch.from_numpy(vectors)).numpy()
    scored = Scorer.load(bundle).score_vectors({"image_embedding": vectors})
    np.testing.assert_allclose(scored["score"], expected, atol=1e-5)
    assert set(scored) == {"score", "uncertainty"}
    # It learnt what the ratings are: as the direction orders, so does it.
    assert np.corrcoef(scored["score"], vectors @ np.arange(1, DIM + 1))[0, 1] > 0.99


def test_the_card_says_how_it_is_used_and_nothing_that_nobody_knows(bundle: Path) -> None:
    card = (bundle / "README.md").read_text()
    assert 'score_vectors({"image_embedding": image_embeddings})' in card and "runtime score" not in card
    assert "acme-clip, weights 2024-05" in card and "nknown" not in card
    assert "Measured on 64 random vectors of pictures" in card


def test_check_compares_it_with_the_head_in_torch(
    place: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(bundle)]) == 0
    assert "the bundle holds only a head; name the head that it was made from with --head" in capsys.readouterr().out
    assert main(["check", str(bundle), "--head", str(place / "head"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["torch"]["precisions"]["fp32"]
    assert found["scores"]["flips"] == 0 and found["scores"]["decided_pairs"] > 1000
    assert found["uncertainty"]["max_difference"] < 1e-5 and found["vectors"] == {}


def test_a_catalogue_of_adopted_vectors_answers_by_key(
    place: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, cache = str(place / "catalogue"), str(place / "cache")
    assert runtime_main.main(["index", cache, "--popularity", f"predicted:{bundle}", "--out", out]) == 0
    capsys.readouterr()
    assert runtime_main.main(["similar", out, "--id", "p7", "-k", "3", "--popularity-weight", "0", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    vectors = Cache.open(cache).image_embeddings().astype(np.float64)
    nearest = np.argsort(-(vectors @ vectors[7]))[1:4]
    assert [hit["key"] for hit in hits] == [f"p{i}" for i in nearest]


@pytest.mark.parametrize(
    "argv",
    [
        ["similar", "{place}/catalogue-of-counts", "--text", "a cat", "--bundle", "{bundle}"],
        [
            "index",
            "{place}/cache",
            "--popularity",
            "{place}/counts.parquet",
            "--out",
            "{tmp}/c",
            "--bundle",
            "{bundle}",
        ],
        ["score", "{bundle}", "{tmp}/x.png", "--prompt", "a cat"],
        ["serve", "{bundle}", "--port", "0"],
    ],
    ids=["similar", "index", "score", "serve"],
)
def test_who_asks_for_vectors_of_pictures_is_told_that_there_are_no_towers(
    place: Path, bundle: Path, tmp_path: Path, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    counts = pa.table({"image": [f"p{i}" for i in range(ROWS)], "count": range(ROWS)})
    pq.write_table(counts, place / "counts.parquet")
    made = ["index", str(place / "cache"), "--popularity", str(place / "counts.parquet"), "--overwrite"]
    assert runtime_main.main([*made, "--out", str(place / "catalogue-of-counts")]) == 0
    (tmp_path / "x.png").write_bytes(b"")
    capsys.readouterr()
    assert runtime_main.main([part.format(place=place, bundle=bundle, tmp=tmp_path) for part in argv]) == 2
    assert "holds a head alone, for vectors of acme-clip: it encodes no picture and no" in capsys.readouterr().err


def test_without_a_bundle_a_prompt_has_no_vector(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(place / "without")
    counts = pa.table({"image": ["p1", "p2"], "count": [1, 2]})
    pq.write_table(counts, place / "two.parquet")
    assert (
        runtime_main.main(["index", str(place / "cache"), "--popularity", str(place / "two.parquet"), "--out", out])
        == 0
    )
    assert runtime_main.main(["similar", out, "--text", "a cat"]) == 2
    assert "names no bundle to encode queries with; give --bundle BUNDLE, or ask without one" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--space",), ("--precision", "fp16")])
def test_options_of_towers_are_refused(
    place: Path, tmp_path: Path, option: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["onnx", str(place / "head"), "--out", str(tmp_path / "b"), *option]) == 2
    assert f"{option[0]} " in capsys.readouterr().err and not (tmp_path / "b").exists()


def both(dim: int = DIM) -> tuple[Head, dict[str, object]]:
    """A head that reads pictures, prompts and pooled features, and what head.json would say of it."""
    torch.manual_seed(0)
    config = HeadConfig("blend", dim, 12, landmarks=6)
    head = build_head(config).eval()
    for parameter in [*head.parameters(), *head.buffers()]:
        if parameter.dtype.is_floating_point:
            parameter.data.normal_(0, 0.3)
    source = {"model": "acme-clip", "pretrained": "adopted:"}
    identity = {"model": "acme-clip", "weights": "1", "dim": dim, "preprocess": None, "activation": "unknown"}
    identity |= {"tokenizer": "unknown", "context_length": 0, "pipeline": 0}
    return head, {"head": vars(config), "identity": identity, "source": source, "calibration": CALIBRATION}


def test_a_head_of_all_inputs_is_exported_with_each_of_its_width(tmp_path: Path) -> None:
    head, manifest = both()
    members = [both()[0] for _ in range(3)]
    committee = Committee(members, {"gains": [1.0, 0.9, 1.1], "offsets": [0.0, 0.1, -0.1]}, 3).eval()
    export_head_alone(tmp_path / "b", Outputs.of(head, committee, manifest), ExportConfig())
    scorer = Scorer.load(tmp_path / "b")
    assert {name: shape[1] for name, (_, shape) in scorer.bundle.graph("fp32", "head").inputs.items()} == {
        name: 12 if name == "image_pooled" else DIM for name in head.inputs
    }
    assert set(scorer.outputs) == {"score", "uncertainty", "calibrated_score", "percentile"}
    with pytest.raises(BundleError, match="holds a head alone"):
        scorer.embed_prompts(["a cat"])
    # On another machine, of other kernels, the reference says whether its scores are these.
    changed_manifest(tmp_path / "b", lambda bundle: bundle["reference"]["fp32"].update(score=-1.0))
    with pytest.raises(BundleError, match=r"score at fp32 is .* off the reference"):
        Scorer.load(tmp_path / "b").check_reference()


def test_a_graph_that_is_off_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head, manifest = both()
    actual = compose.export_head

    def other(head: Head, widths: dict[str, int]) -> onnx.ModelProto:
        changed, _ = both()
        changed.load_state_dict({n: t * 1.01 if t.dtype.is_floating_point else t for n, t in head.state_dict().items()})
        return actual(changed, widths)

    monkeypatch.setattr(compose, "export_head", other)
    with pytest.raises(ParityError, match="fp32 and torch disagree: a score differs by"):
        export_head_alone(tmp_path / "b", Outputs.of(head, None, manifest), ExportConfig())
    assert not (tmp_path / "b").exists()
