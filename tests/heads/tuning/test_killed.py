"""`python -m heads tune` killed by SIGKILL in a process of its own, and the same command again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import ROOT
from reward_tiny import write_head
from tuning_tiny import PROMPTS

from embed.backbones.backbone import Backbone
from heads.cli.main import main
from heads.config import HeadConfig

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
# Saves after every step, and is gone as it begins to save the third.
CHILD = """
import os, signal, sys
from heads.cli.main import main
from heads.training.checkpoint import Checkpoints

times = []
def due(self):
    times.append(0)
    if len(times) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return True

Checkpoints.due = due
main(sys.argv[1:])
"""


def test_the_same_command_goes_on_to_the_same_bytes(
    pipelines: dict[str, Path], backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, kind, seed in (("head", "cosine", 0), ("judge", "linear", 1)):
        write_head(tmp_path / name, backbone, HeadConfig(kind, 16), seed)  # type: ignore[arg-type]
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))

    def words(out: Path) -> list[str]:
        options = {"method": "refl", "steps": 4, "judge-every": 2, "batch-size": 2, "sampling-steps": 2, "rank": 2}
        options |= {"judge-pictures": 2, "learning-rate": "0.01", "device": "cpu", "guidance": 2}
        files = {"prompts": "prompts.txt", "reward": "head", "judge": "judge"}
        listed = [(name, str(value)) for name, value in options.items()]
        listed += [(name, str(tmp_path / file)) for name, file in files.items()] + [("out", str(out))]
        return ["tune", str(pipelines["sd1"]), *(word for name, value in listed for word in (f"--{name}", value))]

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *words(killed)], env=environment, capture_output=True, text=True
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    saved = torch.load(Path(f"{killed}.checkpoints") / "training.pt", weights_only=True)
    assert saved["step"] == 2 and not killed.exists()
    assert main(words(killed)) == 0 and main(words(whole)) == 0
    files = [folder / "pytorch_lora_weights.safetensors" for folder in (killed, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()
    first, second = (json.loads((folder / "tuning.json").read_text()) for folder in (killed, whole))
    assert first["history"] == second["history"] and len(first["history"]) == 3
    assert first["figures"] == second["figures"]
    assert not Path(f"{killed}.checkpoints").exists()
