"""The state of a training that can be killed anywhere: one file a stage, in a folder beside the head.

STAGE.pt    tensors, numbers and text, as torch writes them, and read without running anything; `identity` says which
            training they belong to
"""

import pickle
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from embed.files import write_with
from embed.spec import InputError

EVERY_S = 60.0  # at most so often, so that writing costs short trainings nothing


class Checkpoints:
    """Stages of one training. `identity` is anything that only the same training of the same data has."""

    def __init__(
        self,
        folder: Path,
        identity: str,
        every_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        prefix: str = "",
    ) -> None:
        self.folder, self.identity, self.clock, self.prefix = folder, identity, clock, prefix
        self.every_s = EVERY_S if every_s is None else every_s
        self._written = clock()

    def part(self, prefix: str) -> "Checkpoints":
        """The same folder for stages whose names begin with `prefix`."""
        return Checkpoints(self.folder, self.identity, self.every_s, self.clock, f"{self.prefix}{prefix}-")

    def load(self, stage: str) -> dict[str, Any] | None:
        """The stage's last state; None where nothing was saved. InputError for one of another training."""
        path = self._path(stage)
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            identity = state.pop("identity")
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, AttributeError):
            raise InputError(f"{path} is damaged; train again without --resume") from None
        if identity != self.identity:
            raise InputError(
                f"{path} is of another training (its options or its data were others); train again without --resume"
            )
        return state

    def due(self) -> bool:
        """Whether the last state was written long enough ago."""
        return self.clock() - self._written >= self.every_s

    def save(self, stage: str, state: Mapping[str, Any]) -> None:
        """Replace the stage's state, whole or not at all."""
        write_with(self._path(stage), lambda file: torch.save({**state, "identity": self.identity}, file))
        self._written = self.clock()

    def clear(self) -> None:
        """Remove all stages: the training has ended, or begins anew."""
        for path in self.folder.glob("*.pt"):
            path.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, stage: str) -> Path:
        return self.folder / f"{self.prefix}{stage}.pt"
