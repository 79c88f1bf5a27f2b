"""The commands of `python -m heads`."""

from collections.abc import Sequence

from embed.cli.app import run

ABOUT = "Train a head on a cache, and say honestly how good it is."
COMMANDS = {
    "train": "heads.cli.train:train",
    "sweep": "heads.cli.sweep:sweep",
    "evaluate": "heads.cli.evaluate:evaluate",
    "compare": "heads.cli.evaluate:compare",
    "calibrate": "heads.cli.calibrate:calibrate",
    "generate": "export.cli.generate:generate",  # it lives in export because it may score by bundles
    "generators": "heads.cli.generators:generators",
    "import": "heads.cli.published:import_published",
    "reward": "heads.cli.reward:reward",
    "project": "heads.cli.published:project",
    "tune": "heads.cli.tune:tune",
    "unfreeze": "heads.cli.unfreeze:unfreeze",
    "export-checkpoint": "heads.cli.unfreeze:export_checkpoint",
    "finetune": "heads.cli.papers:finetune",
    "validate": "heads.cli.papers:validate",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    return run("heads", ABOUT, COMMANDS, argv)
