"""`python -m heads tune`, from its files to its folder, and what it says of wrong ones."""

import json
import re
from pathlib import Path

import pytest
from reward_tiny import write_head
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tuning_tiny import PROMPTS

from embed.backbones.backbone import Backbone
from heads.cli.main import main
from heads.config import HeadConfig

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
    assert main(words(pipelines, folder, out, *more)) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["figures"].keys() == {"reward", "judge", "diversity", "sharpness"}
    assert re.search(r"a step takes 0\.0\d+ GB with 2 pictures at once", said.err)
    assert "--judge sees with the same backbone" in said.err
    manifest = json.loads((out / "tuning.json").read_text())
    assert manifest["reward"] == str(folder / "head") and len(manifest["history"]) == 3
    page = (out / "report.html").read_text()
    # The pictures of both looks small and in full, and of two pairs once more on top.
    assert page.count("<img") == 2 * 2 * 4 + 4 and "https://" not in page and result["verdict"][0] in page
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [event.step for event in events.Scalars("guards/judge")] == [0, 1, 2]
    assert len(events.Images("pictures")) == 3
    assert main(words(pipelines, folder, out, *more)) == 2  # without --overwrite
    assert "say --overwrite to replace it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--judge", "HEAD"], "--judge and --reward are both"),
        (["--reward", "nowhere"], "nowhere"),
        (["--prompts", "EMPTY"], "holds no prompt; wanted one a line"),
        (["--max-vram", "0.0001"], "a step with one picture takes"),
        (["--pretrain-data", "nowhere.parquet"], "nowhere.parquet"),
    ],
)
def test_wrong_files_are_said_in_one_line(
    pipelines: dict[str, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    more: list[str], said: str,
) -> None:  # fmt: skip
    (tmp_path / "empty.txt").write_text("\n")
    names = {"HEAD": str(folder / "head"), "EMPTY": str(tmp_path / "empty.txt")}
    assert main(words(pipelines, folder, tmp_path / "lora", *(names.get(word, word) for word in more))) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in last and not (tmp_path / "lora").exists()
