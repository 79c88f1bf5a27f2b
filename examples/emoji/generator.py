"""A generator of emoji, trained from scratch, tuned by a reward, and judged by a head that was not trained on.

    python examples/emoji/generator.py --out demo/generator

1. `diffusion.py` trains a small text-conditional diffusion model on the emoji and their names, one in twenty held out.
2. The subcategories are split in halves. On the emoji of one, at the generator's 32 pixels, a kernel head learns which
   are used most: the reward. On those of the other a linear head learns the same: the judge.
3. `python -m heads tune` tunes the generator by the reward, once as one should, and once without guards, at thirty
   times the rate and without the pre-training loss, which shows what these are for.
4. Pictures of 64 prompts, half of them held out from all training, 4 of each from the same noise, are compared before
   and after: OUT/pictures.png, OUT/result.json, and OUT/tuned/report.html with the guards' curves.

What is there already is not made again, so that a run that was killed goes on. Needs the extras train, cpu, starter and
generators. Its figures are in docs/generators.md.
"""

import argparse
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusion import FOLDER, Emoji, new_pipeline, read_emoji, train, use_count
from PIL import Image

from embed.cli.console import table
from embed.files import atomic_write, write_json
from heads.generating.tuned import load_tuned
from heads.report.figures import number, told
from heads.reward.module import Reward
from heads.tuning.config import TuneConfig
from heads.tuning.guards import Guards, Look
from heads.tuning.loading import load_family
from heads.tuning.result import NAMES, compare

HEADS = {"reward": ("--head", "kernel"), "judge": ("--head", "linear")}
GUARDED, UNGUARDED = "tuned", "unguarded"
UNHELD = ("--no-guards", "--pretrain-weight", "0", "--judge-prompts", "12", "--judge-pictures", "2")
SHEET_PROMPTS = 12
LEARNING = ("--whole", "--reward-weight", "0.1", "--min-diversity", "0.85")


@dataclass(frozen=True)
class Plan:
    """How much is done."""

    emoji: int | None = None
    channels: tuple[int, ...] = (32, 64, 128)
    steps: int = 2600
    batch: int = 16
    sampling_steps: int = 10
    guidance: float = 1.0
    draft_steps: int = 1
    tuning_steps: int = 60
    tuning_batch: int = 8
    learning_rate: float = 1e-5
    unguarded_rate: float = 3e-4
    looks: tuple[str, ...] = ("--judge-every", "20", "--judge-prompts", "24", "--judge-pictures", "4")
    prompts: int = 64
    pictures: int = 4
    folds: int = 5


QUICK = Plan(
    emoji=40, channels=(16, 32), steps=2, batch=2, sampling_steps=2, tuning_steps=1, tuning_batch=2,
    looks=("--judge-every", "1", "--judge-prompts", "2", "--judge-pictures", "2"), prompts=4, pictures=2, folds=2,
)  # fmt: skip


def run(package: str, *arguments: object) -> None:
    """Show a command and run it."""
    words = [str(argument) for argument in arguments]
    print(f"$ python -m {package} {' '.join(words)}", flush=True)
    if words[0] == "cache":  # a process of its own: those that decode import its main module again
        subprocess.run([sys.executable, "-m", package, *words], check=True)
    elif code := importlib.import_module(f"{package}.cli.main").main(words):
        raise SystemExit(code)


def write_tables(emoji: Emoji, out: Path) -> None:
    """The pictures at the generator's size, a table of each half, and one of all that the generator has learnt."""
    names = sorted({str(row["subcategory"]) for row in emoji.rows})
    half = dict(zip(names, np.random.default_rng(0).permutation(len(names)) % 2, strict=True))
    rows: dict[str, list[dict[str, object]]] = {"reward": [], "judge": [], "learnt": []}
    (out / "images").mkdir(parents=True, exist_ok=True)
    for i, row in enumerate(emoji.rows):
        image = f"images/{Path(str(row['image'])).stem}.png"
        Image.fromarray(emoji.pixels[i].permute(1, 2, 0).numpy()).save(out / image)
        name, count = emoji.names[i], use_count(row)
        if count is not None:
            use = ("reward", "judge")[half[str(row["subcategory"])]]
            rows[use].append({"image": image, "prompt": name, "count": count, "subcategory": row["subcategory"]})
        if not emoji.held_out[i]:
            rows["learnt"].append({"image": image, "prompt": name})
    for use, listed in rows.items():
        pq.write_table(pa.Table.from_pylist(listed), out / f"{use}.parquet")


