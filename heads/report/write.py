"""The page of `heads evaluate --report`: figures, plots, and the best and worst pictures, in one file."""

import html
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np

from embed.arrays import Floats
from embed.cache.store import Cache
from embed.files import atomic_write
from embed.inputs.thumbnails import data_uri, grey_square
from embed.records.formats import Records
from heads.data.comparisons import appeal, exposures_of
from heads.evaluation.evaluate import percentiles
from heads.evaluation.measured import Measured
from heads.evaluation.scoreboard import MAPS, Map, reliability
from heads.metrics import expected_calibration_error
from heads.report.figures import figures_of, number, sure_line, verdict_of
from heads.report.page import Axis, Estimate, Picture, Plot, cards, document, intervals, text_table, ticks
from heads.report.tiles import read_tiles

logger = logging.getLogger(__name__)

SHOWN = 18  # pictures at either end
SHOWN_PAIRS = 12
SHOWN_SLICES = 20
MAX_CAPTION = 90  # letters
LOWEST_SHARE = 0.35  # ordered right, that a plot of certainty has room for
SCORERS = {
    "head": "this head",
    "zero_shot": "zero-shot CLIP",
    "ridge": "ridge regression",
    "prior": "prior of training rows",
    "image_only": "same head, pictures only",
    "prompt_only": "same head, prompts only",
    "without_source": "same head, without source pictures",
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
    """Write the page of what `heads evaluate` returns and the scores (m, sides) that it comes from."""
    labels, items, pairs = measured.labels, _items(measured, scores["head"]), _wrong_pairs(measured, scores["head"])
    best, worst = items[:SHOWN], items[: -SHOWN - 1 : -1]
    shown = [item for item, _ in (*best, *worst)]
    shown += [int(side[i]) for i in pairs for side in (measured.pairs.a, measured.pairs.b)]
    wanted = {int(labels.image[item]) for item in shown}
    tiles = read_tiles(records, cache, wanted)
    grey, lacking = data_uri(grey_square()), ""
    if unread := len(wanted - tiles.keys()):
        lacking = f"{unread} of the {len(wanted)} pictures shown could not be read, and are grey"
        logger.warning(f"{path}: {lacking}; name the folder or URL where they start with --images-root")
    prompts = cache.metadata("prompts", ["caption"])["caption"]

    def picture(item: int, detail: str) -> Picture:
        prompt = int(labels.prompt[item])
        caption = shorten(prompts[prompt].as_py(), MAX_CAPTION, placeholder=" …") if prompt >= 0 else ""
        return Picture(tiles.get(int(labels.image[item]), grey), caption, detail)

    sections = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{lacking}</p>" if lacking else "",
        f'<p class="verdict">{html.escape(verdict_of(result))}</p>',
        _rows(result),
        "<h2>Pair accuracy, equal scores half right</h2>",
        _accuracies(result),
        _slices(result),
        f'<h2>Scored highest</h2><div class="row large">{cards([picture(*item) for item in best])}</div>',
        f'<h2>Scored lowest</h2><div class="row large">{cards([picture(*item) for item in worst])}</div>',
        _wrong(measured, scores["head"], pairs, picture),
        _scatter(measured, scores["head"]),
        "<h2>Does a score mean what it says?</h2>",
        "<p>How often the head is right, by how sure it says it is, on pairs that its scores were not fitted on."
        " On the dashed line they agree.</p>",
        _reliability(measured, scores["head"]),
        _certainty(result["uncertainty"]),
        "<h2>How far apart the preferred picture is scored</h2>",
        _leads(measured, scores["head"]),
        "<h2>By every paper's rule</h2>",
        _scoreboard(result, list(scores)),
    ]
    with atomic_write(path) as file:
        file.write(document(title, "\n".join(filter(None, sections))).encode())


def _rows(result: Mapping[str, Any]) -> str:
    """Which rows were measured, by which protocol, and a warning where some of them were trained on."""
    protocol = result["protocol"]
    said = (
        f"{result['pairs']:,} pairs ({protocol['pairs']}), {protocol['folds']} held-out parts, {protocol['average']};"
        f" labelled ties {protocol['labelled_ties']}; intervals {protocol['interval']}.".replace("95 %", "95\u00a0%")
    )
    shown = f"<p>{result['rows']:,} rows: {html.escape(result['part'])}. {html.escape(said)}</p>"
    if seen := result["trained_rows"]:
        shown += f"\n<p><strong>{seen:,} of these rows were trained on: this is not an honest test.</strong></p>"
    return shown


def _accuracies(result: Mapping[str, Any]) -> str:
    """The pair accuracy of every scorer, and why others have none."""
    estimates = []
    for name, one in result["metrics"]["pair_accuracy"]["scores"].items():
        label = f"prior by {result['priors'][0]['by']}" if name == "prior" else SCORERS[name]
        kind = "mark" if name == "head" else "other"
        estimates.append(Estimate(label, one["value"], one["low"], one["high"], kind))
    reason = result["pair_accuracy"].get("reason")
    plot = intervals(estimates, 0.5, "pair accuracy, with its 95 % interval")
    absent = [f"{SCORERS[name]} ({reason})" for name, reason in result["baselines"].items() if reason]
    plot += f"\n<p>There are no intervals: {html.escape(reason)}.</p>" if reason else ""
    return plot + (f"\n<p>Not measured: {html.escape('; '.join(absent))}.</p>" if absent else "")


