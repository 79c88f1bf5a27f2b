"""A progress that remembers what it is told, for tests of long work."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from embed.progress import Step


@dataclass
class Work:
    total: int | None
    unit: str
    steps: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ended: bool = False

    def whole(self) -> bool:
        return self.ended and sum(self.steps) == self.total


class Told:
    """A `Progress`; `works` by their description, the last of that name."""

    def __init__(self) -> None:
        self.works: dict[str, Work] = {}

    @contextmanager
    def __call__(self, total: int | None, unit: str, description: str, /) -> Iterator[Step]:
        work = self.works[description] = Work(total, unit)

        def step(done: int = 1, note: str = "", /) -> None:
            work.steps.append(done)
            work.notes.append(note)

        try:
            yield step
        finally:
            work.ended = True
