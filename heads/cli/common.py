"""Functions that the commands of heads share."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from embed.cli.console import reading_words, suggest
from embed.files import require_kind
from embed.spec import InputError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from embed.config import TableConfig
    from embed.records.sources import TableSource
    from heads.api.options import LabelOptions
    from heads.training.folds import Observer


@contextmanager
def tensorboard(folder: Path | None) -> "Iterator[Observer | None]":
    """A context that gives an observer which writes TensorBoard files, one run for each stage, or None without a
    folder."""
    with ExitStack() as stack:
        writers: dict[str, SummaryWriter] = {}

        def write(stage: str, step: int, record: Mapping[str, float]) -> None:
            from torch.utils.tensorboard import SummaryWriter

            if stage not in writers:
                writers[stage] = stack.enter_context(SummaryWriter(f"{folder}/{stage}"))
            for name, value in record.items():
                if value == value:  # skips NaN, the accuracy without validation rows
                    writers[stage].add_scalar(name, value, step)

        yield write if folder else None


def require_inputs(reading: "LabelOptions", tables: "Sequence[TableSource]", cache: str, *heads: str | Path) -> None:
    """Raise InputError for a wrong path or a table that cannot be opened, before torch is imported to use them."""
    for head in heads:
        require_kind(head, "head")
    require_kind(cache, "cache")
    for table in tables:
        reading.read(table)


def suggest_uses(head: Path, cache: str, data: str, reading: "TableConfig | None" = None) -> None:
    """Suggest what to do next with a head."""
    words = reading_words(reading) if reading else []
    suggest(
        ["heads", "evaluate", head, "--cache", cache, "--data", data, *words, "--report", "report.html"],
        ["export", "onnx", head, "--out", head.with_name("bundle")],
    )


def numbers_of(option: str, text: str | None, count: int, of: str) -> list[float]:
    """The positive numbers of a comma-separated option, or ones if it is not given. Raise InputError if a part is not a
    positive number, or if there are not `count` of them. `of` names the things that they weigh."""
    try:
        numbers = [float(number) for number in text.split(",")] if text else [1.0] * count
    except ValueError:
        raise InputError(f"{option} is {text!r}; wanted numbers and commas, such as 1,0.5") from None
    if len(numbers) != count:
        raise InputError(f"{option} names {len(numbers)} and there are {count} {of}")
    if not all(0 < number < float("inf") for number in numbers):
        raise InputError(f"{option} is {text!r}; every weight must be positive")
    return numbers
