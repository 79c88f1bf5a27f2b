"""`python -m heads tune`, from its files to its folder, and what it says of wrong ones."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from reward_tiny import write_head
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tuning_tiny import PROMPTS

from embed.backbones.backbone import Backbone
from heads.cli.main import main
from heads.config import HeadConfig
from heads.tuning.train import Run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SMALL = ["--steps", "2", "--judge-every", "1", "--batch-size", "2", "--sampling-steps", "2", "--judge-pictures", "2"]


@pytest.fixture(scope="module")
def folder(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("command")
    write_head(path / "head", backbone, HeadConfig("cosine", 16))
    write_head(path / "judge", backbone, HeadConfig("linear", 16))
    (path / "prompts.txt").write_text("\n".join(PROMPTS))
    return path


def words(pipelines: dict[str, Path], folder: Path, out: Path, *more: str, kind: str = "pixel") -> list[str]:
    files = ["--prompts", str(folder / "prompts.txt"), "--reward", str(folder / "head"), "--out", str(out)]
    return ["tune", str(pipelines[kind]), "--method", "draft", *files, *SMALL, "--device", "cpu", *more]


def test_from_files_to_a_folder(
    pipelines: dict[str, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, judge = tmp_path / "lora", str(folder / "judge")
    more = ["--judge", judge, "--tensorboard", str(tmp_path / "tb"), "--json", "--max-vram", "0.05"]
    more += ["--tracker", f"tensorboard:{tmp_path / 'runs'}"]
    assert main(words(pipelines, folder, out, *more)) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["figures"].keys() == {"reward", "judge", "diversity", "variety", "sharpness"}
    assert re.search(r"a step takes 0\.0\d+ GB with 2 pictures at once", said.err)
    assert "--judge has the same backbone" in said.err
    manifest = json.loads((out / "tuning.json").read_text())
    assert manifest["reward"] == str(folder / "head") and len(manifest["history"]) == 3
    page = (out / "report.html").read_text()
    # The pictures of both looks small and in full, and of two pairs once more on top.
    assert page.count("<img") == 2 * 2 * 4 + 4 and "https://" not in page and result["verdict"][0] in page
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [event.step for event in events.Scalars("guards/judge")] == [0, 1, 2]
    assert len(events.Images("pictures")) == 3
    tracked, curves = (EventAccumulator(str(tmp_path / path)).Reload() for path in ("runs", "runs/guards"))
    assert [event.value for event in curves.Scalars("judge")] == [
        event.value for event in events.Scalars("guards/judge")
    ]
    assert tracked.Scalars("result/judge/after")[0].value == pytest.approx(result["figures"]["judge"]["after"])
    assert len(tracked.Images("pictures")) == 3
    assert main(words(pipelines, folder, out, *more)) == 2  # without --overwrite
    assert "say --overwrite to replace it" in capsys.readouterr().err


def test_several_rewards_are_added_on_one_scale_and_reported_each(
    pipelines: dict[str, Path], folder: Path, backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_head(tmp_path / "other", backbone, HeadConfig("fusion", 16, 32, hidden=8), seed=5)
    out, other = tmp_path / "lora", str(tmp_path / "other")
    assert main(words(pipelines, folder, out, "--reward", other, "--weights", "0.7,0.3", "--no-guards", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["figures"]) == ["reward", "reward head", "reward other", "diversity", "variety", "sharpness"]
    manifest = json.loads((out / "tuning.json").read_text())
    assert manifest["reward"] == f"{folder / 'head'}, {other}" and manifest["weights"] == [0.7, 0.3]
    assert "| reward other |" in (out / "README.md").read_text() and "reward other" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--judge", "HEAD"], "--judge and --reward are both"),
        (["--reward", "nowhere"], "nowhere"),
        (["--reward", "HEAD"], "--reward names a head twice"),
        (
            ["--reward", "JUDGE", "--weights", "1"],
            "--weights names 1 and there are 2 heads; give one for each --reward",
        ),
        (["--reward", "JUDGE", "--weights", "1,-2"], "every weight must be positive"),
        (["--prompts", "EMPTY"], "holds no prompt; wanted one a line"),
        (["--prompts", "LATIN"], "is not a UTF-8 text (byte 3)"),
        (["--tensorboard", "LATIN"], "is a file; wanted a folder for --tensorboard"),
        (["--out", "LATIN/lora"], "LATIN is a file; choose another place"),
        (["--max-vram", "0.0001"], "a step with one picture takes"),
        (["--pretrain-data", "nowhere.parquet"], "nowhere.parquet"),
    ],
)
def test_wrong_files_are_said_in_one_line(
    pipelines: dict[str, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    more: list[str], said: str,
) -> None:  # fmt: skip
    (tmp_path / "empty.txt").write_text("\n")
    names = {"HEAD": str(folder / "head"), "JUDGE": str(folder / "judge"), "EMPTY": str(tmp_path / "empty.txt")}
    (tmp_path / "LATIN").write_bytes(b"caf\xe9\n")
    names |= {"LATIN": str(tmp_path / "LATIN"), "LATIN/lora": str(tmp_path / "LATIN" / "lora")}
    assert main(words(pipelines, folder, tmp_path / "lora", *(names.get(word, word) for word in more))) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in last and not (tmp_path / "lora").exists()


@pytest.mark.parametrize(
    ("kind", "part", "said"),
    [
        ("sd1", "unet", "cannot be loaded: Error no file named config.json"),
        ("sd3", "scheduler", "cannot be loaded: Error no file named scheduler_config.json"),
        ("pixel", "unet", "cannot be loaded: Error no file named config.json"),
        ("pixel", "scheduler", "cannot be loaded: Error no file named scheduler_config.json"),
        ("pixel", "", "there is no folder"),
    ],
)
def test_a_pipeline_that_lacks_a_part_is_said_in_one_line(
    pipelines: dict[str, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    kind: str, part: str, said: str,
) -> None:  # fmt: skip
    copy = tmp_path / "pipeline"
    shutil.copytree(pipelines[kind], copy)
    shutil.rmtree(copy / part)
    given = words(pipelines | {kind: copy}, folder, tmp_path / "lora", "--judge", str(folder / "judge"), kind=kind)
    assert main(given) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in shown if not line.startswith("warning: ")]
    assert len(errors) == 1 and said in errors[0] and str(copy) in errors[0]


def test_out_of_memory_is_said_in_one_line_and_the_same_command_goes_on(
    pipelines: dict[str, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    real, out = Run.score, tmp_path / "lora"

    def score(run: Run, pixels: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        if run.loop.step == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(run, pixels, prompts)

    given = words(pipelines, folder, out, "--judge", str(folder / "judge"))
    with monkeypatch.context() as patch:
        patch.setattr(Run, "score", score)
        assert main(given) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "memory ran out" in said and "the 1 steps so far are in" in said and not out.exists()
    assert main([*given, "--accumulate", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2 and not Path(f"{out}.checkpoints").exists()
