"""Compare a bundle with torch: run the same pictures and prompts through both. `export.parity` has the figures.

The bundle is opened with the runtime's own `Scorer`, so what is compared is what will serve.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embed.arrays import Float32s, UInt8s, cosines
from embed.config import Wanted
from embed.graphs.trace import Certificate, certificate
from embed.inputs.images import ImageError, load_pixels, load_scaled
from embed.inputs.scaled import SCALES
from embed.progress import stage
from embed.spec import InputError, Preprocess
from export import parity
from export.config import ExportConfig, ParityConfig
from export.outputs import Outputs
from heads.base import SOURCE
from heads.config import picture_inputs
from runtime.config import Precision, SessionConfig
from runtime.scoring.bundle import open_bundle
from runtime.scoring.graphs import runnable
from runtime.scoring.manifest import DecodingEntry, DecodingParity, OutputParity, Parity, PrecisionParity
from runtime.scoring.scorer import Picture, Scorer

if TYPE_CHECKING:
    from embed.backbones.backbone import Backbone

logger = logging.getLogger(__name__)

Scores = Callable[[Mapping[str, Float32s]], dict[str, Float32s]]  # from vectors with n rows each to (n,) by output

TORCH_BATCH = 8  # pictures; a larger batch is no faster on a CPU and takes more memory
GENERATED_PICTURES = 64


@stage("comparing with torch")
def measure(folder: Path, backbone: "Backbone", outputs: Outputs | None, config: ParityConfig) -> Parity:
    """Compare the bundle's precisions with torch, on the given pictures or else on generated ones.

    Raise ParityError if fp32 differs by more than its limits, or if for one output more than `max_flips` of the decided
    pairs change their order.

    Without `outputs`, which are in torch, the bundle's own graph scores torch's vectors, and only the towers are
    compared. Uncertainties are compared if both torch and the bundle have a committee. Graphs for CUDA are left out if
    this machine has no CUDA.
    """
    sources: Sequence[Picture] = config.pictures or parity.generated_pictures(GENERATED_PICTURES)
    result: Parity = {"pictures": "real" if config.pictures else "generated", "precisions": {}}
    bundle, prompts = open_bundle(folder), config.prompts
    exported = Scorer(bundle)  # only its heads run, and they are the same at any precision
    pixels = _pixels(exported, sources)
    inputs = dict.fromkeys([*exported.inputs, *(["text_embedding"] if bundle.has_text_tower else [])])
    all_vectors = torch_vectors(backbone, [*inputs], pixels, prompts)
    reference = {name: all_vectors[name] for name in all_vectors if name in exported.inputs}
    compared = Compared(exported, outputs, reference, config.max_flips)
    noise = rounding_noise(backbone, pixels, reference, compared.score)
    for precision in runnable(bundle.graphs, SessionConfig()):
        session = SessionConfig(precision=precision)
        vectors = bundle_vectors(Scorer(bundle, session), pixels, prompts)
        certificates = {n: certificate(precision, all_vectors[n], vectors[n]) for n in vectors if n != SOURCE}
        vectors = {name: vectors[name] for name in reference}
        figures = compared.figures(precision, vectors, certificates, noise)
        ours = compared.ours(vectors)
        figures["whole_graph"] = whole_graph_difference(Scorer(bundle, session), pixels[:7], prompts, ours)
        result["precisions"][precision] = figures
    if bundle.scale and (large := large_pixels(config.pictures, bundle.identity.preprocess, bundle.scale)):
        exact, scaled = (torch_vectors(backbone, exported.inputs, pixels, prompts) for pixels in large)
        result["decoding"] = _decoding_parity(exact, scaled, compared.score, noise)
    return result


class Compared:
    """What a bundle is compared with: torch's scores and uncertainties of the `reference` vectors, by output."""

    def __init__(
        self, exported: Scorer, outputs: Outputs | None, reference: Mapping[str, Float32s], max_flips: float
    ) -> None:
        self.exported = exported
        self.score: Scores = outputs.scores if outputs else partial(graph_values, exported, "score")
        self.theirs = score_matrices(reference, self.score)
        doubts = score_matrices(reference, outputs.uncertainties) if outputs else {}
        there = [output.name for output in exported.named.all if "uncertainty" in output.values]
        self.doubts = {name: doubts[name] for name in there if name in doubts}
        self.max_flips = max_flips

    def ours(self, vectors: Mapping[str, Float32s]) -> dict[str, Float32s]:
        """Return the scores (pictures, prompts) of the bundle's heads."""
        return score_matrices(vectors, partial(graph_values, self.exported, "score"))

    def figures(
        self,
        precision: Precision,
        vectors: Mapping[str, Float32s],
        certificates: Mapping[str, Certificate],
        noise: Mapping[str, float],
    ) -> PrecisionParity:
        """Return the figures for the bundle's vectors at a precision, whose certificates are given.

        Raise ParityError if they are beyond the limits.
        """
        ours, doubts = self.ours(vectors), score_matrices(vectors, partial(graph_values, self.exported, "uncertainty"))
        cosine_min = min((one.cosine_min for one in certificates.values()), default=1.0)
        found: dict[str, OutputParity] = {}
        for name, theirs in self.theirs.items():
            limit = parity.MAX_SCORE_DIFFERENCE * max(1.0, float(np.abs(theirs).max()))
            scores = parity.score_parity(precision, theirs, ours[name], noise[name])
            of = name if len(self.theirs) > 1 else ""
            parity.require_parity(scores, cosine_min, limit, self.max_flips, of)
            found[name] = {"scores": {**asdict(scores), "limit": limit if precision == "fp32" else None}}
            if name in self.doubts:
                doubt = parity.uncertainty_parity(precision, self.doubts[name], doubts[name], limit)
                found[name]["uncertainty"] = doubt
        first, *others = found
        vectors_found = {name: one.to_json() for name, one in certificates.items()}
        figures: PrecisionParity = {"scores": found[first]["scores"], "vectors": vectors_found}
        if "uncertainty" in found[first]:
            figures["uncertainty"] = found[first]["uncertainty"]
        if others:
            figures["outputs"] = {name: found[name] for name in others}
        return figures


