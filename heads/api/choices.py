"""The head and its options: what was given, what a file of options says, and what `auto` stands for."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from embed.options import Internal, Only, hints_of, metadata, require_value, types_of
from embed.spec import InputError
from embed.wording import unknown_name
from heads.config import PICKSCORE_PROMPTS, STEPPED, Choice, HeadConfig, Kind, Loss, SplitConfig, TrainConfig

if TYPE_CHECKING:
    from heads.data.comparisons import Labels
    from heads.data.features import Features

BLEND_LANDMARKS = 1024
# What values of a type may be, and how it is called. A number without a fraction is a number too.
TYPES: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    float: ((int, float), "a number"),
    int: ((int,), "a whole number"),
    str: ((str,), "a text"),
}


def known_options() -> dict[str, object]:
    """The annotation of every option of the head, the loss and the training, by name."""
    fields = hints_of(HeadConfig) | hints_of(TrainConfig)
    own = {name: hint for name, hint in fields.items() if not metadata(hint, Internal)}
    return {"head": Choice, "loss": str, **own}


def split_config(given: Mapping[str, Any], split: str | None) -> SplitConfig:
    """How rows are divided, of what is given of that and `split`. Raise InputError for what does not go together."""
    prompts = given.get("held_out_prompts")
    if split is None and prompts is not None:
        raise InputError("--held-out-prompts is of --split pickscore; give that too, or leave it out")
    if "test_fraction" in given and (split or "folds" in given):
        beside = f"--split {split}" if split else f"--folds {given['folds']}"
        share = given["test_fraction"]
        raise InputError(f"--test-fraction {share} would be ignored beside {beside}; leave one of them out")
    return SplitConfig(**{**given, "held_out_prompts": prompts or PICKSCORE_PROMPTS} if split else given)


def chosen_options(file: Path | None, given: Mapping[str, Any]) -> dict[str, object]:
    """The options given, or else in a file. Raise InputError for one that there is not, or that the head ignores."""
    options = {**(_read_options(file) if file else {}), **_checked(given, "given")}
    head = options.get("head", "auto")
    require_value("head", head, Choice)
    for name, readers in _readers(options).items():
        if head != "auto" and head not in readers:
            raise InputError(f"{name} is of {' and '.join(readers)} and does nothing for the head {head}; leave it out")
    return options


def _readers(options: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    """The heads that read each option that is not of all heads, by the option as the command line names it."""
    found = {}
    for name, hint in known_options().items():
        only = metadata(hint, Only)
        if only and name in options:
            found[_flag(name)] = only.values if only.option == "head" else STEPPED
    return found


def _flag(name: str) -> str:
    fields = HeadConfig.__dataclass_fields__ | TrainConfig.__dataclass_fields__
    return f"--{'no-' * (fields[name].default is True)}{name.replace('_', '-')}"


def chosen_head(
    options: Mapping[str, object],
    tables: "Sequence[Labels]",
    features: "Features",
    losses: Sequence[str],
    min_ratio: float | None,
) -> tuple[dict[str, object], list[str]]:
    """The options with the head that `auto` stands for, and a line that says which it is."""
    from heads.training.auto import READ_SOURCES, choose_head, reads_sources

    readers = _readers(options)
    sourced = reads_sources(options.get("reads"), tables, features)
    if (named := options.get("head", "auto")) != "auto":
        return {**options, **({"reads": "all"} if sourced and named in READ_SOURCES else {})}, []
    readers |= {"source pictures": READ_SOURCES} if sourced else {}
    if min_ratio is not None:
        readers["--min-ratio"] = tuple(kind for kind in get_args(Kind) if kind != "blend")  # which is fitted to rows
    choice = choose_head(tables, features, losses, readers)
    reads = "all" if sourced else choice.reads
    options = {**options, "head": choice.head, **({"reads": reads} if reads else {})}
    return options, [f"auto: {choice.head} ({choice.why})"]


def _read_options(file: Path) -> dict[str, object]:
    """The options that a file holds, by name."""
    try:
        options = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file} is no file of options ({error})") from None
    if not isinstance(options, dict):
        raise InputError(f"{file} is no file of options; wanted an object such as {{'head': 'fusion', 'hidden': 64}}")
    return _checked(options, f"in {file}")


def _checked(options: Mapping[str, object], where: str) -> dict[str, object]:
    """The options. Raise InputError for one that there is not, or of a type or value that it does not take."""
    known = known_options()
    for name, value in options.items():
        if name not in known:
            raise unknown_name(f"option {where}:", name, known)
        types = types_of(known[name])
        taken, called = next(TYPES[one] for one in TYPES if one in types)
        if type(value) not in taken and not (value is None and type(None) in types):
            raise InputError(f"{name} {where} is {value!r}; wanted {called}")
        require_value(f"{name} {where}", value, known[name])
    return dict(options)


def configs(options: Mapping[str, object], seed: int, features: "Features") -> tuple[HeadConfig, TrainConfig]:
    """The configurations of the head and of its training that the options name, theirs being the defaults."""
    shape = {name: value for name, value in options.items() if name in HeadConfig.__dataclass_fields__}
    training = {name: value for name, value in options.items() if name in TrainConfig.__dataclass_fields__}
    if options["head"] == "blend":
        shape.setdefault("landmarks", BLEND_LANDMARKS)
    of_head: Callable[..., HeadConfig] = HeadConfig
    of_training: Callable[..., TrainConfig] = TrainConfig
    head = of_head(options["head"], features.dim, features.pooled_dim, **shape)
    head = replace(head, landmarks=min(head.landmarks, max(1, len(features.image))))
    return head, of_training(seed=seed, **training)


def per_table(loss: str, weights: Sequence[float] | None, tables: int) -> tuple[list[str], list[float]]:
    """A loss and a weight for each table, the first's weight 1."""
    losses = loss.split(",")
    losses = losses * tables if len(losses) == 1 else losses
    numbers = list(weights or [1.0] * tables)
    for name, values in (("--loss", losses), ("--weights", numbers)):
        if len(values) != tables:
            raise InputError(f"{name} names {len(values)} and there are {tables} tables; give one for each --data")
    require_value("--loss", tuple(losses), Loss)
    if not all(0 < number < float("inf") for number in numbers):
        raise InputError(f"--weights is {','.join(map(str, numbers))}; every weight must be positive")
    return losses, [number / numbers[0] for number in numbers]
