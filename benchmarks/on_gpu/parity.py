"""Compare half precision on the device with float32 on the CPU: vectors, scores, and the order of pictures."""

from typing import TYPE_CHECKING

import numpy as np

from on_gpu import towers
from on_gpu.common import Context

if TYPE_CHECKING:
    from pathlib import Path

    from embed.arrays import Float32s, UInt8s
    from embed.backbones.backbone import Backbone

DIRECTIONS = 32  # random vectors that order the pictures, in the place of embeddings of prompts


def measure(context: Context) -> dict[str, object]:
    """Return the lowest cosine, and the share of pairs of photos whose order changes, by model and engine."""
    from embed.backbones.load import load_backbone

    found: dict[str, object] = {}
    for model in context.sized(context.models, context.models[:1]):
        backbone = load_backbone(context.source(model))
        pixels = photos(context, backbone)
        reference = by_torch(context, backbone, pixels, half=False)
        plain, fused = towers.graphs(context, model)
        strict = {} if context.device == "cpu" else {"enable_skip_layer_norm_strict_mode": "1"}
        outputs = {
            "onnxruntime, plain graph": by_onnx(context, plain, pixels),
            "onnxruntime, fused": by_onnx(context, fused, pixels),
            "onnxruntime, fused, sums in float32": by_onnx(context, fused, pixels, **strict),
            "torch eager": by_torch(context, backbone, pixels, half=context.device == "cuda"),
        }
        found[model] = {name: figures(reference, vectors) for name, vectors in outputs.items()}
        rows = [
            [name, *(f"{x:.6f}" for x in figures(reference, vectors).values())] for name, vectors in outputs.items()
        ]
        context.show([model, "lowest cosine", "of centred vectors", "flips", "of decided pairs"], rows)
        context.release()
    return found


def photos(context: Context, backbone: "Backbone") -> "UInt8s":
    """Return decoded photos, each also mirrored."""
    from embed.inputs.images import load_pixels

    paths = context.jpegs()[: context.sized(64, 6)]
    pixels = np.stack([load_pixels(path.read_bytes(), backbone.identity.preprocess)[0] for path in paths])
    return np.concatenate([pixels, pixels[:, :, ::-1]])


def by_torch(context: Context, backbone: "Backbone", pixels: "UInt8s", half: bool) -> "Float32s":
    """Compute vectors with torch: on the device in half precision, or on the CPU in float32."""
    import torch

    from embed.engines.runners import torch_runner

    tower = backbone.image_tower().to("cpu")
    precision, device = ("fp16", context.device) if half else ("fp32", "cpu")
    with torch.inference_mode():
        return torch_runner(tower, precision, device)(pixels)[0]  # type: ignore[arg-type]


def by_onnx(context: Context, path: "Path", pixels: "UInt8s", **options: object) -> "Float32s":
    from embed.engines.device import DeviceGraph
    from embed.engines.sessions import open_session

    provider = (context.device, options) if options else context.device
    session = open_session(path, [provider], precision="fp16" if context.device == "cuda" else "fp32")
    return DeviceGraph(session, (16,), context.device)(pixels)[0]


def figures(reference: "Float32s", vectors: "Float32s") -> dict[str, float]:
    """Compare vectors after subtracting their mean, because random weights give all pictures nearly the same vector.

    A pair is decided if float32 itself would not change its order (1e-6).
    """
    from embed.arrays import cosines
    from export.parity import score_parity

    mean = reference.mean(axis=0)
    directions = np.random.default_rng(0).standard_normal((reference.shape[1], DIRECTIONS))
    spread = np.linalg.norm(reference - mean, axis=1).mean()
    scores = [(each - mean) / spread @ directions for each in (reference, vectors)]
    parity = score_parity("fp16", *scores, noise=1e-6)
    return {
        "cosine_min": float(cosines(reference, vectors).min()),
        "centred_cosine_min": float(cosines(reference - mean, vectors - mean).min()),
        "flips": parity.flips,
        "decided_pairs": parity.decided_pairs,
    }