def graph_values(scorer: Scorer, value: str, vectors: Mapping[str, Float32s]) -> dict[str, Float32s]:
    """Return a value (n,) of every output of the bundle that has it, by the output's name."""
    given = scorer.score_vectors(vectors)
    return {output.name: given[output.values[value]] for output in scorer.named.all if value in output.values}


def _decoding_parity(
    exact: dict[str, Float32s], scaled: dict[str, Float32s], score: Scores, noise: Mapping[str, float]
) -> DecodingParity:
    """Return how decoding changes the scores of the output that it changes most.

    Both sides are computed by torch, so that nothing else differs.
    """
    theirs, ours = score_matrices(exact, score), score_matrices(scaled, score)
    all_moved = [parity.score_parity("fp32", theirs[name], ours[name], noise[name]) for name in theirs]
    moved = max(all_moved, key=lambda one: one.flips)
    return {
        "pictures": moved.pictures,
        "cosine_min": float(min(cosines(exact[name], scaled[name]).min() for name in exact if name != SOURCE)),
        "max_score_difference": moved.max_score_difference,
        "decided_pairs": moved.decided_pairs,
        "flips": moved.flips,
    }


def large_pixels(paths: Sequence[Path], spec: Preprocess, scale: int) -> tuple[UInt8s, UInt8s] | None:
    """Return pixels (n, h, w, 3) of those files that are scaled down at this scale: exact ones, and scaled ones.

    Return None if there are fewer than two.
    """
    pairs = []
    for path in paths:
        with contextlib.suppress(ImageError, OSError):
            data = path.read_bytes()
            pixels, _, scaled = load_scaled(data, spec, scale=scale)
            if scaled:
                pairs.append((load_pixels(data, spec)[0], pixels))
    if len(pairs) < 2:
        return None
    exact, ours = (np.stack(pixels) for pixels in zip(*pairs, strict=True))
    return exact, ours


def bundle_vectors(scorer: Scorer, pixels: UInt8s, prompts: Sequence[str]) -> dict[str, Float32s]:
    """Return the vectors of the bundle's towers for pixels (n, h, w, 3) and prompts."""
    vectors = scorer.encode_pixels(pixels)
    if scorer.reads_source:
        vectors[SOURCE] = made_from(vectors["image_embedding"])
    return {**vectors, "text_embedding": scorer.embed_prompts(prompts)} if scorer.bundle.has_text_tower else vectors


def rounding_noise(
    backbone: "Backbone", pixels: UInt8s, reference: Mapping[str, Float32s], score: Scores
) -> dict[str, float]:
    """Return how much rounding alone changes the difference of two scores, by output.

    To find it, torch computes the same scores from all pictures at once and from one at a time.
    """
    few = pixels[:8]
    images = {name: values[: len(few)] for name, values in reference.items() if name != "text_embedding"}
    computed = [name for name in images if name != SOURCE]
    alone = [torch_vectors(backbone, computed, few[i : i + 1], ()) for i in range(len(few))]
    again = {**images, **{name: np.concatenate([vectors[name] for vectors in alone]) for name in computed}}
    moved, still = (score_matrices({**reference, **part}, score) for part in (again, images))
    return {name: noise_of(moved[name], still[name]) for name in still}


def noise_of(moved: Float32s, still: Float32s) -> float:
    """Return how much the difference of two scores changes if scores change as much as from `still` to `moved`."""
    return 2 * max(float(np.abs(moved - still).max()), float(np.finfo(np.float32).eps))


def _pixels(scorer: Scorer, sources: Sequence[Picture]) -> UInt8s:
    """Return (n, h, w, 3) pixels of the pictures that can be read. Raise InputError if there are fewer than two."""
    decoded = [picture for picture in scorer.decode(sources) if not isinstance(picture, ImageError)]
    if len(decoded) < 2:
        raise InputError(f"{len(decoded)} of {len(sources)} pictures can be read; wanted at least two to compare")
    if len(decoded) < len(sources):
        logger.warning(f"{len(sources) - len(decoded)} of {len(sources)} pictures cannot be read and are left out")
    return np.stack(decoded)


