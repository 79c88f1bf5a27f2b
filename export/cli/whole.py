"""`plaudit run`: run the commands of the four packages one after another, from a table to a bundle to serve."""

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from embed.cli.console import loudness_words, waiting
from embed.files import write_json
from embed.spec import STARTER, InputError

RECORD = "run.json"  # shows that a folder was made here, and by which commands
SCORES = "scores.parquet"  # the score of each picture by a head that was not trained on it
SAMPLES = 100  # how many pictures the bundle is compared with torch on


def whole(
    table: str,
    /,
    *,
    images: str | None = None,
    out: Path,
    model: str = STARTER,
    pretrained: str | None = None,
    format: str | None = None,
    columns: str | None = None,
) -> dict[str, object]:
    """Embed a table's pictures, train a head on its choices, measure the head, and write a bundle to serve.

    If the table has counts, a catalogue of similar and popular pictures is made too.

    Each step is a command that is printed before it runs, so that you can run it again with other options. If a run was
    interrupted, or the table has grown, run the same command again: only new pictures are embedded.

    Example:
        plaudit run likes.csv --images pictures --out out

    Args:
        table: The table of pictures and choices: parquet, csv, json, json lines, or a pattern of its shards in quotes.
        images: The folder or URL that the table's relative paths start from. By default the table's own folder.
        out: The folder for all results.
        model: The backbone, a name that `plaudit embed backbones` lists. The starter is only for trials.
        pretrained: The backbone's weights: a tag of open_clip, or a checkpoint file.
        format: The format of the table. By default it is recognised by its columns.
        columns: The names of your columns, if they differ from ours: NAME=YOURS,... such as image=path,prompt=caption.
    """
    from embed.config import parse_columns
    from embed.records.formats import read_records

    kind = read_records(table, format, images, parse_columns(columns or "")).kind
    if kind is None:
        raise InputError(
            f"{table} does not say what people like: it has no ratings, counts, ranks or comparisons (see 'Your data'"
            " in the README). To only embed its pictures, use `plaudit embed cache`"
        )
    _require_ours(out)
    reading = _options({"--images-root": images, "--format": format, "--columns": columns})
    cache, head, bundle, catalogue = (str(out / name) for name in ("cache", "head", "bundle", "catalogue"))
    backbone = _options({"--model": model, "--pretrained": pretrained})
    features = _options({"--features": "projected,pooled" if model == STARTER else None})
    compared = ["--images", images, "--samples", str(SAMPLES)] if images and Path(images).is_dir() else []
    report = str(out / "report.html")
    shown = ["--report", report, *(["--scores", str(out / SCORES)] if kind == "counts" else [])]
    steps = [
        ["embed", "cache", table, *backbone, *features, *reading, "--out", cache],
        ["heads", "train", cache, "--data", table, *reading, "--out", head, "--overwrite"],
        ["heads", "evaluate", head, "--cache", cache, "--data", table, *reading, *shown],
        ["export", "onnx", head, *compared, "--text-search", "--out", bundle, "--overwrite"],
    ]
    if kind == "counts":
        counts = ["--popularity", table, *_options({"--images-root": images, "--columns": columns})]
        steps += [["runtime", "index", cache, *counts, "--bundle", bundle, "--out", catalogue, "--overwrite"]]
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RECORD, {"table": table, "commands": [shlex.join(step) for step in steps]})
    documents = {" ".join(step[:2]): run_step(step) for step in steps}
    served = [*(["--catalogue", catalogue] if kind == "counts" else [])]
    after = [
        f"open {report}",
        shlex.join(["plaudit", "runtime", "score", bundle, "--prompt", "a prompt", "PICTURE"]),
        shlex.join(["plaudit", "ui", str(out)]),
        shlex.join(["plaudit", "runtime", "serve", bundle, *served]),
    ]
    print("\nWhat you could do next:", *(f"  {line}" for line in after), sep="\n")
    return {"out": str(out), "report": report, "bundle": bundle, "steps": documents}


def _require_ours(out: Path) -> None:
    """Raise InputError if the folder holds something that no earlier run has made."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; wanted a folder, which may be new")
    if out.is_dir() and any(out.iterdir()) and not (out / RECORD).exists():
        raise InputError(f"--out {out} holds other files; name an empty or new folder")


def _options(given: Mapping[str, str | None]) -> list[str]:
    return [word for name, value in given.items() if value is not None for word in (name, value)]


def run_step(step: list[str]) -> object:
    """Print a command, run it in a child process so that its memory is freed, and return its JSON document.

    Raise InputError if it fails. The command itself prints why.
    """
    print(f"\n$ plaudit {shlex.join(step)}", flush=True)
    # With -P, because a file runtime.py in the user's current folder would be imported instead of ours.
    command = [sys.executable, "-P", "-m", *step, "--json", *loudness_words()]
    with waiting():  # the step shows its own progress
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise InputError(
            f"`{' '.join(step[:2])}` failed with exit code {done.returncode}, for the reason printed above; mend that,"
            " then run the same command again: pictures that were embedded are not embedded again"
        )
    return json.loads(done.stdout)
