"""`plaudit run`: the commands of the four packages one after another, from a table to what is served."""

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from embed.cli.console import loudness_words, waiting
from embed.files import write_json
from embed.spec import STARTER, InputError

RECORD = "run.json"  # says that a folder was made here, and by which commands
SAMPLES = 100  # pictures on which the bundle is compared with torch


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
    """Go the whole path: embed a table's pictures, train a head on its choices, measure it, and write a bundle to
    serve; of a table with counts, a catalogue of similar and popular pictures too.

    Each step is a command that is printed before it runs, so that it can be run again with other options. Run it again
    after it was interrupted, or with a table that has grown: what was embedded is not embedded again.

    Example:
        plaudit run likes.csv --images pictures --out out

    Args:
        table: The table of pictures and choices: parquet, csv, json, json lines, or a pattern of its shards in quotes.
        images: The folder or URL where the table's relative paths start. By default the table's own folder.
        out: The folder for everything that is made.
        model: The backbone, a name that `plaudit embed backbones` lists. The starter is for trying things out.
        pretrained: The backbone's weights: a tag of open_clip's, or a checkpoint file.
        format: The format of the table. By default its columns tell.
        columns: What the table calls the columns, if not as we do: NAME=YOURS,... such as image=path,prompt=caption.
    """
    from embed.config import parse_columns
    from embed.records.formats import read_records

    kind = read_records(table, format, images, parse_columns(columns or "")).kind
    if kind is None:
        raise InputError(
            f"{table} says nothing of what people like: it has no ratings, counts, ranks or comparisons (see 'Your"
            " data' in the README); `plaudit embed cache` embeds its pictures"
        )
    _require_ours(out)
    reading = _options({"--images-root": images, "--format": format, "--columns": columns})
    cache, head, bundle, catalogue = (str(out / name) for name in ("cache", "head", "bundle", "catalogue"))
    backbone = _options({"--model": model, "--pretrained": pretrained})
    features = _options({"--features": "projected,pooled" if model == STARTER else None})
    compared = ["--images", images, "--samples", str(SAMPLES)] if images and Path(images).is_dir() else []
    report = str(out / "report.html")
    steps = [
        ["embed", "cache", table, *backbone, *features, *reading, "--out", cache],
        ["heads", "train", cache, "--data", table, *reading, "--out", head, "--overwrite"],
        ["heads", "evaluate", head, "--cache", cache, "--data", table, *reading, "--report", report],
        ["export", "onnx", head, *compared, "--out", bundle, "--overwrite"],
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
    """Raise InputError if the folder has something in it that no earlier run has made."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; wanted a folder, which need not be there")
    if out.is_dir() and any(out.iterdir()) and not (out / RECORD).exists():
        raise InputError(f"--out {out} has other files in it; name a folder that is empty or not there")


def _options(given: Mapping[str, str | None]) -> list[str]:
    return [word for name, value in given.items() if value is not None for word in (name, value)]


def run_step(step: list[str]) -> object:
    """Show a command, run it in a process of its own, whose memory ends with it, and give its JSON document.

    Raise InputError if it fails; it has said why.
    """
    print(f"\n$ plaudit {shlex.join(step)}", flush=True)
    # Not in the folder where the user stands, where a file runtime.py would be taken for ours.
    command = [sys.executable, "-P", "-m", *step, "--json", *loudness_words()]
    with waiting():  # it speaks for itself
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise InputError(
            f"`{' '.join(step[:2])}` ended with exit code {done.returncode}, and says why above; mend that and run the"
            " same command again: what was embedded is not embedded again"
        )
    return json.loads(done.stdout)