def choose_prompts(emoji: Emoji, count: int) -> tuple[list[str], list[str]]:
    """Prompts to compare under, the first half held out from all training where there are so many, and those to tune
    on."""
    held, learnt = ([emoji.names[i] for i in np.flatnonzero(mask)] for mask in (emoji.held_out, ~emoji.held_out))
    rng = np.random.default_rng(1)
    compared = [str(name) for name in rng.permutation(held)[: count // 2]]
    others = [str(name) for name in rng.permutation(learnt)]
    rest = count - len(compared)
    return compared + others[:rest], others[rest:]


def make_heads(out: Path, folds: int) -> None:
    """Reward and judge, each from its own half."""
    tables = [out / f"{use}.parquet" for use in HEADS]
    if not (out / "cache" / "manifest.json").exists():
        run("embed", "cache", *tables, "--model", "starter", "--features", "projected,pooled", "--out", out / "cache")
    for use, kind in HEADS.items():
        if not (out / use / "head.json").exists():
            run("heads", "train", out / "cache", "--data", out / f"{use}.parquet", *kind, "--loss", "rating",
                "--split-by", "subcategory", "--folds", folds, "--out", out / use)  # fmt: skip


def tune(out: Path, plan: Plan, name: str, rate: float, *more: str) -> None:
    """`heads tune` by DRaFT, with a pre-training loss on the emoji themselves."""
    if (out / name / "tuning.json").exists():
        return
    run(
        "heads", "tune", out / "generator", "--method", "draft", "--reward", out / "reward", "--judge", out / "judge",
        "--prompts", out / "prompts.txt", "--pretrain-data", out / "learnt.parquet", "--out", out / name, *LEARNING,
        "--draft-steps", plan.draft_steps, "--steps", plan.tuning_steps, "--learning-rate", rate,
        "--batch-size", plan.tuning_batch,
        "--sampling-steps", plan.sampling_steps, "--guidance", plan.guidance, "--device", "cpu",
        "--keep-activations", *plan.looks, *more,
    )  # fmt: skip


def look_at(out: Path, plan: Plan, prompts: Sequence[str]) -> dict[str, Look]:
    """The same pictures by the generator as trained and as tuned."""
    family = load_family(str(out / "generator"), "cpu")
    reward, judge = (Reward.load(out / use, "cpu") for use in HEADS)
    config = TuneConfig(
        "draft", sampling_steps=plan.sampling_steps, guidance=plan.guidance, judge_pictures=plan.pictures, seed=7
    )
    guards = Guards(family, prompts, config, reward, judge, judge.encoder)
    found = {"before": guards.look(plan.tuning_batch)}
    for name in (GUARDED, UNGUARDED):
        load_tuned(family, out / name)
        found[name] = guards.look(plan.tuning_batch)
    return found


def report(looks: dict[str, Look], plan: Plan, held_out: int) -> tuple[list[str], dict[str, Any]]:
    """A table of what changed, over all prompts and over those that were held out, and the same as JSON."""
    rows, document = [], dict[str, Any]()
    before = looks["before"]
    for name in (GUARDED, UNGUARDED):
        for part, prompts in (("all prompts", slice(None)), ("held out", slice(held_out))):
            for measure, label in NAMES.items():
                per = 1 if measure in ("diversity", "variety") else plan.pictures
                some = slice(None if prompts.stop is None else held_out * per)
                first, second = (getattr(look, measure)[some] for look in (before, looks[name]))
                if not len(first):
                    continue
                figure = compare(first, second, np.arange(len(first)) // per, seed=0)
                relative = figure.difference.value / (figure.deviation or 1.0)
                document.setdefault(name, {}).setdefault(part, {})[measure] = figure.to_json() | {
                    "in_deviations": relative
                }
                rows.append([f"{name}, {part}: {label}", number(figure.before, ".4f"), number(figure.after, ".4f"),
                             told(figure.difference, "+.4f"), f"{relative:+.2f}"])  # fmt: skip
    header = ["", "before", "after", "difference, 95 % interval", "in standard deviations"]
    return table(header, rows), document


def write_sheet(path: Path, emoji: Emoji, looks: dict[str, Look], prompts: Sequence[str], each: int) -> None:
    """A column for each of some prompts, half of them held out: the emoji itself, and a picture of each generator."""
    half = min(SHEET_PROMPTS, len(prompts)) // 2
    shown = [*range(half), *range(len(prompts) - half, len(prompts))]
    real = torch.stack([emoji.pixels[emoji.names.index(prompts[i])] for i in shown])
    rows = [real, *(look.pixels[[i * each for i in shown]] for look in looks.values())]
    sheet = torch.cat([row.permute(1, 2, 0, 3).flatten(2) for row in rows], dim=1).permute(1, 2, 0).numpy()
    image = Image.fromarray(sheet)
    with atomic_write(path) as file:
        image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST).save(file, "PNG")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo/generator"), help="the folder for everything made")
    parser.add_argument("--emoji", type=Path, default=FOLDER, help="folder with emoji.parquet and images/")
    parser.add_argument("--steps", type=int, help=f"of the generator's own training; {Plan.steps} by default")
    parser.add_argument("--quick", action="store_true", help="do a little of everything, to see that it works")
    args = parser.parse_args(argv)
    out, plan, start = args.out, QUICK if args.quick else Plan(), time.monotonic()
    emoji = read_emoji(args.emoji, plan.emoji)
    if not (out / "generator" / "model_index.json").exists():
        train(new_pipeline(plan.channels), emoji, args.steps or plan.steps, out / "generator", plan.batch)
    compared, learnt = choose_prompts(emoji, plan.prompts)
    write_tables(emoji, out)
    with atomic_write(out / "prompts.txt") as file:
        file.write("".join(f"{name}\n" for name in learnt).encode())
    make_heads(out, plan.folds)
    tune(out, plan, GUARDED, plan.learning_rate)
    tune(out, plan, UNGUARDED, plan.unguarded_rate, *UNHELD)
    looks = look_at(out, plan, compared)
    held_out = sum(bool(emoji.held_out[emoji.names.index(name)]) for name in compared)
    lines, document = report(looks, plan, held_out)
    write_sheet(out / "pictures.png", emoji, looks, compared, plan.pictures)
    write_json(out / "result.json", {"prompts": compared, "held_out": held_out, "figures": document})
    print(*lines, sep="\n")
    print(f"{len(compared)} prompts, {held_out} of them held out, {plan.pictures} pictures of each from the same noise")
    print(
        f"{time.monotonic() - start:.0f} s in all. Look at {out / 'pictures.png'} and {out / GUARDED / 'report.html'}"
    )
    print(json.dumps(document))


if __name__ == "__main__":
    main()
