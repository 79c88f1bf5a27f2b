"""What the job calls: pixels and prompts to unit vectors, through the engines that were chosen for the two sides."""

from collections.abc import Mapping, Sequence

import numpy as np

from embed.engines.choice import Engine
from embed.engines.runners import Run
from embed.engines.towers import Towers


class TowerEncoder:
    """Both towers of a backbone; each is loaded when it is first used."""

    def __init__(
        self, towers: Towers, engines: Mapping[str, Engine], batch_size: int, threads: int | None = None
    ) -> None:
        self.batch_size = batch_size
        self.features = towers.features
        self._towers = towers
        self._engines = engines
        self._threads = threads
        self._runs: dict[str, Run] = {}

    def images(self, pixels: np.ndarray) -> list[np.ndarray]:
        """(n, d) float32 unit vectors for each of `features`, from uint8 (n, h, w, 3)."""
        return self._run("images", pixels)

    def prompts(self, prompts: Sequence[str]) -> tuple[np.ndarray, int]:
        """(n, d) float32 unit vectors, and how many prompts were cut to the context length."""
        tokens, truncated = self._towers.tokenize(prompts)
        return self._run("prompts", tokens)[0], truncated

    def _run(self, side: str, inputs: np.ndarray) -> list[np.ndarray]:
        if side not in self._runs:
            self._runs[side] = self._towers.runner(side, self._engines[side], self._threads)
        return self._runs[side](inputs)
