"""Log runs to MLflow: to its server by URI, or to a database such as sqlite:///runs.db."""

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from embed.arrays import UInt8s

EXPERIMENT = "plaudit"  # unless MLFLOW_EXPERIMENT_NAME is set
BATCH = 100  # the most parameters that a server takes at once; of metrics it takes a thousand
LONGEST = 500  # the longest value of a parameter that servers of all versions take


class MLflow:
    """A run of MLflow. It uses only the client, so that nothing else in this process is logged."""

    def __init__(self, uri: str | None, name: str) -> None:
        self._client = MlflowClient(uri)
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self._client.get_experiment_by_name(experiment)
        of = found.experiment_id if found else self._client.create_experiment(experiment)
        self._run: str = self._client.create_run(of, run_name=name).info.run_id

    def parameters(self, values: Mapping[str, str]) -> None:
        every = [Param(_name(name), value[:LONGEST]) for name, value in values.items()]
        for start in range(0, len(every), BATCH):
            self._client.log_batch(self._run, params=every[start : start + BATCH])

    def record(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._metrics({f"{stage}/{name}": value for name, value in values.items()}, step)

    def pictures(self, name: str, step: int, pixels: UInt8s) -> None:
        self._client.log_image(self._run, np.concatenate(list(pixels), axis=1), f"{name}/step-{step:06d}.png")

    def figures(self, values: Mapping[str, float]) -> None:
        self._metrics(values, 0)

    def file(self, path: Path) -> None:
        self._client.log_artifact(self._run, str(path))

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")

    def _metrics(self, values: Mapping[str, float], step: int) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [Metric(_name(name), value, now_ms, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)


def _name(name: str) -> str:
    """A name with only the characters that MLflow allows."""
    return re.sub(r"[^\w\-. /]", "_", name)
