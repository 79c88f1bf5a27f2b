"""The page of `heads evaluate --report`: a verdict, pictures, figures and plots, in one file."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np

from embed.arrays import Floats
from embed.cache.store import Cache
from embed.files import atomic_write
from embed.records.formats import Records
from heads.evaluation.evaluate import percentiles
from heads.evaluation.measured import Measured
from heads.report.drawn import certainty_plot, lead_of, leads_plot, reliability_plot, scatter_plot
from heads.report.figures import figures_of, number, sure_line, verdict_of
from heads.report.page import Picture, fill
from heads.report.plots import Estimate, intervals
from heads.report.tiles import read_tiles

logger = logging.getLogger(__name__)

SHOWN = 18  # pictures with the highest scores, and as many with the lowest
SHOWN_PAIRS = 12
SHOWN_SLICES = 20
MAX_CAPTION = 300  # letters
SCORERS = {
    "head": "this head",
    "zero_shot": "zero-shot CLIP",
    "ridge": "ridge regression",
    "prior": "prior of training rows",
    "image_only": "same head, pictures only",
    "prompt_only": "same head, prompts only",
    "without_source": "same head, without sources",
    "chance": "chance",
}


def write_report(
    path: Path,
    title: str,
    result: Mapping[str, Any],
    measured: Measured,
    scores: Mapping[str, Floats],
    records: Records,
    cache: Cache,
) -> None:
    """Write the page for a result of `heads evaluate` and the scores (m, sides) that it was computed from."""
    head = scores["head"]
    items, pairs = _items(measured, head), _wrong_pairs(measured, head)
    best, worst = items[:SHOWN], items[: -SHOWN - 1 : -1]
    shown = [item for item, _ in (*best, *worst)]
    shown += [int(side[i]) for i in pairs for side in (measured.pairs.a, measured.pairs.b)]
    picture, unread = _pictures(measured, shown, records, cache)
    if unread:
        logger.warning(f"{path}: {unread}; give the folder or URL of the pictures by --images-root")
    page = fill(
        "evaluation.html",
        title=title,
        verdict=verdict_of(result),
        trained_rows=result["trained_rows"],
        lacking=unread,
        rows=_rows(result),
        accuracies=_accuracies(result),
        no_interval=result["pair_accuracy"].get("reason"),
        absent="; ".join(f"{SCORERS[name]} ({reason})" for name, reason in result["baselines"].items() if reason),
        best=[picture(*item) for item in best],
        worst=[picture(*item) for item in worst],
        wrong=[_wrong(measured, head, pair, picture) for pair in pairs],
        slices=_slices(result),
        scatter=scatter_plot(measured, head),
        leads=leads_plot(measured, head),
        reliability=reliability_plot(measured, head),
        certainty=_certainty(result["uncertainty"]),
        board=_scoreboard(result, list(scores)),
    )
    with atomic_write(path) as file:
        file.write(page)


def _pictures(
    measured: Measured, items: Sequence[int], records: Records, cache: Cache
) -> tuple[Callable[[int, str], Picture], str]:
    """A function that makes the Picture of an item and a text, and a message if some pictures cannot be read."""
    labels = measured.labels
    wanted = {int(labels.image[item]) for item in items}
    tiles = read_tiles(records, cache, wanted)
    prompts = cache.metadata("prompts", ["caption"])["caption"]
    keys = cache.metadata("images", ["image_path"])["image_path"]

    def picture(item: int, detail: str) -> Picture:
        row, prompt = int(labels.image[item]), int(labels.prompt[item])
        text = prompts[prompt].as_py() if prompt >= 0 else Path(keys[row].as_py()).name
        tile = tiles.get(row)
        small, full = (tile.small, tile.full) if tile else ("", "")
        return Picture(small, shorten(text, MAX_CAPTION, placeholder=" …"), detail, full)

    lacking = len(wanted - tiles.keys())
    return picture, f"{lacking} of the {len(wanted)} pictures shown could not be read" if lacking else ""


def _rows(result: Mapping[str, Any]) -> str:
    """The rows that were measured, and the protocol."""
    protocol = result["protocol"]
    said = (
        f"{result['rows']:,} rows: {result['part']}. {result['pairs']:,} pairs ({protocol['pairs']}),"
        f" {protocol['folds']} held-out parts, {protocol['average']}; labelled ties {protocol['labelled_ties']};"
        f" intervals {protocol['interval']}."
    )
    return said.replace("95 %", "95\u00a0%")


def _accuracies(result: Mapping[str, Any]) -> str:
    """A plot of the pair accuracy of every scorer."""
    estimates = []
    for name, one in result["metrics"]["pair_accuracy"]["scores"].items():
        label = f"prior by {result['priors'][0]['by']}" if name == "prior" else SCORERS[name]
        kind = "mark" if name == "head" else "other"
        estimates.append(Estimate(label, one["value"], one["low"], one["high"], kind))
    return intervals(estimates, 0.5, "pairs ordered as people did, with 95 % interval")


def _scoreboard(result: Mapping[str, Any], names: Sequence[str]) -> dict[str, object]:
    """The metrics of all papers for every scorer as a table, and the missing ones by reason."""
    figures = figures_of(result, names, "{}\n{} to {}")
    rows = [[f"{label}\n{rule}", *cells] for label, rule, cells in figures.metrics]
    rows.append(["The head's lead in pair accuracy\non the same pairs", *figures.leads])
    rows.append(["p of no difference\npaired bootstrap", *figures.p_values])
    absent = "; ".join(f"{', '.join(labels)}: {reason}" for reason, labels in figures.missing.items())
    return {"header": ["", *(SCORERS[name] for name in names)], "rows": rows, "missing": absent}


def _slices(result: Mapping[str, Any]) -> dict[str, object] | None:
    """The pair accuracy of the head for each value of a column, or None if it was not measured."""
    if not (sliced := result["slices"]):
        return None
    shown = [s for s in sliced["slices"] if s["pair_accuracy"]["head"]["value"] is not None][:SHOWN_SLICES]
    figures = [(f"{s['value']} ({s['pairs']:,})", s["pair_accuracy"]["head"]) for s in shown]
    estimates = [Estimate(name, one["value"], one["low"], one["high"], "mark") for name, one in figures]
    plot = intervals(estimates, 0.5, "pairs ordered as people did, with 95 % interval") if estimates else None
    rest = len(sliced["slices"]) - len(shown)
    return {"by": sliced["by"], "across": sliced["across"], "rest": rest, "plot": plot}


def _certainty(found: Mapping[str, Any]) -> dict[str, object]:
    """How well the head's uncertainty works, or the reason why that was not measured."""
    if "missing" in found:
        return {"missing": found["missing"]}
    return {"missing": "", "by": found["by"], "plot": certainty_plot(found), "said": sure_line(found)}


