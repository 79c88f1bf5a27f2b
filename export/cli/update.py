"""`plaudit update`, also `python -m heads update`: train a better head from people's votes and put it into service.

It is in this package because only `export` may import all four packages.
"""

import json
import os
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from embed.cli.console import table
from embed.options import Range
from embed.progress import stage
from embed.spec import InputError, require_same_identity
from embed.wording import one_line, unknown_name
from export.cli.whole import run_step
from export.config import ParityConfig
from heads.config import PromotionConfig
from runtime.config import VotesExportConfig

if TYPE_CHECKING:
    from embed.arrays import Floats
    from heads.data.comparisons import Labels
    from heads.data.features import Features
    from heads.evaluation.promotion import Verdict
    from runtime.collect.database import Database
    from runtime.scoring.bundle import Bundle
    from runtime.scoring.outputs import Output
    from runtime.scoring.scorer import Scorer

ADMIN_VARIABLES = ("PLAUDIT_ADMIN_TOKEN", "PLAUDIT_TOKEN")
RELOAD_S = 600.0  # loading a bundle may take this long
SAMPLES = 100  # how many pictures the bundle is compared with torch on


def update(
    *,
    votes: str,
    cache: Path,
    bundle: Path,
    data: tuple[str, ...] = (),
    config: Path | None = None,
    people: Literal["all", "weighted", "trusted"] = "all",
    name: str | None = None,
    images: Path | None = None,
    max_flips: Annotated[float, Range(0, below=1)] = ParityConfig.max_flips,
    promotion: PromotionConfig,
    work: Path | None = None,
    service: str | None = None,
    again: bool = False,
) -> dict[str, object]:
    """Train a head on people's votes, and put it in the place of the present one if it is better.

    Votes on pairs that were drawn at random measure both heads, with the paired test; all other votes teach the new
    head. Unless it is shown to be better, the bundle stays as it is. The database keeps a history of all updates.

    Example:
        plaudit export update --votes votes.db --cache cache --bundle bundle

    Args:
        votes: The database of votes: a file, or a URL of PostgreSQL.
        cache: The cache of the pictures, to which new ones are added.
        bundle: The bundle that is served. A better head replaces it in one step.
        data: Another table that also teaches the new head, such as the one that the present head was trained on.
        config: A file with options of the head, the loss and the training, as for `python -m heads train`.
        people: Whose votes count: those of all people, of all people weighted by their answers to gold pairs, or only
            of people who answer these right.
        name: The output that the votes are for, in a bundle with several outputs. Only its head is replaced; the other
            heads stay the same to the last bit.
        images: A folder of pictures on which a bundle with graphs at fp16 or int8, or with scaled decoding, is compared
            with torch.
        max_flips: The largest share of decided pairs of pictures that may change their order against torch.
        work: The folder for the exported votes and the new head. By default BUNDLE.update.
        service: The address of the service that loads the new bundle, such as http://127.0.0.1:8000. The token is in
            $PLAUDIT_ADMIN_TOKEN or $PLAUDIT_TOKEN. Without this option you reload the service yourself.
        again: Train again even if there are no new votes since the last update.
    """
    from runtime.collect import ledger
    from runtime.collect.database import open_database
    from runtime.collect.summary import history
    from runtime.scoring.bundle import open_bundle

    opened = open_bundle(bundle)
    name = _head_named(opened, name)
    if images is None and (what := _measured_on_pictures(opened, cache)):
        raise InputError(f"{bundle} {what} real pictures: add --images FOLDER")
    work = work or bundle.with_name(f"{bundle.name}.update")
    database = open_database(votes, new=False)
    try:
        with database.reading() as connection:
            seen, before = ledger.newest_vote(connection), history(connection)
        last = next((one for one in before if one.get("output") == name), None)
        if last is not None and last.get("seen") == list(seen) and not again:
            print("there are no votes since the last update; --again trains nevertheless")
            return {"promoted": False, "why": "no votes since the last update", "bundle": str(bundle)}
        tables = _export(database, work, people)
        options = ["--data", str(tables["teaching"]), *(word for one in data for word in ("--data", one))]
        options += ["--config", str(config)] if config else []
        options += _split_of(tables["teaching"])
        for step in _steps(cache, [tables["teaching"], tables["measuring"]], work / "head", options):
            run_step(step)
        verdict = _judged(tables["measuring"], cache, bundle, name, work / "head", promotion)
        document = {**verdict.to_json(), "old_bundle": opened.digest, "seen": list(seen)}
        document |= {} if name is None else {"output": name}
        if verdict.promoted:
            export = ["export", "onnx", str(work / "head"), "--out", str(bundle), "--overwrite", *_as_before(opened)]
            export += ["--max-flips", str(max_flips)]
            export += ["--images", str(images), "--samples", str(SAMPLES)] if images else []
            run_step([*export, *(["--names", name, "--into", str(bundle)] if name else [])])
            document["new_bundle"] = open_bundle(bundle).digest
        database.write(lambda c: ledger.note_promotion(c, time.time(), verdict.promoted, document))
    finally:
        database.close()
    print(*_lines(verdict), sep="\n")
    if verdict.promoted and service:
        document["reloaded"] = _reload(service)
    return {**document, "bundle": str(bundle), "head": str(work / "head")}