def score_matrices(vectors: Mapping[str, Float32s], score: Scores) -> dict[str, Float32s]:
    """Return scores (pictures, prompts) by output, of all pictures for all prompts; (pictures, 1) without text."""
    images = {name: values for name, values in vectors.items() if name != "text_embedding"}
    if "text_embedding" not in vectors:
        return {name: scores[:, None] for name, scores in score(images).items()}
    count = len(images["image_embedding"])
    columns = [
        score({**images, "text_embedding": np.broadcast_to(text, (count, len(text))).copy()})
        for text in vectors["text_embedding"]
    ]
    return {name: np.stack([column[name] for column in columns], axis=1) for name in columns[0]}


def whole_graph_difference(
    scorer: Scorer, pixels: UInt8s, prompts: Sequence[str], parts: Mapping[str, Float32s]
) -> float:
    """Return the largest difference of scores between model.onnx and the same graphs run part by part.

    `parts` are the scores (n, p) of the latter, by output.
    """
    column = np.arange(len(pixels)) % next(iter(parts.values())).shape[1]
    sources = made_from(scorer.encode_pixels(pixels)["image_embedding"]) if scorer.reads_source else None
    whole = scorer.run_whole(pixels, [prompts[i] for i in column], sources)
    rows = np.arange(len(pixels))
    scores = {output.name: whole[output.values["score"]] for output in scorer.named.all}
    return max(float(np.abs(scores[name] - part[rows, column]).max()) for name, part in parts.items())


def made_from(embeddings: Float32s) -> Float32s:
    """Return vectors (n, d) of sources to compare on: each picture's is the one before, and every third has none."""
    sources = np.roll(embeddings, 1, axis=0)
    sources[::3] = 0
    return sources


def torch_vectors(
    backbone: "Backbone", inputs: Sequence[str], pixels: UInt8s, prompts: Sequence[str]
) -> dict[str, Float32s]:
    """Return the vectors that a head with these inputs reads, from torch at fp32, for pixels (n, h, w, 3) and
    prompts."""
    import torch

    wanted = picture_inputs(inputs)
    tower = backbone.image_tower(tuple(wanted.values()))
    with torch.inference_mode():
        batches = [tower(part) for part in torch.split(torch.from_numpy(pixels), TORCH_BATCH)]
        batches = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
        vectors = {name: torch.cat([batch[i] for batch in batches]).numpy() for i, name in enumerate(wanted)}
        if "text_embedding" in inputs:
            text = backbone.text_tower()
            tokens = torch.from_numpy(backbone.tokenize(prompts))
            vectors["text_embedding"] = torch.cat([text(part) for part in torch.split(tokens, TORCH_BATCH)]).numpy()
    if SOURCE in inputs:
        vectors[SOURCE] = made_from(vectors["image_embedding"])
    return vectors


def decoding_of(
    backbone: "Backbone",
    inputs: Sequence[str],
    config: ExportConfig,
    all_noted: Sequence[Mapping[str, Any] | None],
) -> DecodingEntry | None:
    """Return how the runtime decodes large JPEGs. `all_noted` is what each head's manifest says about its cache.

    Raise InputError if the caches differ, and the options do not say which to follow.
    """
    noted, *others = all_noted
    if config.decoding == "auto" and any(_scale(other) != _scale(noted) for other in others):
        raise InputError(
            "the heads were trained on caches that decode large JPEGs differently; choose one way for the bundle, with"
            " --decoding exact or --decoding scaled"
        )
    if config.decoding == "exact" or (config.decoding == "auto" and noted is None):
        return None
    if noted is None:
        return choose_decoding(backbone, list(picture_inputs(inputs)), config)
    return {
        "scale": noted["scale"],
        "rows": noted["rows"],
        "cosine_mean": noted["cosine_mean"],
        "cosine_min": noted["cosine_min"],
    }


def _scale(noted: Mapping[str, Any] | None) -> int | None:
    return noted["scale"] if noted else None


@stage("trying how to decode large JPEGs")
def choose_decoding(backbone: "Backbone", inputs: Sequence[str], config: ExportConfig) -> DecodingEntry:
    """Return the smallest scale that keeps a cosine, the default of `embed cache`, for the large pictures among those
    given.

    Raise InputError if there is no such scale.
    """
    least = Wanted.min_cosine
    measured = []
    for scale in SCALES:
        large = large_pixels(config.pictures, backbone.identity.preprocess, scale)
        if large is None:
            break
        exact, ours = (torch_vectors(backbone, inputs, pixels, ()) for pixels in large)
        found = np.concatenate([cosines(exact[name], ours[name]) for name in exact])
        if found.min() >= least:
            mean, lowest = float(found.mean()), float(found.min())
            return {"scale": scale, "rows": len(large[0]), "cosine_mean": mean, "cosine_min": lowest}
        measured.append(f"at {scale}: {found.min():.6f}")
    if not measured:
        raise InputError("--decoding scaled is measured on large JPEGs; give at least two of them with --images FOLDER")
    raise InputError(
        f"at no scale do large pictures keep a cosine of {least} to exact ones (measured {', '.join(measured)});"
        " export with --decoding exact"
    )
