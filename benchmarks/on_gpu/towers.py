"""Measure a backbone's picture tower alone, with pixels on the device: onnxruntime's graphs and torch, by batch
size."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from on_gpu.common import Context, elapsed_s

if TYPE_CHECKING:
    from embed.backbones.backbone import Backbone

BATCHES = (1, 16, 64, 256)
Compute = Callable[[], object]  # one run on a batch on the device; it returns when the run is done


def measure(context: Context) -> dict[str, object]:
    """Return pictures a second by model, engine and batch, the share of the ceiling, and p50 and p99 of one picture."""
    from on_gpu.ceilings import matmul_tflops

    ceiling = matmul_tflops(context, "float16")
    found: dict[str, object] = {"ceiling_tflops": ceiling}
    models = context.sized(context.models, context.models[:1])
    for model in models:
        found[model] = tower(context, model, ceiling)
        context.release()
    return found


def tower(context: Context, model: str, ceiling: float) -> dict[str, object]:
    """Measure one model, and print figures while they come."""
    from embed.backbones.load import load_backbone

    backbone = load_backbone(context.source(model))
    flops = flops_of(backbone)
    rows: list[dict[str, object]] = []
    for name, engine in engines(context, model, backbone):
        for batch in context.sized((64,) if name == "torch.compile" else BATCHES, (1, 4)):
            try:
                row = timed(context, engine(batch), batch)
            except Exception as error:  # so that the other engines are still measured
                context.say(f"{model} {name} {batch}: {type(error).__name__}: {str(error)[:300]}")
                continue
            share = float(row["per_s"]) * flops / 1e12 / ceiling
            rows.append({"engine": name, "batch": batch, "share_of_ceiling": share, **row})
            context.say(
                f"{model:10} {name:28} batch {batch:3}  {row['per_s']:9.1f}/s  {share:6.1%} of the ceiling"
                f"  p50 {row['p50_ms']:.2f} ms  p99 {row['p99_ms']:.2f} ms"
            )
        context.release()
    return {"gflops": flops / 1e9, "rows": rows}


def timed(context: Context, compute: Compute, batch: int) -> dict[str, float]:
    """Return rate and percentiles, from runs that take about a second in total."""
    for _ in range(5):
        compute()
    once_s = statistics.median(elapsed_s(compute) for _ in range(3))
    repeats = context.sized(int(min(300, max(10, 1.0 / once_s))), 3)
    seconds = [elapsed_s(compute) for _ in range(repeats)]
    p50_s, p99_s = np.percentile(seconds, [50, 99])
    return {"per_s": batch / statistics.median(seconds), "p50_ms": p50_s * 1e3, "p99_ms": p99_s * 1e3}


def engines(context: Context, model: str, backbone: "Backbone") -> "list[tuple[str, Callable[[int], Compute]]]":
    """Return each engine as a function of the batch size."""
    (plain, fused), size = graphs(context, model), backbone.identity.preprocess.size
    found = [
        ("onnxruntime, plain graph", onnx_engine(context, plain, size, False)),
        ("onnxruntime, fused", onnx_engine(context, fused, size, False)),
        ("onnxruntime, fused, recorded", onnx_engine(context, fused, size, True)),
        ("torch eager", torch_engine(context, backbone, "nothing")),
        ("torch.compile, by block", torch_engine(context, backbone, "block")),
        ("torch.compile", torch_engine(context, backbone, "whole")),
    ]
    return found if context.device == "cuda" else [*found[:2], found[3]]


def graphs(context: Context, model: str) -> tuple[Path, Path]:
    """Return the paths of the plain graph and of the one for CUDA, which are made now if they are missing."""
    for fused in (True, False):
        if not graph_file(context, model, fused).exists():
            write(context, model, fused)
    return graph_file(context, model, False), graph_file(context, model, True)


def graph_file(context: Context, model: str, fused: bool) -> Path:
    return context.folder / "towers" / model / ("fused.onnx" if fused else "plain.onnx")


def write(context: Context, model: str, fused: bool) -> None:
    """Export a tower for CUDA, or as bundles have it for other devices; in half precision on a GPU."""
    import onnx

    from embed.backbones.load import load_backbone
    from embed.graphs.fusing import for_cuda, fuse
    from embed.graphs.precision import to_fp16
    from export.graphs.compose import export_image

    half = context.device == "cuda"
    backbone = load_backbone(context.source(model))
    path = graph_file(context, model, fused)
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = export_image(backbone, ["image_embedding"], fused)
    if fused:
        graph = for_cuda(graph) if half else fuse(graph)
    elif half:
        graph = to_fp16(graph)
    part = path.with_suffix(".part")
    onnx.save_model(graph, str(part), save_as_external_data=True, location=f"{path.stem}.data")
    part.rename(path)


def onnx_engine(context: Context, path: Path, size: tuple[int, int], cuda_graph: bool) -> Callable[[int], Compute]:
    """Return the graph in onnxruntime, with input and output on the device."""
    from embed.engines.device import DeviceGraph
    from embed.engines.sessions import open_session

    made: list[DeviceGraph] = []

    def at(batch: int) -> Compute:
        if not made:
            provider = (context.device, {"enable_cuda_graph": "1"}) if cuda_graph else context.device
            session = open_session(path, [provider], precision="fp16" if context.device == "cuda" else "fp32")
            made.append(DeviceGraph(session, context.sized(BATCHES, (1, 4)), context.device, cuda_graph))
        made[0](np.random.default_rng(batch).integers(0, 256, (batch, *size, 3), np.uint8))
        return lambda: made[0].compute(batch)

    return at


def torch_engine(context: Context, backbone: "Backbone", compiled: str) -> Callable[[int], Compute]:
    """Return the tower in torch, in half precision on a GPU, eager or compiled."""
    import torch

    from embed.engines.runners import cast

    made: list[torch.nn.Module] = []

    def at(batch: int) -> Compute:
        if not made:
            tower = cast(backbone.image_tower(), "fp16" if context.device == "cuda" else "fp32").to(context.device)
            for block in tower.visual.transformer.resblocks if compiled == "block" else ():
                block.compile(dynamic=False)  # blocks share the result: seconds, where the whole tower takes minutes
            made.append(torch.compile(tower, dynamic=False) if compiled == "whole" else tower)
        generator = torch.Generator(context.device).manual_seed(batch)
        shape = (batch, *backbone.identity.preprocess.size, 3)
        pixels = torch.randint(256, shape, dtype=torch.uint8, device=context.device, generator=generator)

        def compute() -> None:
            with torch.inference_mode():
                made[0](pixels)
            if context.device == "cuda":
                torch.cuda.synchronize()

        return compute

    return at


def flops_of(backbone: "Backbone") -> float:
    """Return the floating-point operations for one picture, counting a multiplication and an addition as two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from embed.graphs.trace import quiet_exporter

    counter = FlopCounterMode(display=False)
    with quiet_exporter(), counter, torch.inference_mode():  # torch's fast path, which would not be counted, is off
        backbone.image_tower()(torch.zeros((1, *backbone.identity.preprocess.size, 3), dtype=torch.uint8))
    return float(counter.get_total_flops())