def _items(measured: Measured, scores: Floats) -> list[tuple[int, str]]:
    """The items with the highest and the lowest percentiles, highest first, each with its text. A picture with its
    prompt occurs once."""
    row, side = np.nonzero(~np.isnan(scores))
    percentile = percentiles(scores, measured.split.fold)[row, side]
    order = np.argsort(-percentile, kind="stable")
    item = measured.labels.items[row, side][order]
    first = np.sort(np.unique(item, return_index=True)[1])
    ends = np.unique(np.concatenate([first[:SHOWN], first[-SHOWN:]]))
    said = [f"scored above {percentile[order[i]]:.0f} %{_said(measured, int(row[order[i]]))}" for i in ends]
    return list(zip(item[ends].tolist(), said, strict=True))


def _said(measured: Measured, row: int) -> str:
    """The rank, rating or count of a row as text to append, empty for comparisons."""
    values = measured.labels.values
    named = [name for name in ("rank", "rating", "count") if name in values]
    return f", {named[0]} {values[named[0]][row]:,g}" if named else ""


def _wrong_pairs(measured: Measured, scores: Floats) -> list[int]:
    """The pairs that the head orders wrong by the largest difference. Each picture occurs once."""
    lead = lead_of(measured, scores)
    found: list[int] = []
    met: set[int] = set()
    image = measured.labels.image
    for i in np.argsort(np.where(measured.decided, lead, np.inf), kind="stable")[:10_000]:
        pictures = {int(image[measured.pairs.a[i]]), int(image[measured.pairs.b[i]])}
        if lead[i] >= 0 or len(found) == SHOWN_PAIRS:
            break
        if not pictures & met:
            found.append(int(i))
            met |= pictures
    return found


def _wrong(
    measured: Measured, scores: Floats, pair: int, picture: Callable[[int, str], Picture]
) -> tuple[Picture, Picture]:
    """The two pictures of a pair. The one that people preferred comes first."""
    pairs, (score_a, score_b) = measured.pairs, measured.of_pairs(scores)
    a, b = (
        picture(item[pair], f"score {number(score[pair], '.2f')}{_said(measured, row[pair])}")
        for item, score, row in ((pairs.a, score_a, pairs.row_a), (pairs.b, score_b, pairs.row_b))
    )
    return (a, b) if pairs.target[pair] > 0.5 else (b, a)
