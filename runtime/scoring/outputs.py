"""The outputs of a bundle by name: its heads, weighted sums of these, and the cosine of zero-shot CLIP.

A bundle of one head gives `score` and what else OUTPUTS names. Of several outputs each has a name of its own, by which
it is asked for. In the graphs the first head's values keep the names of OUTPUTS, so that whoever knows no other reads
what a bundle of that head alone would give; those of another output, say `aesthetic`, are `aesthetic` (its score),
`aesthetic_uncertainty` and so on. Knows no graph and no session.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from embed.spec import InputError
from embed.wording import unknown_name
from runtime.scoring.manifest import OUTPUTS, BundleManifest

FIRST = "score"  # a name by which the first head can always be asked for
ALL = "all"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")


@dataclass(frozen=True)
class Output:
    """What one name stands for. `values` has for each of OUTPUTS that there is what the graphs call it."""

    name: str
    inputs: tuple[str, ...]  # the vectors that it depends on (see heads.models)
    values: Mapping[str, str]

    @property
    def columns(self) -> dict[str, str]:
        """The values as columns of a table, by the name of each, which begins with the output's own."""
        return {spelled(self.name, value): there for value, there in self.values.items()}


def spelled(name: str, value: str) -> str:
    """What a value of an output is called where the values of several stand side by side."""
    if name == FIRST:
        return value
    return name if value == "score" else f"{name}_{value}"


@dataclass(frozen=True)
class Outputs:
    """All outputs of a bundle, the first head's before the others."""

    all: tuple[Output, ...]

    @classmethod
    def of(cls, manifest: BundleManifest, given: Collection[str]) -> "Outputs":
        """Those that the manifest names; `given` is what the head's graph gives."""
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
        """By which outputs are asked for."""
        return tuple(output.name for output in self.all)

    def chosen(self, asked: Sequence[str] | None) -> tuple[Output, ...]:
        """The outputs of these names, each once, by default the first head's; raise InputError for a name that is none,
        or where there is no name."""
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
            raise InputError(f"no output is named; wanted some of {', '.join(by_name)}, or {ALL}")
        return tuple(found.values())

    def columns(self, asked: Sequence[str] | None) -> dict[str, str]:
        """What the graphs call the values of the outputs that are asked for, by names for a table's columns.

        By default the first head's, as a bundle of that head alone calls them.
        """
        if asked is None:
            return dict(self.all[0].values)
        return {column: value for output in self.chosen(asked) for column, value in output.columns.items()}

    def needs_prompt(self, asked: Sequence[str] | None) -> bool:
        """Whether an output that is asked for depends on the prompt."""
        return any("text_embedding" in output.inputs for output in self.chosen(asked))


def require_names(names: Sequence[str]) -> None:
    """Raise InputError unless these can be the names of a bundle's outputs side by side."""
    for name in names:
        if not NAME.fullmatch(name) or name in (ALL, *OUTPUTS):
            raise InputError(
                f"an output's name is {name!r}; wanted a letter and then letters, digits and _, at most 40, and none of"
                f" {', '.join((ALL, *OUTPUTS))}, which mean something else; heads get theirs by --names"
            )
    columns = [spelled(name, value) for name in names for value in OUTPUTS]
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise InputError(f"two outputs would be called {twice[0]}; give each a name of its own with --names")
