"""The commands that score pictures with a bundle."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embed.console import command, progress, say, table, warn
from embed.spec import InputError


def add_commands(commands: Any) -> None:
    """Add this module's commands to those of `python -m runtime`."""
    score = command(commands, "score", score_images, "score pictures under a prompt, the preferred first")
    _add_bundle_options(score)
    score.add_argument("images", metavar="IMAGE", nargs="+")
    score.add_argument("--prompt", help="what the pictures should show; needed where the head reads it")

    rows = command(commands, "score-table", score_rows, "score every row of a parquet file; resumes where it stopped")
    _add_bundle_options(rows)
    rows.add_argument("--data", type=Path, required=True, metavar="TABLE", help="parquet with pictures and prompts")
    rows.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the folder to write scores to")
    rows.add_argument("--image-column", default="image", help="paths or bytes (default image)")
    rows.add_argument("--prompt-column", default="prompt", help="default prompt")
    rows.add_argument("--prompt", help="one for all rows, in place of a column")

    best = command(commands, "best-of-n", find_best, "the best of many pictures generated for each prompt")
    _add_bundle_options(best)
    best.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="one a line")
    best.add_argument("--templates", type=Path, metavar="FILE", help="one a line, with {prompt} in it (20 of ours)")
    best.add_argument("--images", type=Path, metavar="FOLDER", help="NUMBER_OF_PROMPT/TEMPLATE_SEED.*: see --plan")
    best.add_argument("--plan", type=int, metavar="SEEDS", help="print what to generate, as JSON lines, and stop")


def _add_bundle_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a folder made by `python -m export onnx`")
    parser.add_argument("--provider", action="append", help="cpu, cuda, tensorrt, ... (the best installed)")
    parser.add_argument("--precision", help="one of the bundle's (its first)")
    parser.add_argument("--threads", type=int, help="of the CPU (one for each core)")
    parser.add_argument("--engine-cache", type=Path, metavar="FOLDER", help="where TensorRT keeps what it compiles")


def _scorer(args: argparse.Namespace) -> Any:
    from runtime.scoring.scorer import Scorer

    return Scorer.load(
        args.bundle,
        providers=args.provider,
        precision=args.precision,
        threads=args.threads,
        engine_cache=args.engine_cache,
    )


def score_images(args: argparse.Namespace) -> dict[str, Any]:
    """Score every picture that can be read; InputError where none can."""
    scorer = _scorer(args)
    if args.prompt is None and scorer.reads_text:
        raise InputError(f"the head of {args.bundle} scores pictures under a prompt; add --prompt TEXT")
    scored = scorer.score_items(args.prompt or "", args.images)
    for number, error in scored.errors.items():
        warn(f"{args.images[number]}: {error}")
    if len(scored.errors) == len(args.images):
        raise InputError(f"none of {len(args.images)} pictures can be scored")
    good = [i for i in scored.scores.argsort()[::-1].tolist() if i not in scored.errors]
    names = list(scored.outputs)
    rows = [[args.images[i], *(f"{scored.outputs[name][i]:.4f}" for name in names)] for i in good]
    say(args, *table(["image", *names], rows))
    items: list[dict[str, Any]] = [
        {"image": image, "error": str(scored.errors[i])}
        if i in scored.errors
        else {"image": image, **{name: float(values[i]) for name, values in scored.outputs.items()}}
        for i, image in enumerate(args.images)
    ]
    return {"bundle": str(args.bundle), "precision": scorer.precision, "prompt": args.prompt, "scores": items}


def score_rows(args: argparse.Namespace) -> dict[str, Any]:
    """Score a table; mirrors runtime.scoring.tables.score_table."""
    from runtime.scoring.tables import TableConfig, score_table

    config = TableConfig(args.image_column, args.prompt_column, args.prompt)
    summary = score_table(_scorer(args), args.data, args.out, config, progress)
    say(args, f"{summary['rows']} rows scored, {summary['errors']} with an error; written to {args.out}")
    return {"out": str(args.out), **summary}


def find_best(args: argparse.Namespace) -> dict[str, Any]:
    """The best candidate of each prompt, or what to generate; mirrors runtime.scoring.best_of_n."""
    from runtime.scoring import best_of_n

    prompts = [line.strip() for line in args.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    templates = best_of_n.read_templates(args.templates) if args.templates else best_of_n.TEMPLATES
    if args.plan is not None:
        plan = best_of_n.plan(prompts, templates, args.plan)
        say(args, *(json.dumps(candidate) for candidate in plan))
        return {"plan": plan}
    if args.images is None:
        raise InputError("give --images FOLDER with the candidates, or --plan SEEDS to see what to generate")
    found = best_of_n.best_of_n(_scorer(args), prompts, templates, args.images)
    rows = [[b.prompt[:40], b.image, f"{b.score:.4f}", f"{b.mean:.4f}", b.candidates, b.template or ""] for b in found]
    say(args, *table(["prompt", "best", "score", "mean", "of", "template"], rows))
    return {"bundle": str(args.bundle), "best": [asdict(b) for b in found]}
