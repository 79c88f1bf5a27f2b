"""Choose a head for a table if none is given, by the number of rows, the prompts and the given options. Nothing is
tried."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from embed.spec import InputError
from heads.config import Kind
from heads.data.comparisons import Labels
from heads.data.features import Features
from heads.training.objectives import OBJECTIVES

BLEND_ROWS = 20_000  # up to so many rows a blend is fitted in minutes and orders better than a network
READ_IMAGE = ("blend", "fusion", "mlp", "kernel")  # heads whose option reads can leave prompts out

READ_SOURCES = ("fusion", "kernel", "mlp")  # heads that can read source pictures


def reads_all(tables: Sequence[Labels]) -> bool:
    """Whether every row has a prompt, so that a head can read prompts."""
    return all(len(labels.items) == 0 or int(labels.prompt[labels.items].min()) >= 0 for labels in tables)


def reads_sources(asked: object, tables: Sequence[Labels], features: Features) -> bool:
    """Whether a head that can read source pictures does: if `asked` is "all", or if it is None, some rows have sources
    and every row has a prompt. Raise InputError if `asked` is "all" and there are no source pictures."""
    if asked == "all" and features.source is None:
        raise InputError("--reads all reads source pictures, but no table has a column source_path; leave it out")
    return asked == "all" or (asked is None and features.source is not None and reads_all(tables))


@dataclass(frozen=True)
class Choice:
    """A head, its option `reads` if that is not the default, and the reason in words."""

    head: Kind
    reads: str | None
    why: str


def choose_head(
    tables: Sequence[Labels], features: Features, losses: Sequence[str], readers: Mapping[str, Collection[str]]
) -> Choice:
    """The first head that suits the rows and reads all given options. `readers` names the heads that read each option.

    Raise InputError if no head reads them all.
    """
    rows = sum(len(labels) for labels in tables)
    prompts = reads_all(tables)
    embeds = sorted({loss for loss in losses if OBJECTIVES[loss].embeds})
    few = rows <= BLEND_ROWS
    order: list[Kind] = ["blend", "fusion"] if few else ["fusion", "blend"]
    order += ["kernel", "linear", "mlp", "cosine"]
    why = f"{rows:,} rows are " + ("few: ridge regressions and kernels, averaged" if few else "many: a network")
    if embeds:
        order, why = ["cosine"], f"the loss {embeds[0]} needs it"
    fitting = [head for head in order if all(head in heads for heads in readers.values())]
    if not fitting:
        raise InputError(f"no head reads {', '.join(readers)} together; leave some of them out")
    head = fitting[0]
    if head != order[0]:
        why = f"it reads {' and '.join(name for name, heads in readers.items() if order[0] not in heads)}"
    reads = "image" if not prompts and head in READ_IMAGE else None
    return Choice(head, reads, why + ("; some rows have no prompt, so it reads pictures alone" if reads else ""))
