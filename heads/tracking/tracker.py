"""Send a run's parameters, curves and figures to a tracker of experiments, in addition to its own folder.

A tracker is opened before training, so that one that cannot be reached fails at once. A later failure is logged as one
warning, and the training continues.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from embed.arrays import UInt8s
from embed.spec import InputError

logger = logging.getLogger(__name__)

KINDS = {
    "tensorboard": "tensorboard:FOLDER",
    "mlflow": "mlflow or mlflow:URI, such as mlflow:http://localhost:5000 or mlflow:sqlite:///runs.db",
    "wandb": "wandb or wandb:PROJECT",
}
Observer = Callable[[str, int, dict[str, float]], None]


class Backend(Protocol):
    """The functions that every kind of tracker has. The parts of a figure's name are separated by slashes."""

    def parameters(self, values: Mapping[str, str]) -> None: ...

    def record(self, stage: str, step: int, values: Mapping[str, float]) -> None: ...

    def pictures(self, name: str, step: int, pixels: UInt8s) -> None:
        """Pictures (n, h, w, 3) of a step."""

    def figures(self, values: Mapping[str, float]) -> None: ...

    def file(self, path: Path) -> None: ...

    def close(self, failed: bool) -> None: ...


class Tracker:
    """One run at a tracker. Without a backend it does nothing."""

    def __init__(self, backend: Backend | None = None) -> None:
        self._backend, self._warned = backend, False

    def parameters(self, values: Mapping[str, object]) -> None:
        """Send the options of the run. Nested options are named OUTER/INNER."""
        self._tell(lambda to: to.parameters({name: str(value) for name, value in _flat(values).items()}))

    def record(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Send what was measured in an epoch or a step of a stage."""
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        self._tell(lambda to: to.record(stage, step, finite))

    def beside(self, other: Observer | None, prefix: str) -> Observer:
        """An observer that records the stages of a part of the run, and also calls another observer."""

        def observe(stage: str, step: int, values: dict[str, float]) -> None:
            if other:
                other(stage, step, values)
            self.record(f"{prefix}/{stage}", step, values)

        return observe

    def pictures(self, name: str, step: int, pixels: UInt8s) -> None:
        """Send pictures (n, h, w, 3) that were made during the run."""
        self._tell(lambda to: to.pictures(name, step, pixels))

    def figures(self, document: Mapping[str, object]) -> None:
        """Send the results of the run: every number of a document, and intervals as NAME, NAME/low and NAME/high."""
        numbers = {
            name.removesuffix("/value"): float(value)
            for name, value in _flat(document).items()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        }
        self._tell(lambda to: to.figures(numbers))

    def files(self, folder: Path, *names: str) -> None:
        """Send those of the named files of the run that exist."""
        for name in names:
            if (folder / name).is_file():
                self._tell(lambda to, path=folder / name: to.file(path))  # type: ignore[misc]

    def close(self, failed: bool) -> None:
        """End the run."""
        self._tell(lambda to: to.close(failed))

    def _tell(self, what: Callable[[Backend], None]) -> None:
        if self._backend is None:
            return
        try:
            what(self._backend)
        except Exception as error:
            if not self._warned:
                logger.warning(f"the tracker failed and may lack a part of this run: {_first_line(error)}")
            self._warned = True


@contextmanager
def tracking(where: str | None, name: str) -> Iterator[Tracker]:
    """Open a run of this name at the tracker `where` (KIND or KIND:PLACE) and close it at the end. None means no
    tracker.

    Raise InputError if it is not a tracker, is not installed or cannot be reached.
    """
    tracker = Tracker(_open(where, name) if where else None)
    try:
        yield tracker
    except BaseException:
        tracker.close(failed=True)
        raise
    tracker.close(failed=False)


def require_tracker(where: str | None) -> None:
    """Raise InputError unless this names a tracker or is None."""
    if where is not None:
        kind, _, place = where.partition(":")
        if kind not in KINDS or (kind == "tensorboard" and not place):
            raise InputError(f"--tracker is {where!r}; wanted {', '.join(KINDS.values())}")


def _open(where: str, name: str) -> Backend:
    require_tracker(where)
    kind, _, place = where.partition(":")
    try:
        if kind == "tensorboard":
            from heads.tracking.tensorboard_files import TensorBoard

            return TensorBoard(place)
        if kind == "mlflow":
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # no usage statistics to MLflow's makers
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # give up after about 15 s, not four minutes
            from heads.tracking.mlflow_runs import MLflow

            return MLflow(place or None, name)
        from heads.tracking.wandb_runs import WeightsAndBiases

        return WeightsAndBiases(place or None, name)
    except ImportError as error:
        extra = "train" if kind == "tensorboard" else kind
        raise InputError(
            f"--tracker {kind} needs {error.name}, which is not installed; run: pip install 'plaudit[{extra}]'"
        ) from None
    except Exception as error:
        raise InputError(f"--tracker {where}: cannot open a run there ({_first_line(error)})") from None


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}/")
        elif value is not None:
            found[f"{prefix}{name}"] = value
    return found


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