def _measured_on_pictures(bundle: "Bundle", cache: Path) -> str | None:
    """The part of the bundle that can only be made again with pictures, as words for a message, or None."""
    from embed.cache.store import Cache

    if set(bundle.graphs) != {"fp32"}:
        return f"has graphs at {', '.join(bundle.graphs)}; what is not fp32 is measured on"
    if bundle.scale is not None and Cache.open(cache).scale is None:
        return "decodes large JPEGs to a fraction, as the cache does not; that is measured on large"
    return None


def _as_before(bundle: "Bundle") -> list[str]:
    """The options that give a new bundle the precisions, the decoding and the towers of this one."""
    precisions = ["--precision", ",".join(bundle.graphs)]
    if bundle.is_head_alone:
        return [*precisions, "--head-only"]
    searched = ["--text-search"] if bundle.has_text_tower else []
    return [*precisions, *searched, "--decoding", "exact" if bundle.scale is None else "scaled"]


def _head_named(bundle: "Bundle", name: str | None) -> str | None:
    """Return the name of the head to train, or None if it is the only one and has no name.

    Raise InputError if `name` is not the name of a head.
    """
    heads = [entry["name"] for entry in bundle.manifest.get("outputs", []) if entry["kind"] == "head"]
    if not heads and name is not None:
        raise InputError(f"{bundle.path} has one output, which has no name: leave --name out")
    if heads and name is None:
        raise InputError(f"{bundle.path} has the heads {', '.join(heads)}; choose the one of the votes with --name")
    if name is not None and name not in heads:
        raise unknown_name(f"head in {bundle.path}", name, heads)
    return name


def _export(database: "Database", work: Path, people: Literal["all", "weighted", "trusted"]) -> dict[str, Path]:
    """Write the tables of votes that teach and that measure, and return their paths."""
    import pyarrow.parquet as pq

    from embed.files import write_with
    from runtime.collect.export import votes_table

    parts: tuple[Literal["teaching", "measuring"], ...] = ("teaching", "measuring")
    found: dict[str, Path] = {}
    for part in parts:
        with database.reading() as connection:
            rows = votes_table(connection, VotesExportConfig(part, people, without_fast=True))
        found[part] = work / f"{part}.parquet"
        write_with(found[part], partial(pq.write_table, rows))
    return found


def _split_of(votes: Path) -> list[str]:
    """Return the option by which training holds out rows: by prompt, or by part of the pictures without prompts."""
    import pyarrow.parquet as pq

    prompts = pq.read_table(votes, columns=["caption"])["caption"].unique().to_pylist()
    return ["--split-by", "cell"] if prompts == [""] else []


