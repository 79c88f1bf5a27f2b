"""`python -m runtime score`."""

from pathlib import Path

from embed.cli.console import table, warn
from embed.spec import InputError
from runtime.config import SessionConfig


def score(
    bundle: Path, images: tuple[str, ...], /, *, session: SessionConfig, prompt: str | None = None
) -> dict[str, object]:
    """Score pictures under a prompt, the preferred first.

    Args:
        bundle: A folder made by `python -m export onnx`.
        images: The files of pictures.
        prompt: What the pictures should show. It is needed if the head reads it.
    """
    from runtime.scoring.scorer import Scorer

    scorer = Scorer.load(bundle, session)
    if prompt is None and scorer.reads_text:
        raise InputError(f"the head of {bundle} scores pictures under a prompt; add --prompt TEXT")
    scored = scorer.score_items(prompt or "", images)
    for number, error in scored.errors.items():
        warn(f"{images[number]}: {error}")
    if len(scored.errors) == len(images):
        raise InputError(f"none of {len(images)} pictures can be scored")
    good = [i for i in scored.scores.argsort()[::-1].tolist() if i not in scored.errors]
    names = list(scored.outputs)
    rows = [[images[i], *(f"{scored.outputs[name][i]:.4f}" for name in names)] for i in good]
    print(*table(["image", *names], rows), sep="\n")
    items = [
        {"image": image, "error": str(scored.errors[i])}
        if i in scored.errors
        else {"image": image, **{name: float(values[i]) for name, values in scored.outputs.items()}}
        for i, image in enumerate(images)
    ]
    return {"bundle": str(bundle), "precision": scorer.precision, "prompt": prompt, "scores": items}
