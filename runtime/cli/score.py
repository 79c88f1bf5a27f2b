"""`python -m runtime score`."""

from pathlib import Path
from typing import Annotated

from embed.cli.console import table, warn
from embed.options import Option, Range, comma_separated
from embed.spec import InputError
from runtime.config import SessionConfig


def score(
    bundle: Path,
    images: tuple[str, ...],
    /,
    *,
    session: SessionConfig,
    prompt: str | None = None,
    outputs: Annotated[tuple[str, ...] | None, Option(parse=comma_separated)] = None,
    top: Annotated[int | None, Range(1)] = None,
) -> dict[str, object]:
    """Score pictures under a prompt, the preferred first.

    Example:
        plaudit runtime score bundle --prompt "a cat" pictures --top 20

    Args:
        bundle: A folder made by `python -m export onnx`.
        images: The files of pictures, and folders, of which every picture is scored.
        prompt: What the pictures should show. It is needed if an output depends on it.
        outputs: The outputs to give, with commas between them, or all. The first is what pictures are sorted by. By
            default the first head's.
        top: Show only this many of the preferred pictures. By default all.
    """
    from runtime.scoring.scorer import Scorer

    scorer = Scorer.load(bundle, session)
    columns, sorted_by = scorer.named.columns(outputs), scorer.named.chosen(outputs)[0].values["score"]
    if prompt is None and scorer.named.needs_prompt(outputs):
        raise InputError(f"the head of {bundle} scores pictures under a prompt; add --prompt TEXT")
    images = tuple(name for image in images for name in ([image] if not Path(image).is_dir() else _below(image)))
    scored = scorer.score_items(prompt or "", images)
    for number, error in scored.errors.items():
        warn(f"{images[number]}: {error}")
    if len(scored.errors) == len(images):
        raise InputError(f"none of {len(images)} pictures can be scored")
    good = [i for i in scored.outputs[sorted_by].argsort()[::-1].tolist() if i not in scored.errors][:top]
    found = {column: scored.outputs[name] for column, name in columns.items()}
    rows = [[images[i], *(f"{values[i]:.4f}" for values in found.values())] for i in good]
    print(*table(["image", *found], rows), sep="\n")
    items = [
        {"image": image, "error": str(scored.errors[i])}
        if i in scored.errors
        else {"image": image, **{name: float(values[i]) for name, values in found.items()}}
        for i, image in enumerate(images)
        if top is None or i in good
    ]
    return {"bundle": str(bundle), "precision": scorer.precision, "prompt": prompt, "scores": items}


def _below(folder: str) -> list[str]:
    """The files of a folder and of those in it; raise InputError if there is none."""
    from embed.records.formats import read_records

    return [uri for batch in read_records(folder, "folder").images() for uri in batch["uri"].to_pylist()]
