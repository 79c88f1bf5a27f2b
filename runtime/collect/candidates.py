"""The pictures that people compare, from a table, a folder or a catalogue, by the prompt they stand under.

Where no prompt has two pictures, all of them are compared with each other, under no prompt.
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

MOST_BYTES = 1 << 30  # of pictures inside a table, which are held in memory


@dataclass(frozen=True)
class Candidate:
    """A picture: its name in the owner's data, and where to read it, or its bytes."""

    key: str
    addresses: tuple[str, ...] = ()
    data: bytes | None = None

    @property
    def id(self) -> str:
        """What it is called in addresses, which tells nothing of its name."""
        return content_id(self.key.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True, eq=False)
class Candidates:
    """Pictures under prompts: item i is `pictures[picture[i]]` under `prompts[group[i]]`."""

    pictures: list[Candidate]
    prompts: list[str]
    picture: Ints
    group: Ints

    @cached_property
    def groups(self) -> list[Ints]:
        """The items of each prompt."""
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
    """The candidates of a table, a folder of pictures or a catalogue; raise InputError if nothing can be compared."""
    if (where / "manifest.json").is_file():
        found = _of_catalogue(where)
    else:
        records = read_records(where)
        found = gathered(_pictures_of(records), _prompts_of(records))
    if not any(len(group) > 1 for group in found.groups):
        raise InputError(f"{where} has no two pictures to compare")
    return found


def gathered(pictures: Mapping[str, Candidate], named: Iterable[tuple[str, str | None]]) -> Candidates:
    """Candidates from pictures by name, and from names with their prompts; each is in a prompt once."""
    pairs = list(dict.fromkeys((key, prompt or "") for key, prompt in named if key in pictures))
    prompts = [prompt for _, prompt in pairs if prompt]
    if len(prompts) == len(set(prompts)):  # of no two pictures the same
        pairs = list(dict.fromkeys((key, "") for key, _ in pairs))
    rows = {key: row for row, key in enumerate(pictures)}
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompt for _, prompt in pairs))}
    picture = np.array([rows[key] for key, _ in pairs], np.int64)
    group = np.array([numbers[prompt] for _, prompt in pairs], np.int64)
    return Candidates(list(pictures.values()), list(numbers), picture, group)


def gold_pairs(where: Path) -> tuple[dict[str, Candidate], list[tuple[str, str, str]]]:
    """The pictures of a table of comparisons, by name; and of each with a winner its prompt, the right picture's name
    and the other's."""
    records = read_records(where)
    if records.kind != "comparisons":
        raise InputError(
            f"--gold {where} is no table of comparisons; wanted columns such as prompt, pos_path, neg_path"
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
    """Every picture of some records by name; those without address and bytes are left out."""
    found: dict[str, Candidate] = {}
    held = 0
    for batch in records.images():
        for row in batch.to_pylist():
            if row["key"] in found or (row["uri"] is None and row["bytes"] is None):
                continue
            held += len(row["bytes"] or b"")
            if held > MOST_BYTES:
                raise InputError(f"{records.path} holds more than 1 GiB of pictures; wanted a table of their paths")
            found[row["key"]] = Candidate(row["key"], (row["uri"],) if row["uri"] else (), row["bytes"])
    return found


def _prompts_of(records: Records) -> Iterable[tuple[str, str | None]]:
    """The name and the prompt of every picture, as often as a table says so."""
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
