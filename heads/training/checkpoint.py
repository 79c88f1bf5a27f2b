"""The state of a training that can be killed anywhere: one file for each of its parts, in a folder beside its result.

PART.pt    tensors, numbers and text, as torch writes them, and read without running anything; `identity` says which
           training they belong to
"""

import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from embed.files import write_with
from embed.spec import InputError

FORMAT = 3  # of the states; a training goes on only from its own
# At most so often, so that writing costs trainings little; less often in proportion where it takes longer than that.
EVERY_S, WRITING_S = 60.0, 3.0


class Checkpoints:
    """The file of one part of a training. `identity` is anything that only the same training of the same data has."""

    def __init__(
        self,
        folder: Path,
        identity: str,
        every_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        name: str = "training",
    ) -> None:
        self.folder, self.identity, self.clock, self.name = folder, identity, clock, name
        self.every_s = EVERY_S if every_s is None else every_s
        self._path, self._written, self._took_s = folder / f"{name}.pt", clock(), 0.0

    def part(self, name: str) -> "Checkpoints":
        """Those of a part of this training, in the same folder."""
        return Checkpoints(self.folder, self.identity, self.every_s, self.clock, f"{self.name}-{name}")

    def load(self) -> dict[str, object] | None:
        """The last state, on the CPU; None where nothing was saved. Raises InputError if the file is damaged, or of
        another training."""
        if not self._path.exists():
            return None
        anew = f"to train anew, remove {self.folder}"
        with open(self._path, "rb") as file:
            try:
                if damaged := zipfile.ZipFile(file).testzip():  # torch checks no sums
                    raise zipfile.BadZipFile(damaged)
                file.seek(0)
                saved: dict[str, object] = torch.load(file, map_location="cpu", weights_only=True)
                identity = saved.pop("identity")
            except Exception:  # what is damaged raises whatever it leads to
                raise InputError(f"{self._path} is damaged; {anew}") from None
        if identity != [FORMAT, self.identity]:
            changed = "its options, its data or plaudit's version were others"
            raise InputError(f"{self._path} is of another training ({changed}); {anew}")
        return saved

    def due(self) -> bool:
        """Whether the last state was written long enough ago."""
        return self.clock() - self._written >= self.every_s * max(1.0, self._took_s / WRITING_S)

    def save(self, state: Mapping[str, object]) -> None:
        """Replace the last state, whole or not at all."""
        start = self.clock()
        saved = {**state, "identity": [FORMAT, self.identity]}
        write_with(self._path, lambda file: torch.save(saved, file))
        self._written = self.clock()
        self._took_s = self._written - start

    def clear(self) -> None:
        """Remove the states of all parts: the training has ended, or begins anew."""
        for path in self.folder.glob("*.pt*"):  # what a killed process was writing included
            path.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
