"""Save the state of a training so that it can be killed at any time: one file for each part, in a folder beside its
result.

PART.pt    tensors, numbers and text as torch writes them; reading runs no code. `identity` says which training they
belong to
"""

import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from embed.files import write_with
from embed.spec import InputError

FORMAT = 3  # version of the states; older states are refused
# The shortest time between two states, and the time of writing above which it grows in proportion, so that writing
# costs little.
EVERY_S, WRITING_S = 60.0, 3.0


class Checkpoints:
    """The file of one part of a training. `identity` is anything that is equal only for the same training on the same
    data."""

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
        """The checkpoints of a part of this training, in the same folder."""
        return Checkpoints(self.folder, self.identity, self.every_s, self.clock, f"{self.name}-{name}")

    def load(self) -> dict[str, object] | None:
        """The last state, on the CPU, or None if none was saved. Raise InputError if the file is damaged or of another
        training."""
        if not self._path.exists():
            return None
        anew = f"to start again, remove {self.folder}"
        with open(self._path, "rb") as file:
            try:
                if damaged := zipfile.ZipFile(file).testzip():  # torch does not verify checksums
                    raise zipfile.BadZipFile(damaged)
                file.seek(0)
                saved: dict[str, object] = torch.load(file, map_location="cpu", weights_only=True)
                identity = saved.pop("identity")
            except Exception:  # a damaged file can raise anything
                raise InputError(f"{self._path} is damaged; {anew}") from None
        if identity != [FORMAT, self.identity]:
            changed = "with other options, other data or another version of plaudit"
            raise InputError(f"{self._path} belongs to another training, {changed}; {anew}")
        return saved

    def due(self) -> bool:
        """Whether it is time to write the next state."""
        return self.clock() - self._written >= self.every_s * max(1.0, self._took_s / WRITING_S)

    def save(self, state: Mapping[str, object]) -> None:
        """Replace the last state atomically."""
        start = self.clock()
        saved = {**state, "identity": [FORMAT, self.identity]}
        write_with(self._path, lambda file: torch.save(saved, file))
        self._written = self.clock()
        self._took_s = self._written - start

    def clear(self) -> None:
        """Remove the states of all parts, at the end of the training or to start again."""
        for path in self.folder.glob("*.pt*"):  # also temporary files of a killed process
            path.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
