"""The outputs of a bundle by name: its heads, weighted sums of these, and the cosine of zero-shot CLIP.

A bundle of one head gives `score` and the other values of OUTPUTS. If there are several outputs, each has a name by
which it can be requested. In the graphs the first head's values keep the names of OUTPUTS, so that a client that knows
only these reads the same as from a bundle of that head alone. The values of another output such as `aesthetic` are
`aesthetic` (its score), `aesthetic_uncertainty` and so on. Knows no graph and no session.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from embed.spec import InputError
from embed.wording import unknown_name
from runtime.scoring.manifest import OUTPUTS, BundleManifest

FIRST = "score"  # the first head can always be requested by this name
ALL = "all"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")


@dataclass(frozen=True)
class Output:
    """An output. `values` maps those of OUTPUTS that it has to their names in the graphs."""

    name: str
    inputs: tuple[str, ...]  # the vectors that it reads (see heads.models)
    values: Mapping[str, str]

    @property
    def columns(self) -> dict[str, str]:
        """The names of the values as columns of a table, which begin with the output's name, mapped to the graphs'
        names."""
        return {spelled(self.name, value): there for value, there in self.values.items()}


def spelled(name: str, value: str) -> str:
    """The name of a value of an output, if several outputs are given side by side."""
    if name == FIRST:
        return value
    return name if value == "score" else f"{name}_{value}"


@dataclass(frozen=True)
class Outputs:
    """All outputs of a bundle, with the first head's in front."""

    all: tuple[Output, ...]

    @classmethod
    def of(cls, manifest: BundleManifest, given: Collection[str]) -> "Outputs":
        """The outputs that the manifest names. `given` holds the names of the graph's outputs."""
        plain = {value: value for value in OUTPUTS if value in given}
        entries = manifest.get("outputs")
        if not entries:
            return cls((Output(FIRST, tuple(manifest["head"]["inputs"]), plain),))
        found = [Output(entries[0]["name"], tuple(entries[0]["inputs"]), plain)]
        for entry in entries[1:]:
            names = {value: spelled(entry["name"], value) for value in OUTPUTS}
            there = {value: name for value, name in names.items() if name in given}
            found.append(Output(entry["name"], tuple(entry["inputs"]), there))
        return cls(tuple(found))

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which outputs can be requested."""
        return tuple(output.name for output in self.all)

    def chosen(self, asked: Sequence[str] | None) -> tuple[Output, ...]:
        """The outputs of these names, each once, or by default the first head's. Raise InputError for an unknown name,
        or an empty list."""
        if asked is None:
            return self.all[:1]
        by_name = {output.name: output for output in self.all}
        found: dict[str, Output] = {}
        for name in asked:
            if name == ALL:
                found |= by_name
            elif name == FIRST:
                found[self.all[0].name] = self.all[0]
            elif name in by_name:
                found[name] = by_name[name]
            else:
                raise unknown_name("output", name[:100], [*by_name, ALL])
        if not found:
            raise InputError(f"the list of outputs is empty; wanted some of {', '.join(by_name)}, or {ALL}")
        return tuple(found.values())

    def columns(self, asked: Sequence[str] | None) -> dict[str, str]:
        """The graphs' names of the values of the requested outputs, by their names as columns of a table.

        By default they are those of the first head, with the names that a bundle of that head alone has.
        """
        if asked is None:
            return dict(self.all[0].values)
        return {column: value for output in self.chosen(asked) for column, value in output.columns.items()}

    def needs_prompt(self, asked: Sequence[str] | None) -> bool:
        """Whether a requested output depends on the prompt."""
        return any("text_embedding" in output.inputs for output in self.chosen(asked))


def require_names(names: Sequence[str]) -> None:
    """Raise InputError unless these names can be given to the outputs of a bundle together."""
    for name in names:
        if not NAME.fullmatch(name) or name in (ALL, *OUTPUTS):
            raise InputError(
                f"the output name {name!r}: wanted a letter, then letters, digits and _, 40 at most, not one of"
                f" {', '.join((ALL, *OUTPUTS))}, which have another meaning; give --names"
            )
    columns = [spelled(name, value) for name in names for value in OUTPUTS]
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise InputError(f"two outputs would be named {twice[0]}; give different names by --names")
