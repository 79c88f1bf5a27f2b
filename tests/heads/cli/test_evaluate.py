"""`heads evaluate`, `compare`, `calibrate` and `generators` from a cache to a page, and what they refuse."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from heads_tiny import make_cache
from paths import DATA
from PIL import Image
from scipy.stats import rankdata, spearmanr

from heads.cli.main import main
from heads.evaluation.calibration import Curve
from heads.store.disk import load_manifest

AGIQA = DATA / "agiqa3k" / "data.csv"
PROMPTS, PICTURES = 12, 5
Run = Callable[..., dict]
Fails = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of 60 pictures of 12 prompts, rated along the first coordinate of their vectors."""
    monkeypatch.chdir(tmp_path)
    images = [f"g{i % PICTURES}_{i}.png" for i in range(PROMPTS * PICTURES)]
    prompts = [f"prompt {i}" for i in range(PROMPTS)]
    cache = make_cache(tmp_path / "cache", images, prompts)
    rating = np.round(3 + 4 * cache.image_embeddings()[:, 0].astype(float), 1)
    prompt = np.repeat(prompts, PICTURES)
    columns = {"image": images, "prompt": prompt, "rating": rating, "style": [f"s{i % 2}" for i in range(len(images))]}
    pq.write_table(pa.table(columns), "ratings.parquet")
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str) -> dict:
        assert main([*argv, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> Fails:
    def fails(*argv: str) -> str:
        """The one line of the error, after any warnings."""
        capsys.readouterr()
        assert main(list(argv)) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        *warnings, error = captured.err.splitlines()
        assert all(line.startswith("warning: ") for line in warnings)
        return error

    return fails


DATA = ("--data", "ratings.parquet")
TRAIN = ("train", "cache", *DATA, "--split-by", "prompt", "--epochs", "2", "--input-dropout", "0")
HELD_OUT = ("--cache", "cache", *DATA)


def test_evaluate_shows_every_figure_and_writes_a_page(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(0, PROMPTS * PICTURES, 2):  # half of the pictures are there
        Image.new("RGB", (40, 20), (4 * i, 0, 0)).save(folder / f"g{i % PICTURES}_{i}.png")
    trained = run(*TRAIN, "--folds", "3", "--out", "head")
    options = ("evaluate", "head", *HELD_OUT, "--prior-by", "style", "--slice-by", "style", "--report", "r.html")
    got = run(*options, "--baselines", "--uncertainty")
    assert got["pair_accuracy"] == trained["pair_accuracy"] == got["metrics"]["pair_accuracy"]["scores"]["head"]
    assert got["baselines"] == dict.fromkeys(got["baselines"])  # none is missing
    assert set(got["metrics"]["recall_at_1"]["scores"]) == set(got["baselines"])
    # The prompt is the same on both sides of every pair: a head that reads it alone has nothing to go by.
    assert got["metrics"]["pair_accuracy"]["scores"]["prompt_only"]["value"] == 0.5
    assert got["metrics"]["strict_accuracy"]["scores"]["prompt_only"]["value"] == 0
    assert [s["value"] for s in got["slices"]["slices"]] in (["s0", "s1"], ["s1", "s0"])
    assert got["protocol"]["interval"].endswith(f"of {PROMPTS} prompts")
    for map, bins in got["reliability"].items():
        gaps = sum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / sum(b["count"] for b in bins)
        assert got["metrics"][f"ece_{map}"]["scores"]["head"]["value"] == pytest.approx(gaps)

    thirds = got["uncertainty"]["thirds"]
    assert sum(part["pairs"] for part in thirds) == got["pairs"]
    assert got["uncertainty"]["by"] == "newly trained heads that have not seen the pair"
    page = (folder / "r.html").read_text()
    assert page.count("<circle", page.index("how sure it is?"), page.index("of all papers")) == len(
        got["uncertainty"]["bins"]
    )
    assert not re.search(r"""(src|href)=["'](?!data:)""", page) and "@import" not in page and "url(" not in page
    assert page.count('<img src="data:image/webp;base64,') >= 2 * 18
    for metric in got["metrics"].values():
        assert metric["label"].replace(">", "&gt;") in page
    assert f"{got['pair_accuracy']['value']:.3f}" in page
    # Pictures and the verdict come first, and plots before the table of all metrics.
    verdict = page.index(got["verdict"].partition(": ")[2])
    assert page.index("<img") < verdict < page.index("<svg") < page.index("of all papers")
    assert "head on ratings.parquet" in page

    assert main(list(options)) == 0
    brief = capsys.readouterr().out
    assert brief.splitlines()[0] == got["verdict"]
    assert "image only (--baselines trains it)" in brief and "--all-metrics" in brief and "recall@2" not in brief
    assert main([*options, "--uncertainty"]) == 0
    assert ", ".join(f"{part['right']['value']:.3f}" for part in thirds) in capsys.readouterr().out
    assert main([*options, "--all-metrics"]) == 0
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.startswith("recall@2"))
    interval = got["metrics"]["recall_at_2"]["scores"]["head"]
    assert f"{interval['value']:.3f} ({interval['low']:.3f}..{interval['high']:.3f})" in line


def test_uncertainty_is_measured_where_that_takes_no_training_or_is_asked_for(run: Run, folder: Path) -> None:
    run(*TRAIN, "--folds", "3", "--out", "head")
    assert run("evaluate", "head", *HELD_OUT)["uncertainty"] == {"missing": "--uncertainty measures it"}
    assert len(run("evaluate", "head", *HELD_OUT, "--uncertainty")["uncertainty"]["thirds"]) == 3
    # For a page, it is only measured if the head is fitted in moments.
    page = ("--report", "u.html")
    assert run("evaluate", "head", *HELD_OUT, *page)["uncertainty"] == {"missing": "--uncertainty measures it"}
    run("train", "cache", *DATA, "--split-by", "prompt", "--head", "linear", "--folds", "3", "--out", "linear")
    assert len(run("evaluate", "linear", *HELD_OUT, *page)["uncertainty"]["thirds"]) == 3
    run(*TRAIN, "--out", "alone", "--test-fraction", "0.5")
    missing = run("evaluate", "alone", *HELD_OUT, "--uncertainty")["uncertainty"]["missing"]
    assert missing == "the head has no committee; train it again with --folds"
    # Pictures that the head has not seen: its own committee speaks.
    names = [f"new_{i}.png" for i in range(12)]
    make_cache(folder / "other", names, ["new prompt"])
    columns = {"image": names, "prompt": ["new prompt"] * 12, "rating": np.arange(12.0)}
    pq.write_table(pa.table(columns), "new.parquet")
    found = run("evaluate", "head", "--cache", "other", "--data", "new.parquet")["uncertainty"]
    assert found["by"] == "the head's own committee" and found["mean_uncertainty"] > 0


def test_a_calibration_is_stored_with_the_head(run: Run, folder: Path) -> None:
    run(*TRAIN, "--folds", "3", "--out", "head")
    at_training = load_manifest("head")["calibration"]
    run("evaluate", "head", *HELD_OUT, "--scores", "scores.parquet")
    scores = pq.read_table("scores.parquet")["score"].to_numpy().astype(float)
    percentile = Curve.from_json(at_training["percentiles"])
    np.testing.assert_allclose(percentile(scores), (rankdata(scores) - 0.5) / len(scores), atol=1 / len(scores))
    # Once more by the command, on other pairs: it takes the first one's place, and nothing else changes.
    before = load_manifest("head")
    table = pq.read_table("ratings.parquet")
    rating = table["rating"].to_numpy() + np.random.default_rng(0).normal(0, 2, len(table))
    pq.write_table(table.set_column(2, "rating", pa.array(rating)), "noisy.parquet")
    said = run("calibrate", "head", "--cache", "cache", "--data", "noisy.parquet")
    after = load_manifest("head")
    assert {k: v for k, v in after.items() if k != "calibration"} == {
        k: v for k, v in before.items() if k != "calibration"
    }
    assert after["calibration"]["temperature"] == said["temperature"]
    assert said["fitted_on"]["trained_rows"] == 0
    assert said["temperature"]["value"] > 1.2 * at_training["temperature"]["value"]  # noise makes it less sure


def test_percentiles_may_compare_with_another_table(run: Run, fails: Fails) -> None:
    run(*TRAIN, "--test-fraction", "0.5", "--out", "head")
    run("evaluate", "head", *HELD_OUT, "--scores", "scores.parquet")
    scored = pq.read_table("scores.parquet")
    scores = dict(zip(scored["image"].to_pylist(), scored["score"].to_pylist(), strict=True))
    # Every other row, those that training saw among them, which are no reference.
    pq.write_table(pq.read_table("ratings.parquet").take(np.arange(0, PROMPTS * PICTURES, 2)), "other.parquet")
    known = sorted(scores[name] for name in pq.read_table("other.parquet")["image"].to_pylist() if name in scores)
    plain = run("calibrate", "head", *HELD_OUT)
    found = run("calibrate", "head", *HELD_OUT, "--reference", "other.parquet")
    assert found["fitted_on"]["reference"] == len(known) < plain["fitted_on"]["reference"] == len(scores)
    assert found["fitted_on"]["reference_table"] == "other.parquet"
    assert "no picture or prompt with training" in found["fitted_on"]["reference_part"]
    assert (found["temperature"], found["isotonic"]) == (plain["temperature"], plain["isotonic"])
    percentile = Curve.from_json(load_manifest("head")["calibration"]["percentiles"])
    np.testing.assert_allclose(percentile(known), np.linspace(0, 1, len(known)), atol=0.01)
    assert "missing.parquet" in fails("calibrate", "head", *HELD_OUT, "--reference", "missing.parquet")


def test_heads_are_compared_where_neither_was_trained(
    run: Run, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*TRAIN, "--folds", "3", "--out", "head")
    run(*TRAIN[:6], "--head", "linear", "--test-fraction", "0.5", "--out", "linear")
    got = run("compare", "head", "linear", *HELD_OUT)
    assert got["rows"] == PROMPTS * PICTURES / 2
    assert got["difference"]["value"] == pytest.approx(
        got["pair_accuracy"]["first"]["value"] - got["pair_accuracy"]["second"]["value"]
    )
    back = run("compare", "linear", "head", *HELD_OUT)
    assert back["difference"]["value"] == pytest.approx(-got["difference"]["value"])
    assert run("compare", "head", "head", *HELD_OUT)["p_value"] == 1
    assert "does nothing for a table of ratings" in fails("compare", "head", "head", *HELD_OUT, "--min-ratio", "3")
    assert main(["compare", "head", "linear", *HELD_OUT]) == 0
    assert f"{got['difference']['value']:+.3f}" in capsys.readouterr().out
    assert "nowhere is not a head" in fails("compare", "head", "nowhere", *HELD_OUT)


def test_generators_are_ranked_by_people_and_by_a_head(
    run: Run, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*TRAIN, "--folds", "3", "--out", "head")
    by = ("--by", "image", "--pattern", "^[^_]+", "--orders", "20")
    people = run("generators", *DATA, *by)
    both = run("generators", "head", *HELD_OUT, *by)
    assert both["people"] == people["people"]
    grouped = ("--by", "image", "--pattern", "^([^_]+)_", "--orders", "20")
    assert run("generators", *DATA, *grouped)["people"] == people["people"], "the group names the generator"
    assert people["choices"] == PROMPTS * PICTURES * (PICTURES - 1) / 2
    rows = pq.read_table("ratings.parquet").to_pylist()
    won, met = 0.0, 0
    for a in rows:
        for b in rows:
            if a["prompt"] == b["prompt"] and a["image"][:2] == "g0" != b["image"][:2]:
                won, met = won + (a["rating"] > b["rating"]) + (a["rating"] == b["rating"]) / 2, met + 1
    assert people["people"]["win_rate"]["g0"] == pytest.approx(won / met)
    strengths = [
        [both[side]["bradley_terry"][f"g{i}"]["value"] for i in range(PICTURES)] for side in ("people", "head")
    ]
    assert both["agreement"]["bradley_terry_spearman"] == pytest.approx(spearmanr(*strengths).statistic)
    recall = [both["found"][f"recall_at_{k}"]["value"] for k in (1, 2, 4)]
    assert 1 / PICTURES < recall[0] < recall[2] <= 1 and "found" not in people
    assert "only one of HEAD and --cache" in fails("generators", "head", *DATA, *by)
    assert "which has image, prompt, style" in fails("generators", *DATA, "--by", "maker")
    assert "orders is 0; wanted at least 1" in fails("generators", *DATA, "--by", "style", "--orders", "0")
    # Choices of a single prompt say nothing of how far prompts differ: there are strengths, without intervals.
    pq.write_table(pq.read_table("ratings.parquet").slice(0, PICTURES), "one.parquet")
    strength = run("generators", "--data", "one.parquet", "--by", "style")["people"]["bradley_terry"]["s0"]
    assert strength["value"] is not None and strength["low"] is None
    assert main(["generators", "--data", "one.parquet", "--by", "style"]) == 0
    assert "there are no intervals: fewer than two prompts" in capsys.readouterr().out


def test_a_part_of_one_prompt_has_figures_without_intervals_everywhere(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, prompts in (("three", 3), ("four", 4)):  # a blend, which a search begins with, wants two to train on
        pq.write_table(pq.read_table("ratings.parquet").slice(0, prompts * PICTURES), f"{name}.parquet")
    table = ("--data", "three.parquet", "--split-by", "prompt")
    for command in (
        ("train", "cache", *table, "--test-fraction", "0.2", "--epochs", "1", "--out", "head"),
        ("sweep", "cache", "--data", "four.parquet", *table[2:], "--minutes", "0.001", "--out", "swept"),
        ("evaluate", "head", *HELD_OUT[:2], *table[:2], "--all-metrics", "--slice-by", "style", "--report", "r.html"),
        ("compare", "head", "head", *HELD_OUT[:2], *table[:2]),
    ):
        assert main(list(command)) == 0
        captured = capsys.readouterr()
        assert "fewer than two prompts" in captured.out and "nan" not in captured.out, command
        assert command[0] in ("train", "sweep") or "intervals rest on 1 prompts" in captured.err
    assert "There are no intervals: fewer than two prompts" in (folder / "r.html").read_text()


def test_a_column_that_gives_the_answers_away_opens_the_report(run: Run, folder: Path) -> None:
    table = pq.read_table("ratings.parquet")
    maker = np.where(table["rating"].to_numpy() > 3, "good", "bad")
    pq.write_table(table.append_column("maker", pa.array(maker)), "ratings.parquet")
    run(*TRAIN, "--folds", "3", "--epochs", "1", "--out", "head")
    got = run("evaluate", "head", *HELD_OUT, "--report", "r.html")
    assert [one["by"] for one in got["priors"]] == ["maker", "style"]
    accuracy = {name: one["value"] for name, one in got["metrics"]["pair_accuracy"]["scores"].items()}
    assert got["priors"][0]["pair_accuracy"]["value"] == accuracy["prior"] > 0.75
    # The ratings follow a coordinate of the vectors, which a line finds and a head does not in a step.
    assert accuracy["ridge"] == 1 and "? No: " in got["verdict"] and "worse than ridge regression" in got["verdict"]
    assert f"the prior by maker ({accuracy['prior']:.3f})" in got["verdict"]
    assert run("evaluate", "head", *HELD_OUT, "--prior-by", "style")["priors"][0]["by"] == "style"


@pytest.mark.skipif(not AGIQA.exists(), reason="the AGIQA-3K ratings are not on this machine")
def test_six_generators_from_their_table(run: Run) -> None:
    columns = ("--columns", "image=name,rating=mos_quality")
    got = run("generators", "--data", str(AGIQA), *columns, "--by", "name", "--pattern", "^[^_]+")
    order = ["AttnGAN", "glide", "DALLE2", "sd1.5", "midjourney", "xl2.2"]  # by mean quality
    assert sorted(order, key=lambda name: got["people"]["elo"][name]["mean"]) == order
    assert sorted(order, key=lambda name: got["people"]["bradley_terry"][name]["value"]) == order


def test_what_cannot_be_measured_is_one_line(run: Run, fails: Fails, folder: Path) -> None:
    run(*TRAIN, "--test-fraction", "0.5", "--out", "head")
    table = pq.read_table("ratings.parquet")
    # A table that shares pictures with training.
    pq.write_table(table.slice(0, 40), "shared.parquet")
    shared = ("--cache", "cache", "--data", "shared.parquet")
    error = fails("evaluate", "head", *shared, "--strict")
    assert re.search(r"\d+ of 40 rows have a picture or prompt that the head head was TRAINED on", error)
    assert "leave out --strict" in error
    assert run("evaluate", "head", *shared)["rows"] == 40 - int(re.search(r"(\d+) of 40 rows", error)[1])
    # Groups of one.
    pq.write_table(table.take(pa.array(range(0, len(table), PICTURES))), "lone.parquet")
    error = fails("evaluate", "head", "--cache", "cache", "--data", "lone.parquet", "--all")
    assert f"{PROMPTS} are alone in their group" in error
    # Pictures without a vector.
    images = pa.array([*(f"gone{i}.png" for i in range(4)), *table["image"].to_pylist()[4:]])
    pq.write_table(table.set_column(0, "image", images), "gone.parquet")
    error = fails("evaluate", "head", "--cache", "cache", "--data", "gone.parquet")
    assert "4 of 60 rows have a picture without a vector" in error and "gone0.png" in error
    # A vector that is not finite, in a copy of the cache.
    vectors = folder / "cache" / "images" / "img_emb" / "img_emb_0000.npy"
    broken = np.load(vectors)
    broken[7, 2] = np.nan
    np.save(vectors, broken)
    assert "the image vector in row 7 of the cache is not finite" in fails("evaluate", "head", *HELD_OUT)
