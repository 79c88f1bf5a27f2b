"""Turn pixels and prompts into unit vectors with the engine that was chosen for each side."""

from collections.abc import Mapping, Sequence

from embed.arrays import Float32s, UInt8s
from embed.engines.choice import Engine
from embed.engines.runners import Inputs, Run
from embed.engines.towers import Towers
from embed.spec import Side


class TowerEncoder:
    """Both towers of a backbone. Each is loaded when it is first used."""

    def __init__(
        self, towers: Towers, engines: Mapping[Side, Engine], batch_size: int, threads: int | None = None
    ) -> None:
        self.batch_size = batch_size
        self.features = towers.features
        self._towers = towers
        self._engines = engines
        self._threads = threads
        self._runs: dict[Side, Run] = {}

    def images(self, pixels: UInt8s) -> list[Float32s]:
        """Return, for each of `features`, (n, d) float32 unit vectors of pixels uint8 (n, h, w, 3)."""
        return self._run("images", pixels)

    def prompts(self, prompts: Sequence[str]) -> tuple[Float32s, int]:
        """Return (n, d) float32 unit vectors, and how many prompts were cut to the context length."""
        tokens, truncated = self._towers.tokenize(prompts)
        return self._run("prompts", tokens)[0], truncated

    def _run(self, side: Side, inputs: Inputs) -> list[Float32s]:
        if side not in self._runs:
            self._runs[side] = self._towers.runner(side, self._engines[side], self._threads)
        return self._runs[side](inputs)
