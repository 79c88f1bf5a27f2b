"""`python -m runtime best-of-n`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from embed.cli.console import table
from embed.files import read_lines
from embed.options import Range
from embed.spec import InputError
from runtime.config import SessionConfig


def best_of_n(
    bundle: Path,
    /,
    *,
    session: SessionConfig,
    prompts: Path,
    templates: Path | None = None,
    images: Path | None = None,
    output: str | None = None,
    sources: Path | None = None,
    plan: Annotated[int | None, Range(1)] = None,
) -> dict[str, object]:
    """Choose the best of many pictures that were generated for each prompt.

    Example:
        plaudit runtime best-of-n bundle --prompts prompts.txt --images generated

    Args:
        bundle: A folder made by `python -m export onnx`.
        prompts: A file with prompts, one on each line.
        templates: A file with templates, one on each line, each with {prompt} in it. By default the 20 of plaudit.
        images: The folder of the pictures, which are named NUMBER_OF_PROMPT/TEMPLATE_SEED.*, as --plan prints.
        output: The output to choose by. By default the first head's score.
        sources: A file with the source picture of each prompt, one path on each line, empty for none. Relative paths
            start at the file's folder. Only heads that read source pictures need it.
        plan: Score nothing, but print as JSON lines what to generate with this many seeds.
    """
    from runtime.scoring import best_of_n

    lines = read_lines(prompts, "prompt")
    forms = best_of_n.read_templates(templates) if templates else best_of_n.TEMPLATES
    if plan is not None:
        planned = best_of_n.plan(lines, forms, plan)
        print(*map(json.dumps, planned), sep="\n")
        return {"plan": planned}
    if images is None:
        raise InputError("give --images FOLDER with the candidates, or --plan SEEDS to see what to generate")
    from runtime.scoring.scorer import Scorer

    made_from = best_of_n.read_sources(sources, len(lines)) if sources else ()
    found = best_of_n.best_of_n(Scorer.load(bundle, session), lines, forms, images, output, made_from)
    rows = []
    for b in found:
        score = f"{b.score:.4f}" + (f" ± {b.uncertainty:.4f}" if b.uncertainty is not None else "")
        rows.append([b.prompt[:40], b.image, score, f"{b.mean:.4f}", b.candidates, b.template or ""])
    print(*table(["prompt", "best", "score", "mean", "of", "template"], rows), sep="\n")
    return {"bundle": str(bundle), "best": [asdict(b) for b in found]}
