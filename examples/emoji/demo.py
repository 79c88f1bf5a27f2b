"""The whole path on the emoji example, command by command, and a page to look at.

    python examples/emoji/demo.py --out demo

Every step is a command that a user would type; this file only runs them, keeps their `--json` answers, prints a
summary, and writes `report.html`. Needs the extras train, cpu and starter.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from report import Point, Query, page, picture

from embed.cli.console import table
from heads.report.page import Picture

FOLDER = Path(os.path.relpath(Path(__file__).parent))
TABLE = FOLDER / "emoji.parquet"
WEIGHTS = (0.0, 0.3, 1.0)
IMAGE_QUERIES = ("images/1f436.webp", "images/1f355.webp", "images/1f697.webp")  # a dog, a pizza, a car
TEXT_QUERIES = ("a happy face", "something to drink")
SHOWN = 20  # pictures at either end
HITS = 9
SAMPLES = 100  # pictures, and prompts, on which ONNX is compared with torch
ACCURACIES = {
    "pair_accuracy": "pair accuracy, head, held out",
    "zero_shot_pair_accuracy": "pair accuracy, zero-shot cosine",
    "chance": "pair accuracy, chance",
}


def run(*command: str) -> Any:
    """Show a command, run it, and give its JSON answer."""
    print(f"$ python -m {shlex.join(command)}", flush=True)
    done = subprocess.run([sys.executable, "-m", *command, "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="the folder for everything made")
    out: Path = parser.parse_args().out
    cache, head, bundle, catalogue = (str(out / name) for name in ("cache", "head", "bundle", "catalogue"))
    start = time.monotonic()
    # A cache that is there would leave nothing to measure.
    for made in (cache, head, bundle, catalogue):
        shutil.rmtree(made, ignore_errors=True)

    embedded = run("embed", "cache", str(TABLE), "--model", "starter", "--features", "projected,pooled", "--out", cache)
    scores = str(out / "held_out_scores.parquet")
    run("heads", "train", cache, "--data", str(TABLE), "--head", "kernel", "--loss", "rating",
        "--split-by", "subcategory", "--folds", "5", "--out", head)  # fmt: skip
    accuracy = run("heads", "evaluate", head, "--cache", cache, "--data", str(TABLE), "--scores", scores)
    names = {row["image"]: row["name"] for row in pq.read_table(TABLE, columns=["image", "name"]).to_pylist()}
    prompts = out / "prompts.txt"
    prompts.write_text("".join(f"{name}\n" for name in list(names.values())[:SAMPLES]), encoding="utf-8")
    exported = run("export", "onnx", head, "--out", bundle, "--images", str(FOLDER / "images"),
                   "--prompts", str(prompts), "--samples", str(SAMPLES))  # fmt: skip
    run("export", "check", bundle, "--runtime-only")
    dog, *others = (str(FOLDER / image) for image in IMAGE_QUERIES)
    run("runtime", "score", bundle, "--prompt", "dog face", dog, *others)
    run("runtime", "index", cache, "--popularity", str(TABLE), "--bundle", bundle, "--out", catalogue)
    run("runtime", "similar", catalogue, dog, "-k", "10", "--popularity-weight", "0.3")
    queries = find_similar(catalogue, bundle, names)

    rows = sorted(pq.read_table(scores).to_pylist(), key=lambda row: -row["percentile"])
    shown = [
        picture(FOLDER / row["image"], row["name"], f"used {row['count']:,.0f}×")
        for row in (*rows[:SHOWN], *rows[-SHOWN:])
    ]
    summary = summarise(embedded, accuracy, exported["parity"])
    protocol = (
        f"Pair accuracy over {accuracy['pairs']:,} pairs of held-out pictures ({accuracy['protocol']['pairs']}), "
        f"{accuracy['protocol']['folds']} folds of whole subcategories; {accuracy['protocol']['interval']}."
    )
    html = page(
        accuracy["verdict"],
        summary,
        best=shown[:SHOWN],
        worst=shown[: -SHOWN - 1 : -1],
        queries=queries,
        points=[Point(FOLDER / row["image"], row["name"], row["count"], row["percentile"]) for row in rows],
        protocol=protocol,
    )
    (out / "report.html").write_text(html, encoding="utf-8")
    print("", *table(summary[0], summary[1:]), protocol, "", sep="\n")
    print(f"{time.monotonic() - start:.0f} s in all. Look at {out / 'report.html'}")


def find_similar(catalogue_path: str, bundle: str, names: Mapping[str, str]) -> list[Query]:
    """Every query at every weight: what `runtime similar` does, without starting a process for each."""
    from runtime.catalogue.reader import Catalogue
    from runtime.scoring.scorer import Scorer

    catalogue, scorer = Catalogue.open(catalogue_path), Scorer.load(bundle)
    titles = [f"like this: {names[image]}" for image in IMAGE_QUERIES] + [f"in words: {text}" for text in TEXT_QUERIES]
    images = scorer.embed_images([FOLDER / image for image in IMAGE_QUERIES])
    vectors = np.concatenate([images, scorer.embed_prompts(TEXT_QUERIES)])
    found = {weight: catalogue.search(vectors, HITS, popularity_weight=weight) for weight in WEIGHTS}
    return [
        Query(title, {f"weight {weight:g}": [_hit(hit, names) for hit in hits[i]] for weight, hits in found.items()})
        for i, title in enumerate(titles)
    ]


def _hit(hit: Any, names: Mapping[str, str]) -> Picture:
    return picture(FOLDER / hit.key, names[hit.key], f"{hit.similarity:.2f} · {100 * hit.popularity:.0f} %")


def summarise(embedded: Any, accuracy: Any, parity: Any) -> list[list[str]]:
    """The table that the demo ends with, its header first."""
    rows = [["", "", "95 % interval"]]
    for side, noun in (("images", "pictures"), ("prompts", "prompts")):
        count = embedded[side]
        rows.append([f"{noun} embedded", f"{count['embedded']:,} ({count['per_s']:,.0f} a second)", ""])
    for name, label in ACCURACIES.items():
        measured = accuracy[name]
        rows.append([label, f"{measured['value']:.3f}", f"{measured['low']:.3f} to {measured['high']:.3f}"])
    fp32 = parity["precisions"]["fp32"]
    cosine = min(vectors["cosine_min"] for vectors in fp32["vectors"].values())
    rows.append(["ONNX against torch: largest score difference", f"{fp32['scores']['max_score_difference']:.1e}", ""])
    rows.append(["ONNX against torch: smallest cosine", f"{cosine:.7f}", ""])
    return rows


if __name__ == "__main__":
    main()
