"""Export a head as a bundle without its backbone, for vectors that are made elsewhere, perhaps by an unknown backbone.

The graph is compared with torch on random unit vectors. This checks the graph and says nothing about the real vectors.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from embed.arrays import Float32s
from embed.files import atomic_write, replacing
from embed.progress import Progress, silent
from embed.spec import InputError
from export.bundle_files import OPEN, begun_manifest, check_graphs, finish, save_reference, write_graphs, write_manifest
from export.bundle_writer import REFERENCE_ROWS
from export.config import ExportConfig, ParityConfig
from export.graphs import compose
from export.measure import Compared, made_from, noise_of, score_matrices
from export.outputs import Outputs
from heads.base import SOURCE
from runtime.scoring.bundle import WEIGHTS_FILE, open_bundle
from runtime.scoring.manifest import BundleManifest, Parity
from runtime.scoring.scorer import Scorer

VECTORS = 64  # how many vectors of pictures scores are compared on


def export_head_alone(
    out: Path,
    outputs: Outputs,
    config: ExportConfig,
    progress: Progress = silent,
    overwrite: bool = False,
) -> BundleManifest:
    """Write heads to `out` (see embed.files.replacing) as a bundle that scores vectors, and return its manifest.

    Raise InputError for options that need towers: precisions and pictures. Raise ParityError, and write nothing, if the
    bundle differs too much from torch.
    """
    if config.pictures or config.precisions != ("fp32",):
        raise InputError("--precision and --images are for towers, but this bundle has none; leave them out")
    widths = {name: _width(outputs, name) for name in outputs.inputs}
    with replacing(out, "bundle", overwrite) as folder, progress(3, "steps", "export") as step:
        part = outputs.graph(widths)
        with atomic_write(folder / WEIGHTS_FILE) as file:
            graphs = write_graphs(folder, "fp32", {"fp32": {"head": part}}, compose.WeightsWriter(file))
        check_graphs(folder)
        vectors = {name: _random_vectors(REFERENCE_ROWS, width, i) for i, (name, width) in enumerate(widths.items())}
        vectors = {name: made_from(rows) if name == SOURCE else rows for name, rows in vectors.items()}
        names = save_reference(folder, outputs, vectors)
        open_limits = dict.fromkeys(names, OPEN)
        manifest = begun_manifest(outputs, outputs.heads[0].manifest, None, {"fp32": graphs}, {"fp32": open_limits})
        write_manifest(folder, manifest)
        step(1, "comparing with torch")
        manifest["parity"] = measure_head_alone(folder, outputs, config)
        return finish(folder, manifest, step)


def _width(outputs: Outputs, name: str) -> int:
    shape = next(one.manifest["head"] for one in outputs.heads if name != "image_pooled" or name in one.head.inputs)
    return int(shape["pooled_dim" if name == "image_pooled" else "dim"])


def measure_head_alone(folder: Path, outputs: Outputs, config: ParityConfig) -> Parity:
    """Compare the bundle's heads with torch on random vectors of pictures and of as many prompts as in `config`.

    Raise ParityError as `export.measure.measure` does.
    """
    exported = Scorer(open_bundle(folder))
    widths = {name: int(shape[1]) for name, (_, shape) in exported.bundle.graph("fp32", "head").inputs.items()}
    counts = {name: len(config.prompts) if name == "text_embedding" else VECTORS for name in widths}
    vectors = {name: _random_vectors(counts[name], width, 7 + i) for i, (name, width) in enumerate(widths.items())}
    vectors = {name: made_from(rows) if name == SOURCE else rows for name, rows in vectors.items()}

    compared = Compared(exported, outputs, vectors, config.max_flips)
    figures = compared.figures("fp32", vectors, {}, _rounding_noise(vectors, compared.theirs, outputs))
    return {"pictures": "vectors", "precisions": {"fp32": figures}}


def _rounding_noise(
    vectors: Mapping[str, Float32s], scores: Mapping[str, Float32s], outputs: Outputs
) -> dict[str, float]:
    """Return how much rounding alone changes the difference of two scores, by output.

    To find it, torch computes the same scores from all pictures at once and from one at a time.
    """
    alone = [
        score_matrices(
            {name: rows if name == "text_embedding" else rows[i : i + 1] for name, rows in vectors.items()},
            outputs.scores,
        )
        for i in range(8)
    ]
    again = {name: np.concatenate([one[name] for one in alone]) for name in scores}
    return {name: noise_of(again[name], scores[name][:8]) for name in scores}


def _random_vectors(rows: int, width: int, seed: int) -> Float32s:
    """Return (rows, width) vectors of length 1, with all directions equally likely."""
    vectors = np.random.default_rng(seed).standard_normal((rows, width))
    unit: Float32s = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit
