"""Read the pictures that people compare from a table, a folder or a catalogue, grouped by prompt.

If no prompt has two pictures, all pictures are compared with each other without a prompt.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from embed.addresses import join
from embed.arrays import Ints
from embed.files import content_id
from embed.records.columns import picture
from embed.records.formats import Records, read_records
from embed.spec import InputError

MOST_BYTES = 1 << 30  # the most bytes of pictures inside a table, since they are held in memory


@dataclass(frozen=True)
class Candidate:
    """A picture: its name in the owner's data, and its address or its bytes."""

    key: str
    addresses: tuple[str, ...] = ()
    data: bytes | None = None

    @property
    def id(self) -> str:
        """The picture's id in URLs, which does not reveal its name."""
        return content_id(self.key.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True, eq=False)
class Candidates:
    """Pictures with prompts: item i is `pictures[picture[i]]` with `prompts[group[i]]`."""

    pictures: list[Candidate]
    prompts: list[str]
    picture: Ints
    group: Ints

    @cached_property
    def groups(self) -> list[Ints]:
        """The numbers of the items of each prompt."""
        order = np.argsort(self.group, kind="stable")
        return np.split(order, np.searchsorted(self.group[order], np.arange(1, len(self.prompts))))

    @cached_property
    def of_id(self) -> dict[str, Candidate]:
        """The pictures by id."""
        return {one.id: one for one in self.pictures}

    def of_item(self, item: int) -> Candidate:
        """The picture of an item."""
        return self.pictures[int(self.picture[item])]

    def prompt_of(self, item: int) -> str:
        """The prompt of an item."""
        return self.prompts[int(self.group[item])]


def read_candidates(where: Path) -> Candidates:
    """Read candidates from a table, a folder of pictures or a catalogue. Raise InputError if there are no two to
    compare."""
    if (where / "manifest.json").is_file():
        found = _of_catalogue(where)
    else:
        records = read_records(where)
        found = gathered(_pictures_of(records), _prompts_of(records))
    if not any(len(group) > 1 for group in found.groups):
        raise InputError(f"{where} has fewer than two pictures to compare; add more")
    return found


def gathered(pictures: Mapping[str, Candidate], named: Iterable[tuple[str, str | None]]) -> Candidates:
    """Make candidates of pictures by name, and of names with their prompts. A picture occurs only once in a prompt."""
    pairs = list(dict.fromkeys((key, prompt or "") for key, prompt in named if key in pictures))
    prompts = [prompt for _, prompt in pairs if prompt]
    if len(prompts) == len(set(prompts)):  # no two pictures share a prompt
        pairs = list(dict.fromkeys((key, "") for key, _ in pairs))
    rows = {key: row for row, key in enumerate(pictures)}
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompt for _, prompt in pairs))}
    picture = np.array([rows[key] for key, _ in pairs], np.int64)
    group = np.array([numbers[prompt] for _, prompt in pairs], np.int64)
    return Candidates(list(pictures.values()), list(numbers), picture, group)


def gold_pairs(where: Path) -> tuple[dict[str, Candidate], list[tuple[str, str, str]]]:
    """The pictures of a table of comparisons by name, and for each comparison with a winner the prompt, the name of the
    right picture and that of the other."""
    records = read_records(where)
    if records.kind != "comparisons":
        raise InputError(
            f"--gold {where} is not a table of comparisons; wanted columns such as prompt, pos_path, neg_path"
        )
    rows = records.labels().select(["prompt_a", "image_a", "image_b", "target"]).to_pylist()
    known = [
        (row["prompt_a"] or "", *((row["image_a"], row["image_b"])[:: 1 if row["target"] > 0.5 else -1]))
        for row in rows
        if row["target"] != 0.5
    ]
    return _pictures_of(records), known


def _of_catalogue(path: Path) -> Candidates:
    from runtime.catalogue.reader import Catalogue

    catalogue = Catalogue.open(path)
    keys = catalogue.rows["image"].to_pylist()
    pictures = {
        key: Candidate(key, (*([place] if place else []), join(catalogue.images_root, key)))
        for key, place in zip(keys, catalogue.places().to_pylist(), strict=True)
    }
    has_prompts = "prompt" in catalogue.rows.column_names
    prompts = catalogue.rows["prompt"].to_pylist() if has_prompts else [None] * len(keys)
    return gathered(pictures, zip(keys, prompts, strict=True))


def _pictures_of(records: Records) -> dict[str, Candidate]:
    """All pictures of some records by name, without those that have neither address nor bytes."""
    found: dict[str, Candidate] = {}
    held = 0
    for batch in records.images():
        for row in batch.to_pylist():
            if row["key"] in found or (row["uri"] is None and row["bytes"] is None):
                continue
            held += len(row["bytes"] or b"")
            if held > MOST_BYTES:
                raise InputError(
                    f"{records.path} holds more than 1 GiB of pictures; give a table with their paths instead"
                )
            found[row["key"]] = Candidate(row["key"], (row["uri"],) if row["uri"] else (), row["bytes"])
    return found


def _prompts_of(records: Records) -> Iterable[tuple[str, str | None]]:
    """Yield the name and the prompt of every picture, for each time that a table names it."""
    if records.kind == "comparisons":
        rows = records.labels()
        for name in "ab":
            yield from zip(rows[f"image_{name}"].to_pylist(), rows[f"prompt_{name}"].to_pylist(), strict=True)
    elif records.kind is not None:
        rows = records.labels()
        yield from zip(rows["image"].to_pylist(), rows["prompt"].to_pylist(), strict=True)
    else:
        table = records.table
        side = picture(table, "image")
        types = side.key_types() | ({"prompt": pa.string()} if "prompt" in table.types else {})
        named, _ = table.read(types)
        prompts = named["prompt"].to_pylist() if "prompt" in named.column_names else [None] * len(named)
        yield from zip(side.keys(table, named).to_pylist(), prompts, strict=False)
