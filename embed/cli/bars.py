"""How a growing cache shows itself to the person who waits for it."""

import sys
from typing import Any

from embed import console
from embed.console import NOUN
from embed.engines.choice import Engine
from embed.jobs.build import Reporter


class Bars(Reporter):
    """Progress bars and one line about each engine, on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None

    def engine(self, side: str, engine: Engine, per_s: float | None) -> None:
        rate = f", {per_s:.0f} a second" if per_s else ""
        proof = f", cosine to fp32 at least {engine.cosine_min:.6f} on {engine.rows} of yours" if engine.rows else ""
        print(f"{NOUN[side]}: {engine}{rate}{proof}", file=sys.stderr)

    def start(self, side: str, total: int | None) -> None:
        self._bar = console.progress(total, NOUN[side], NOUN[side])

    def step(self, records: int, failures: int) -> None:
        self._bar.set_postfix(failures=failures, refresh=False)
        self._bar.update(records)

    def end(self) -> None:
        self._bar.close()
