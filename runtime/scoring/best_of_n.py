"""Best of n: choose the highest scoring of many pictures that were generated for a prompt.

After Pick-a-Pic (Kirstain et al. 2023, section 6), who make 100 candidates from 20 templates of a prompt and 5 seeds.
A folder of candidates has one folder for each prompt, by its number, and in it files named TEMPLATE_SEED, such as
0003/07_2.png; the templates are only for the generator, and pictures are always scored under the prompt itself. This
module generates nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from embed.files import read_lines
from embed.spec import InputError

if TYPE_CHECKING:
    from runtime.scoring.scorer import Scorer

# The first is the prompt itself, to compare other templates with.
TEMPLATES = (
    "{prompt}",
    "{prompt}, sharp focus, fine detail",
    "{prompt}, soft morning light",
    "{prompt}, warm light of the evening sun",
    "{prompt}, dramatic shadows",
    "{prompt}, studio photograph, plain background",
    "{prompt}, photographed with a 50mm lens, shallow depth of field",
    "{prompt}, seen from above",
    "{prompt}, wide view with much sky",
    "{prompt}, close-up",
    "{prompt}, oil on canvas with thick brush strokes",
    "{prompt}, loose watercolour on rough paper",
    "{prompt}, ink drawing with clean lines",
    "{prompt}, pencil sketch",
    "{prompt}, flat vector illustration, few colours",
    "{prompt}, picture book illustration",
    "{prompt}, matte painting, epic scale",
    "{prompt}, 3d render, soft global illumination",
    "{prompt}, muted colours, misty mood",
    "{prompt}, vivid complementary colours",
)


class Candidate(TypedDict):
    """A picture to generate: its text, its seed, and the file to write it to, without a suffix."""

    file: str
    seed: int
    text: str


@dataclass(frozen=True)
class Best:
    """The chosen picture of one prompt. `mean` is the mean score of its `candidates` without the `unreadable` ones."""

    prompt: str
    image: str
    template: str | None  # None if the file's name does not tell it
    score: float
    uncertainty: float | None  # None if the bundle gives none
    mean: float
    candidates: int
    unreadable: int


def read_templates(path: Path) -> tuple[str, ...]:
    """The templates of a file, one on each line. Raise InputError if one lacks {prompt}."""
    lines = read_lines(path, "template")
    for number, line in enumerate(lines, start=1):
        if "{prompt}" not in line:
            raise InputError(f"{path}, line {number}: {line!r} has no {{prompt}} in it; add it")
    return tuple(lines)


def plan(prompts: Sequence[str], templates: Sequence[str], seeds: int) -> list[Candidate]:
    """The pictures to generate: one for every prompt, template and seed."""
    return [
        {"file": f"{i:04d}/{j:02d}_{seed}", "seed": seed, "text": template.replace("{prompt}", prompt)}
        for i, prompt in enumerate(prompts)
        for j, template in enumerate(templates)
        for seed in range(seeds)
    ]


def read_sources(path: Path, count: int) -> list[Path | None]:
    """The source pictures of so many prompts, from a file with one path on each line. An empty line means none.
    Relative paths start at the file's folder. Raise InputError for another number of lines, or a missing file."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    if len(lines) != count:
        raise InputError(
            f"{path} has {len(lines)} lines for {count} prompts; wanted one for each prompt, empty for no source"
        )
    found = [path.parent / line if line else None for line in lines]
    for number, source in enumerate(found, start=1):
        if source is not None and not source.is_file():
            raise InputError(f"{path}, line {number}: there is no file {source}")
    return found


def best_of_n(
    scorer: "Scorer",
    prompts: Sequence[str],
    templates: Sequence[str],
    folder: Path,
    output: str | None = None,
    sources: Sequence[Path | None] = (),
) -> list[Best]:
    """The highest scoring candidate of each prompt, of equal ones the first by name. Scores are those of the named
    output, or of the first head. `sources` are the source pictures of each prompt's candidates."""
    values = scorer.named.chosen(None if output is None else [output])[0].values
    made_from = sources or [None] * len(prompts)
    return [
        _best(scorer, values, prompt, templates, folder / f"{i:04d}", source)
        for i, (prompt, source) in enumerate(zip(prompts, made_from, strict=True))
    ]


def _best(
    scorer: "Scorer",
    values: Mapping[str, str],
    prompt: str,
    templates: Sequence[str],
    folder: Path,
    source: Path | None,
) -> Best:
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}, which should hold the candidates for the prompt {prompt!r}")
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    scored = scorer.score_items(prompt, paths, [] if source is None else [source])
    if len(scored.errors) == len(paths):
        why = f" ({paths[0].name}: {scored.errors[0]})" if paths else ""
        raise InputError(f"{folder} holds no picture that can be read for the prompt {prompt!r}{why}")
    scores = scored.outputs[values["score"]]
    uncertainties = scored.outputs[values["uncertainty"]] if "uncertainty" in values else None
    first = int(np.nanargmax(scores))
    number = paths[first].stem.partition("_")[0]
    known = number.isdecimal() and int(number) < len(templates)
    return Best(
        prompt=prompt,
        image=str(paths[first]),
        template=templates[int(number)] if known else None,
        score=float(scores[first]),
        uncertainty=None if uncertainties is None else float(uncertainties[first]),
        mean=float(np.nanmean(scores)),
        candidates=len(paths) - len(scored.errors),
        unreadable=len(scored.errors),
    )
