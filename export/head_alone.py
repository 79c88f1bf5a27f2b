"""A head as a bundle without its backbone, for vectors that are made elsewhere: their backbone may not be here at all.

The graph is compared with torch on random unit vectors: what is proven is the graph, and nothing of the vectors.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embed.arrays import Float32s
from embed.files import atomic_write, replacing
from embed.progress import Progress, silent
from embed.spec import InputError
from export import parity
from export.bundle_files import OPEN, begun_manifest, check_graphs, finish, save_reference, write_graphs, write_manifest
from export.bundle_writer import REFERENCE_ROWS
from export.config import ExportConfig, ParityConfig
from export.graphs import compose
from export.measure import score_matrix, torch_scores
from runtime.scoring.bundle import WEIGHTS_FILE, open_bundle
from runtime.scoring.manifest import BundleManifest, Parity, PrecisionParity
from runtime.scoring.scorer import Scorer

if TYPE_CHECKING:
    from heads.committee import Committee
    from heads.models import Head

VECTORS = 64  # of pictures, to compare scores on


def export_head_alone(
    out: Path,
    head: "Head",
    committee: "Committee | None",
    head_manifest: Mapping[str, Any],
    config: ExportConfig,
    progress: Progress = silent,
    overwrite: bool = False,
) -> BundleManifest:
    """Write the head to `out` (see embed.files.replacing) as a bundle that scores vectors, and return its manifest.

    Raise ParityError, and write nothing, if it is off, and InputError for what is of towers: precisions and pictures.
    """
    if config.pictures or config.precisions != ("fp32",):
        raise InputError("--precision and --images are of towers, and this bundle has none; leave them out")
    widths = {name: _width(head_manifest, name) for name in head.inputs}
    with replacing(out, "bundle", overwrite) as folder, progress(3, "steps", "export") as step:
        part = compose.export_scores(head, committee, widths, head_manifest.get("calibration"))
        with atomic_write(folder / WEIGHTS_FILE) as file:
            graphs = write_graphs(folder, "fp32", {"fp32": {"head": part}}, compose.WeightsWriter(file))
        check_graphs(folder)
        vectors = {name: _random_vectors(REFERENCE_ROWS, width, i) for i, (name, width) in enumerate(widths.items())}
        names = save_reference(folder, head, committee, vectors)
        open_limits = dict.fromkeys(names, OPEN)
        manifest = begun_manifest(head, committee, head_manifest, None, {"fp32": graphs}, {"fp32": open_limits})
        write_manifest(folder, manifest)
        step(1, "comparing with torch")
        manifest["parity"] = measure_head_alone(folder, head, config, committee)
        return finish(folder, manifest, step)


def _width(head_manifest: Mapping[str, Any], name: str) -> int:
    return int(head_manifest["head"]["pooled_dim" if name == "image_pooled" else "dim"])


def measure_head_alone(
    folder: Path, head: "Head", config: ParityConfig, committee: "Committee | None" = None
) -> Parity:
    """The bundle's head against torch on random vectors, of as many prompts as the config has.

    Raise ParityError as `export.measure.measure` does.
    """
    exported = Scorer(open_bundle(folder))
    widths = {name: int(shape[1]) for name, (_, shape) in exported.bundle.graph("fp32", "head").inputs.items()}
    counts = {name: len(config.prompts) if name == "text_embedding" else VECTORS for name in widths}
    vectors = {name: _random_vectors(counts[name], width, 7 + i) for i, (name, width) in enumerate(widths.items())}

    def ours(output: str) -> Float32s:
        return score_matrix(vectors, lambda rows: exported.score_vectors(rows)[output])

    theirs = score_matrix(vectors, partial(torch_scores, head))
    limit = parity.MAX_SCORE_DIFFERENCE * max(1.0, float(np.abs(theirs).max()))
    scores = parity.score_parity("fp32", theirs, ours("score"), _rounding_noise(vectors, theirs, head))
    parity.require_parity(scores, 1.0, limit, config.max_flips)
    figures: PrecisionParity = {"scores": {**asdict(scores), "limit": limit}, "vectors": {}}
    if committee is not None and "uncertainty" in exported.outputs:
        doubts = score_matrix(vectors, partial(torch_scores, committee))
        figures["uncertainty"] = parity.uncertainty_parity("fp32", doubts, ours("uncertainty"), limit)
    return {"pictures": "vectors", "precisions": {"fp32": figures}}


def _rounding_noise(vectors: Mapping[str, Float32s], scores: Float32s, head: "Head") -> float:
    """By how much rounding alone moves the difference of two scores: torch against torch, one picture at a time."""
    alone = [
        score_matrix(
            {name: rows if name == "text_embedding" else rows[i : i + 1] for name, rows in vectors.items()},
            partial(torch_scores, head),
        )
        for i in range(8)
    ]
    difference = float(np.abs(np.concatenate(alone) - scores[:8]).max())
    return 2 * max(difference, float(np.finfo(np.float32).eps))


def _random_vectors(rows: int, width: int, seed: int) -> Float32s:
    """(rows, width) of length 1, in directions that are all as likely."""
    vectors = np.random.default_rng(seed).standard_normal((rows, width))
    unit: Float32s = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit
