"""Choose the head and its options from what was given, from a file of options, and from `auto`."""

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
# The Python types that a value of each option type may have, and the type's name in messages. An int is a number too.
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
    """The SplitConfig made of the given options and of `split`. Raise InputError for options that exclude each
    other."""
    prompts = given.get("held_out_prompts")
    if split is None and prompts is not None:
        raise InputError("--held-out-prompts needs --split pickscore; add that, or leave --held-out-prompts out")
    if "test_fraction" in given and (split or "folds" in given):
        beside = f"--split {split}" if split else f"--folds {given['folds']}"
        share = given["test_fraction"]
        raise InputError(f"--test-fraction {share} has no effect together with {beside}; leave one of them out")
    return SplitConfig(**{**given, "held_out_prompts": prompts or PICKSCORE_PROMPTS} if split else given)


def chosen_options(file: Path | None, given: Mapping[str, Any]) -> dict[str, object]:
    """The options given, with those of the file for the rest. Raise InputError for an unknown option, and for one that
    the head ignores."""
    options = {**(_read_options(file) if file else {}), **_checked(given, "given")}
    head = options.get("head", "auto")
    require_value("head", head, Choice)
    for name, readers in _readers(options).items():
        if head != "auto" and head not in readers:
            raise InputError(
                f"{name} is for {' and '.join(readers)} and does nothing for the head {head}; leave it out"
            )
    return options


def _readers(options: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    """For each option that only some heads read, those heads. Keys are the options' names on the command line."""
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
    """The options with `auto` replaced by the head it stands for, and a line that says which head that is."""
    from heads.training.auto import READ_SOURCES, choose_head, reads_sources

    readers = _readers(options)
    sourced = reads_sources(options.get("reads"), tables, features)
    if (named := options.get("head", "auto")) != "auto":
        return {**options, **({"reads": "all"} if sourced and named in READ_SOURCES else {})}, []
    readers |= {"source pictures": READ_SOURCES} if sourced else {}
    if min_ratio is not None:
        readers["--min-ratio"] = tuple(kind for kind in get_args(Kind) if kind != "blend")  # blend learns from rows
    choice = choose_head(tables, features, losses, readers)
    reads = "all" if sourced else choice.reads
    options = {**options, "head": choice.head, **({"reads": reads} if reads else {})}
    return options, [f"auto: {choice.head} ({choice.why})"]


def _read_options(file: Path) -> dict[str, object]:
    """The options that a file holds, by name."""
    try:
        options = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file} cannot be read as a file of options ({error}); wanted a JSON object") from None
    if not isinstance(options, dict):
        raise InputError(f"{file} holds no object of options; wanted one such as {{'head': 'fusion', 'hidden': 64}}")
    return _checked(options, f"in {file}")


def _checked(options: Mapping[str, object], where: str) -> dict[str, object]:
    """The options. Raise InputError for an unknown option, or one whose type or value is wrong."""
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
    """The configurations of the head and of its training that the options name, with defaults for the rest."""
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
    """The losses and the weights, one for each table. The weights are divided by the first, which becomes 1."""
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