def _scoreboard(result: Mapping[str, Any], names: Sequence[str]) -> str:
    figures = figures_of(result, names, "{}\n{} to {}")
    rows = [[f"{label}\n{rule}", *cells] for label, rule, cells in figures.metrics]
    rows.append(["The head's lead in pair accuracy\non the same pairs", *figures.leads])
    rows.append(["p of no difference\npaired bootstrap", *figures.p_values])
    absent = "; ".join(f"{', '.join(labels)}: {reason}" for reason, labels in figures.missing.items())
    note = f"<p>Not given for these labels: {html.escape(absent)}.</p>" if absent else ""
    return text_table(["", *(SCORERS[name] for name in names)], rows) + note


def _slices(result: Mapping[str, Any]) -> str:
    if not (sliced := result["slices"]):
        return ""
    shown = [s for s in sliced["slices"] if s["pair_accuracy"]["head"]["value"] is not None][:SHOWN_SLICES]
    figures = [(f"{s['value']} ({s['pairs']:,})", s["pair_accuracy"]["head"]) for s in shown]
    estimates = [Estimate(name, one["value"], one["low"], one["high"], "mark") for name, one in figures]
    by = html.escape(sliced["by"])
    note = (
        f"Pairs of two pictures with the same {by}, and how many; {sliced['across']:,} pairs of two values are in none."
    )
    if rest := len(sliced["slices"]) - len(shown):
        note += f" {rest} more values have fewer pairs."
    drawn = intervals(estimates, 0.5, "pair accuracy of the head") if estimates else ""
    return f"<h2>Pair accuracy by {by}</h2><p>{note}</p>{drawn}"


def _reliability(measured: Measured, scores: Floats) -> str:
    halves = [(step / 10, f"{step / 10:g}") for step in range(5, 11)]
    plot = Plot(Axis(0.5, 1, halves, "how sure the head is"), Axis(0.4, 1, ticks(0.4, 1), "how often right"), 640, 420)
    marks, said = [plot.line([(0.5, 0.5), (1, 1)], "reference")], []
    kinds: dict[Map, str] = {"raw": "other", "temperature": "mark"}
    for map, kind in kinds.items():
        bins = reliability(measured, scores, map)
        if not bins:
            continue
        points = [(b.confidence, max(b.accuracy, 0.4)) for b in bins]
        marks.append(plot.line(points, kind))
        for b, point in zip(bins, points, strict=True):
            title = f"{b.count:,} pairs: {b.confidence:.0%} sure, {b.accuracy:.0%} right"
            marks.append(plot.dot(*point, kind, 4, title))
        colour = "grey" if kind == "other" else "orange"
        said.append(f"{colour}: {MAPS[map][0]} (ECE {expected_calibration_error(bins):.3f})")
    return plot.svg(marks, "reliability") + f"<p>{'; '.join(said)}.</p>"


def _certainty(found: Mapping[str, Any]) -> str:
    """The share of pairs ordered right by their difference over its uncertainty."""
    title = "<h2>Does the head know how sure it is?</h2>"
    if "missing" in found:
        return f"{title}<p>Not measured: {html.escape(found['missing'])}.</p>"
    bins = found["bins"]
    reach = max(bin["middle"] for bin in bins) * 1.05 or 1.0
    ends = [(step / 10, f"{step * 10} %") for step in range(4, 11)]
    axis = Axis(0, reach, ticks(0, reach), "difference of two scores over the uncertainty of both")
    plot = Plot(axis, Axis(LOWEST_SHARE, 1, ends, "ordered right"), 640, 420)
    marks = [plot.line([(0, 0.5), (reach, 0.5)], "reference")]
    for bin in bins:
        at, right = bin["middle"], bin["right"]
        if right["low"] is not None:
            whisker = [(at, max(right[end], LOWEST_SHARE)) for end in ("low", "high")]
            marks.append(plot.line(whisker, "mark whisker"))
        said = f"{bin['pairs']:,} pairs, {bin['low']:.2f} to {bin['high']:.2f}: {right['value']:.0%} right"
        marks.append(plot.dot(at, max(right["value"], LOWEST_SHARE), "mark", title=said))
    note = (
        "Each score comes with an uncertainty: how far it would move had other rows been trained on. The uncertainty of"
        " a difference is the root of the sum of both squares. A dot is an eighth of the pairs held out, with its"
        f" 95\u00a0% interval; the uncertainties are of {found['by']}."
    )
    return f"{title}<p>{html.escape(note)}</p>{plot.svg(marks, 'certainty')}<p>{html.escape(sure_line(found))}.</p>"


def _lead(measured: Measured, scores: Floats) -> Floats:
    """(p,) by how much the preferred picture of each pair is scored above the other."""
    a, b = measured.of_pairs(scores)
    return np.where(measured.pairs.target > 0.5, a - b, b - a)


