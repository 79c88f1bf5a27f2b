"""Best of n: many pictures generated for a prompt, the one that scores highest under it kept.

After Pick-a-Pic (Kirstain et al. 2023, section 6), where 20 templates of a prompt times 5 seeds gave 100 candidates.
A folder of candidates has one folder for each prompt, by its number, and in it files named TEMPLATE_SEED, such as
0003/07_2.png; the templates are for the generator, scores are always under the prompt itself. Generates nothing.
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

# The first is the prompt unchanged, so that a template has to earn its place.
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
    """A picture to generate: from which text and seed, and the file, without its suffix, to write it to."""

    file: str
    seed: int
    text: str


@dataclass(frozen=True)
class Best:
    """The chosen picture of one prompt. `mean` is the mean score of its `candidates`, `unreadable` left out."""

    prompt: str
    image: str
    template: str | None  # None where the file's name tells none
    score: float
    uncertainty: float | None  # None where the bundle gives none
    mean: float
    candidates: int
    unreadable: int


def read_templates(path: Path) -> tuple[str, ...]:
    """The templates of a file, one a line, each with {prompt} in it."""
    lines = read_lines(path, "template")
    for number, line in enumerate(lines, start=1):
        if "{prompt}" not in line:
            raise InputError(f"{path}, line {number}: {line!r} has no {{prompt}} in it")
    return tuple(lines)


def plan(prompts: Sequence[str], templates: Sequence[str], seeds: int) -> list[Candidate]:
    """What to generate: every prompt in every template with every seed."""
    return [
        {"file": f"{i:04d}/{j:02d}_{seed}", "seed": seed, "text": template.replace("{prompt}", prompt)}
        for i, prompt in enumerate(prompts)
        for j, template in enumerate(templates)
        for seed in range(seeds)
    ]


def read_sources(path: Path, count: int) -> list[Path | None]:
    """The pictures that so many prompts edit, from a file with one path a line, none where the line is empty; relative
    paths start where the file lies. Raise InputError for another number of lines, and for a file that is not there."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    if len(lines) != count:
        raise InputError(f"{path} has {len(lines)} lines for {count} prompts; wanted one each, empty for no picture")
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
    """The highest scored candidate of each prompt, the first by name where two are equal; scored by the output of that
    name, or else by the first head's. `sources` are what each prompt's candidates were made from."""
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
        raise InputError(f"{folder} is missing: it should hold the candidates for the prompt {prompt!r}")
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