def _steps(cache: Path, tables: list[Path], head: Path, options: list[str]) -> list[list[str]]:
    """Return the commands that embed what is new and train a head."""
    from embed.cache.store import Cache

    opened = Cache.open(cache)
    backbone = ["--model", opened.source.model]
    backbone += ["--pretrained", opened.source.pretrained] if opened.source.pretrained else []
    backbone += ["--features", "projected,pooled"] if opened.pooled_embeddings() is not None else []
    embed = [] if opened.source.is_adopted else [["embed", "cache", *map(str, tables), *backbone, "--out", str(cache)]]
    return [*embed, ["heads", "train", str(cache), *options, "--out", str(head), "--overwrite"]]


@stage("judging the new head by votes")
def _judged(votes: Path, cache: Path, bundle: Path, name: str | None, head: Path, config: PromotionConfig) -> "Verdict":
    """Compare the served head, by its name if it has one, and the new one on the votes that measure."""
    import numpy as np

    from embed.cache.store import Cache
    from heads.api.options import LabelOptions
    from heads.evaluation.promotion import judged
    from heads.store.disk import load_head
    from heads.training.train import score_items
    from runtime.scoring.scorer import Scorer

    opened, scorer = Cache.open(cache), Scorer.load(bundle)
    require_same_identity(opened.identity, f"the cache {cache}", scorer.identity, f"the bundle {bundle}")
    (labels,), features = LabelOptions(max_missing=0.1).met(opened, [str(votes)])
    (output,) = scorer.named.chosen(None if name is None else [name])
    old = [_scores(scorer, output, features, labels, side) for side in (0, 1)]
    new = score_items(load_head(head)[0], features).astype(np.float64)[labels.items]
    return judged(labels, np.stack(old, axis=1), new, config)


def _scores(scorer: "Scorer", output: "Output", features: "Features", labels: "Labels", side: int) -> "Floats":
    """Return (m,) scores of a served head for one side of each vote."""
    import numpy as np
    import torch

    items = torch.from_numpy(labels.items[:, side])
    without = "text_embedding" in output.inputs and bool((features.prompt[items] < 0).any())
    inputs = tuple(name for name in output.inputs if not (without and name == "text_embedding"))
    read = {name: values.numpy() for name, values in features.take(items, inputs).items()}
    if without:  # all votes are for one prompt or none, which their table leaves out
        read["text_embedding"] = scorer.embed_prompts(labels.columns["shown_prompt"].to_pylist())
    return scorer.score_vectors(read, [output.name])[output.values["score"]].astype(np.float64)


def _lines(verdict: "Verdict") -> list[str]:
    what = "promoted" if verdict.promoted else "not promoted"
    lines = [f"{what}: {verdict.why}"]
    if verdict.old and verdict.new:
        each = {"the head that was served": verdict.old, "the new head": verdict.new}
        rows = [(name, f"{x.value:.3f}", f"{x.low:.3f} to {x.high:.3f}") for name, x in each.items()]
        lines += table(("pair accuracy, tie = ½", "mean", "95 % interval"), rows)
        lines.append(f"of {verdict.pairs} votes on pairs drawn at random; intervals resample {verdict.clusters}")
    return lines


def _reload(service: str) -> bool:
    """Let the service load the bundle. Raise InputError if it does not."""
    token = next((os.environ[name] for name in ADMIN_VARIABLES if os.environ.get(name)), "")
    address = f"{service.rstrip('/')}/admin/reload"
    headers = {"Authorization": f"Bearer {token.strip().splitlines()[0].strip()}"} if token.strip() else {}
    try:
        request = urllib.request.Request(address, b"", headers)
        with urllib.request.urlopen(request, timeout=RELOAD_S) as response:
            digest = json.loads(response.read())["bundle"]
    except (OSError, ValueError, KeyError) as error:
        detail = error.read().decode("utf-8", "replace") if isinstance(error, urllib.error.HTTPError) else ""
        raise InputError(
            f"the new bundle is in place, but {address} did not load it ({one_line(error)}) {detail[:200]};"
            " send SIGHUP to the service, or restart it"
        ) from None
    print(f"{service} now serves the bundle {digest[:12]}")
    return True
