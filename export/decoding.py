"""How a bundle has large JPEGs decoded: as the cache of its head did, exactly, or at a scale measured now."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embed.arrays import cosines
from embed.config import Wanted
from embed.inputs.scaled import SCALES
from embed.spec import InputError
from export.config import ExportConfig
from export.measure import large_pixels, torch_vectors
from runtime.scoring.bundle import DecodingEntry

if TYPE_CHECKING:
    from embed.backbones.backbone import Backbone
    from heads.models import Head


def decoding_of(
    backbone: "Backbone", head: "Head", config: ExportConfig, noted: Mapping[str, Any] | None
) -> DecodingEntry | None:
    """How the runtime decodes large JPEGs; `noted` is what the head's manifest says of its cache."""
    if config.decoding == "exact" or (config.decoding == "auto" and noted is None):
        return None
    if noted is None:
        return choose_decoding(backbone, [name for name in head.inputs if name != "text_embedding"], config)
    return {
        "scale": noted["scale"],
        "rows": noted["rows"],
        "cosine_mean": noted["cosine_mean"],
        "cosine_min": noted["cosine_min"],
    }


def choose_decoding(backbone: "Backbone", inputs: Sequence[str], config: ExportConfig) -> DecodingEntry:
    """The least scale at which the vectors of the large pictures among the given ones keep the cosine that `embed
    cache` asks for by default; InputError where there is none."""
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
        raise InputError("--decoding scaled is measured on large JPEGs; give at least two of them by --images FOLDER")
    raise InputError(
        f"at no scale do large pictures keep a cosine of {least} to exact ones (measured {', '.join(measured)});"
        " export with --decoding exact"
    )