def _leads(measured: Measured, scores: Floats) -> str:
    """A histogram of the preferred picture's score less the other's: what is left of zero is wrong."""
    difference = _lead(measured, scores)[measured.decided]
    reach = float(np.quantile(np.abs(difference), 0.995)) or 1.0
    counts, edges = np.histogram(np.clip(difference, -reach, reach), 40, (-reach, reach))
    share = counts / counts.sum()
    plot = Plot(
        Axis(-reach, reach, ticks(-reach, reach), "score of the preferred picture less that of the other"),
        Axis(0, float(share.max()) * 1.05, [], "share of pairs"),
        height=260,
    )
    marks = [
        plot.bar(low, high, float(value), "mark" if low + high > 0 else "other", f"{value:.1%} of the pairs")
        for low, high, value in zip(edges[:-1], edges[1:], share, strict=True)
    ]
    return "<p>Orange: ordered as people did. The outermost bars hold what lies beyond.</p>" + plot.svg(marks, "leads")


def _scatter(measured: Measured, scores: Floats) -> str:
    """The percentile of a score against what people said, for ratings and counts."""
    labels = measured.labels
    if labels.kind not in ("ratings", "counts"):
        return ""
    rows = np.flatnonzero(measured.split.fold >= 0)
    rows = np.random.default_rng(measured.protocol.seed).permutation(rows)[:3000]  # what a page can draw
    percentile = percentiles(scores, measured.split.fold)[rows, 0]
    liked = appeal(labels)[rows]
    counted = labels.kind == "counts"
    name = "rating" if not counted else "count" if exposures_of(labels) is None else "rate"
    # What is nothing stands at the left end, a step of ten below the smallest that is something.
    least = float(liked[liked > 0].min(initial=1.0)) / 10
    drawn = np.log10(np.maximum(liked, least)) if counted else liked
    low, high = float(drawn.min()), float(drawn.max()) + (1e-9 if drawn.min() == drawn.max() else 0.0)
    powers = range(math.ceil(np.log10(least) + 0.5), math.floor(high) + 1)
    marks_at = [(float(p), f"{10.0**p:,.10g}") for p in powers if p >= low] if counted else ticks(low, high)
    if counted and (liked == 0).any():
        marks_at.append((low, "0"))
    percents = [(p, f"{p} %") for p in (0, 25, 50, 75, 100)]
    plot = Plot(Axis(low, high, marks_at, name), Axis(0, 100, percents, "percentile of the score"), pad=6)
    dots = [
        plot.dot(float(x), float(y), "mark dot", 3, f"{name} {value:g}, scored above {y:.0f} %")
        for x, y, value in zip(drawn, percentile, liked, strict=True)
    ]
    return f"<h2>Score against {name}</h2><p>Up: scored above more of its part.</p>" + plot.svg(dots, "scores")


def _items(measured: Measured, scores: Floats) -> list[tuple[int, str]]:
    """The items at either end, each picture once with its prompt, by the percentile of its score, highest first; and
    what is said of each."""
    row, side = np.nonzero(~np.isnan(scores))
    percentile = percentiles(scores, measured.split.fold)[row, side]
    order = np.argsort(-percentile, kind="stable")
    item = measured.labels.items[row, side][order]
    first = np.sort(np.unique(item, return_index=True)[1])
    ends = np.unique(np.concatenate([first[:SHOWN], first[-SHOWN:]]))
    said = [f"scored above {percentile[order[i]]:.0f} %{_said(measured, int(row[order[i]]))}" for i in ends]
    return list(zip(item[ends].tolist(), said, strict=True))


def _said(measured: Measured, row: int) -> str:
    """What people said of a row, to follow other words; nothing for comparisons."""
    values = measured.labels.values
    named = [name for name in ("rank", "rating", "count") if name in values]
    return f", {named[0]} {values[named[0]][row]:,g}" if named else ""


def _wrong_pairs(measured: Measured, scores: Floats) -> list[int]:
    """The pairs ordered most surely wrong, each picture once."""
    lead = _lead(measured, scores)
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


def _wrong(measured: Measured, scores: Floats, pairs: Sequence[int], picture: Callable[[int, str], Picture]) -> str:
    if not pairs:
        return ""
    a, b, rows = measured.pairs.a, measured.pairs.b, []
    score_a, score_b = measured.of_pairs(scores)
    for i in pairs:
        sides = [(a[i], score_a[i], measured.pairs.row_a[i]), (b[i], score_b[i], measured.pairs.row_b[i])]
        preferred = sides if measured.pairs.target[i] > 0.5 else sides[::-1]
        shown = [picture(item, f"score {number(score, '.2f')}{_said(measured, row)}") for item, score, row in preferred]
        rows.append(f'<div class="row large">{cards(shown)}</div>')
    return (
        "<h2>Most surely wrong</h2><p>People preferred the left picture of each two, the head the right one.</p>"
        f'<div class="row pairs">{"".join(rows)}</div>'
    )
