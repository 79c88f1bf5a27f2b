"""The commands: a table for people, one JSON document for machines, exit codes."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from export_tiny import write_pictures

from runtime.cli.main import main


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    return [str(path) for path in write_pictures(tmp_path / "pictures", 3)]


def test_table_has_the_preferred_first(bundle: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(bundle), "--prompt", "a cat", *pictures]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["image", "score", "uncertainty", "calibrated_score", "percentile"]
    scores = [float(row.split()[1]) for row in rows]
    assert scores == sorted(scores, reverse=True) and len(scores) == 3


def test_a_folder_stands_for_its_pictures_and_top_for_the_first_of_them(
    bundle: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(bundle), "--json", "--prompt", "a cat", *pictures]) == 0
    scores = {item["image"]: item["score"] for item in json.loads(capsys.readouterr().out)["scores"]}
    folder = Path(pictures[0]).parent
    (folder / ".hidden").touch()
    assert main(["score", str(bundle), "--json", "--prompt", "a cat", str(folder), "--top", "2"]) == 0
    found = {item["image"]: item["score"] for item in json.loads(capsys.readouterr().out)["scores"]}
    assert all(found[name] == pytest.approx(scores[name], abs=1e-6) for name in found)
    assert set(found) == set(sorted(scores, key=scores.__getitem__)[-2:])
    (empty := folder / "empty").mkdir()
    assert main(["score", str(bundle), "--prompt", "a cat", str(empty)]) == 2
    assert "has no pictures" in capsys.readouterr().err


def test_scores_are_written_as_a_table_or_a_sheet_by_the_name_of_the_file(
    bundle: Path, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [pictures[0], "/nonexistent.png", pictures[1]]
    command = ["score", str(bundle), "--prompt", "a cat", *images]
    for name, read in {"s.csv": csv.read_csv, "s.parquet": pq.read_table}.items():
        assert main([*command, "--json", "--out", str(tmp_path / name)]) == 0
        said = json.loads(capsys.readouterr().out.splitlines()[-1])["scores"]
        rows = read(tmp_path / name).to_pylist()
        assert [row["image"] for row in rows] == images
        assert [row["score"] for row in rows] == [item.get("score") for item in said]
        assert "No such file" in rows[1]["error"] and not rows[0]["error"]
    assert main([*command, "--out", str(tmp_path / "s.html"), "--sheet", str(tmp_path / "s.png")]) == 0
    page = (tmp_path / "s.html").read_text()
    assert page.count("data:image/webp;base64,") == 2 and "<h1>Scores for a cat</h1>" in page
    assert "<dt>score</dt>" in page and (tmp_path / "s.png").is_file()
    assert main([*command, "--out", str(tmp_path / "s.txt")]) == 2
    assert "s.txt is not a .csv, .parquet or .html file" in capsys.readouterr().err


def test_scores_of_a_table_may_be_one_file(
    bundle: Path, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new.csv").write_text("file,text\n" + "".join(f"{name},a cat\n" for name in pictures))
    command = ["score-table", str(bundle), "--data", str(tmp_path / "new.csv"), "--out", str(tmp_path / "s.csv")]
    assert main([*command, "--columns", "image=file,prompt=text"]) == 0
    assert csv.read_csv(tmp_path / "s.csv")["file"].to_pylist() == pictures
    assert not (tmp_path / "s.csv.parts").exists()
    assert main([*command, "--columns", "image=file"]) == 2
    assert "has no column 'prompt'" in capsys.readouterr().err and (tmp_path / "s.csv").is_file()


def test_json_keeps_the_order_and_tells_of_errors(
    bundle: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    images = [pictures[0], "/nonexistent.png", pictures[1]]
    assert main(["score", str(bundle), "--json", "--prompt", "a cat", *images]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [item["image"] for item in document["scores"]] == images
    assert ["score" in item for item in document["scores"]] == [True, False, True]
    assert "No such file" in document["scores"][1]["error"]
    assert "/nonexistent.png: cannot be read" in captured.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prompt", "a cat", "/nonexistent.png"], "none of 1 pictures can be scored"),
        (["/nonexistent.png"], "add --prompt TEXT"),
        (["--prompt", "a", "--precision", "fp8", "x.png"], "no graphs at fp8"),
        (["--prompt", "a", "--provider", "cuda", "x.png"], "has no CUDAExecutionProvider, only"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    bundle: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(bundle), *argv]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("python -m runtime: ") and message in last


def test_no_bundle_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(tmp_path), "--prompt", "a", "x.png"]) == 2
    assert "is not a bundle" in capsys.readouterr().err
    (tmp_path / "head.json").touch()
    assert main(["score", str(tmp_path), "--prompt", "a", "x.png"]) == 2
    said = capsys.readouterr().err
    assert "is a head, not a bundle" in said and f"`plaudit export onnx {tmp_path} --out BUNDLE` makes one" in said


def test_a_table_of_which_a_part_fails_is_scored_and_one_that_fails_whole_is_not(
    bundle: Path, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "scores")

    def score(*images: str) -> int:
        pq.write_table(pa.table({"image": images}), tmp_path / "t.parquet")
        table = str(tmp_path / "t.parquet")
        return main(["score-table", str(bundle), "--data", table, "--prompt", "a cat", "--out", out, "--json"])

    assert score("gone.png", "lost.png") == 2
    *_, last = capsys.readouterr().err.splitlines()
    said = "can be scored: gone.png: cannot be read: No such file or directory. Check the table and --images-root"
    assert last.endswith(f"t.parquet {said}")
    assert score("gone.png", *pictures) == 0  # the corrected table goes where the job failed
    said = capsys.readouterr()
    assert "warning: 1 of 4 rows have no score; their column `error` says why" in said.err
    assert json.loads(said.out) == {"out": out, "format": 3, "rows": 4, "errors": 1}
    assert main(["score-table", "nowhere", "--data", "nowhere", "--out", str(bundle)]) == 2
    assert f"{bundle} is a bundle, not a job of scores" in capsys.readouterr().err


def test_plan_and_best_of_n(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, templates = tmp_path / "prompts.txt", tmp_path / "templates.txt"
    prompts.write_text("a cat\na dog\n")
    templates.write_text("{prompt}\n{prompt}, close-up\n")
    options = ["best-of-n", str(bundle), "--prompts", str(prompts), "--templates", str(templates)]
    assert main([*options, "--plan", "2"]) == 0
    plan = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(plan) == 8 and plan[-1] == {"file": "0001/01_1", "seed": 1, "text": "a dog, close-up"}
    for folder in ("0000", "0001"):
        for path, name in zip(write_pictures(tmp_path / folder, 3), ("00_0", "00_1", "01_0"), strict=True):
            path.rename(path.with_stem(name))
    assert main([*options, "--images", str(tmp_path), "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["best"]
    assert [b["prompt"] for b in best] == ["a cat", "a dog"]
    assert main(options) == 2
