"""Log runs to Weights & Biases. With WANDB_MODE=offline they stay in ./wandb, from where `wandb sync` sends them."""

import os
from collections.abc import Mapping
from pathlib import Path

import wandb

from embed.arrays import UInt8s

PROJECT = "plaudit"  # unless --tracker wandb:PROJECT or WANDB_PROJECT is given
# Settings against what wandb sends about this machine by default. Those named x_... may change in later versions.
UNASKED = {
    **dict.fromkeys(
        ("disable_code", "disable_git", "x_disable_meta", "x_disable_machine_info", "x_disable_stats"), True
    ),
    "x_save_requirements": False,
}


class WeightsAndBiases:
    """A run of Weights & Biases. It gets only what is logged here, not the text of the terminal and not the code."""

    def __init__(self, project: str | None, name: str) -> None:
        quiet = {name: value for name, value in UNASKED.items() if name in wandb.Settings.model_fields}
        settings = wandb.Settings(console="off", silent=True, **quiet)
        project = project or os.environ.get("WANDB_PROJECT") or PROJECT
        self._run, self._stages = wandb.init(project=project, name=name, settings=settings), set[str]()

    def parameters(self, values: Mapping[str, str]) -> None:
        self._run.config.update(dict(values))

    def record(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if stage not in self._stages:
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._stages.add(stage)
        self._run.log({f"{stage}/{name}": value for name, value in values.items()} | {f"{stage}/step": step})

    def pictures(self, name: str, step: int, pixels: UInt8s) -> None:
        self._run.log({name: [wandb.Image(one) for one in pixels]})

    def figures(self, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def file(self, path: Path) -> None:
        artifact = wandb.Artifact(f"{self._run.id}-{path.stem}", "result")
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
