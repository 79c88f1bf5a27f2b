"""Time a step of partial unfreezing from cached activations, and two ways that also run the frozen part.

    python benchmarks/unfreeze.py                                      # ViT-B/32, 32 pairs a step
    python benchmarks/unfreeze.py --model ViT-L-14 --steps 2 --pairs 8

    boundary    only the blocks above the cut, on float16 activations from a cache on disk
    live        the same blocks, after running the frozen part under no_grad on stored pixels and tokens
    original    Social Reward's loop: gradients through the whole model, and an optimiser over the mode's parameters; as
                in that loop, each picture and prompt of a triplet goes through the model

Each runs in a separate process on the same pictures, prompts and pairs (random weights, because time does not depend on
them). Seconds a step are medians, of wall time and of processor time. Memory is the peak resident size in MiB, of the
steps alone (`peak_mib`, only on Linux) and of the whole process, which has loaded the whole model before it releases
the frozen part; `libraries_mib` is what torch and other libraries take before any model is loaded. With `--accumulate`,
a step of the first two is computed in parts. Making the boundary is timed too; from that follows after how many epochs
it has saved more time than it took. The last line of stdout is a JSON document."""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # not this folder, which holds a file named like the package `embed`

WORDS = ("painting", "of", "the", "old", "harbour", "at", "dawn", "with", "two", "red", "boats", "and", "soft", "light")
PICTURES_A_PAIR = 2
KINDS = ("boundary", "live", "original")
OPTIONS = ("model", "mode", "pairs", "accumulate", "steps", "batches", "threads")


def prompts(count: int) -> list[str]:
    """Return prompts of 5 to 25 words, like those for image generators."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(5, 26))) + f" {i}" for i in range(count)]


def source(args: argparse.Namespace) -> Any:
    from embed.spec import Source

    return Source(args.model, "random:0")


def make_cache(args: argparse.Namespace, path: Path) -> dict[str, float]:
    """Make a cache with meaningless vectors, pixels and activations; return the seconds that the activations took."""
    import pyarrow as pa
    import torch

    from embed.backbones.load import load_backbone
    from embed.cache.boundary import PartWriter
    from embed.cache.store import METADATA, CacheWriter
    from embed.config import BoundaryConfig
    from embed.files import content_id
    from embed.modes import WHOLE, parse_mode
    from embed.unfreeze.fill import plan_boundary

    count = args.pairs * args.batches
    backbone = load_backbone(source(args))
    size, dim = backbone.identity.preprocess.size, backbone.identity.dim
    rng = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(PICTURES_A_PAIR * count)]
    took = {}
    with CacheWriter(path, backbone.identity, backbone.source) as writer:
        ids = [content_id(name.encode()) for name in names]
        table = pa.table([names, ids, [size[1]] * len(names), [size[0]] * len(names)], METADATA["images"].names)
        writer.append("images", table, img_emb=np.full((len(names), dim), dim**-0.5, np.float16))
        texts = prompts(count)
        table = pa.table([texts, [content_id(text.encode()) for text in texts]], METADATA["prompts"].names)
        writer.append("prompts", table, text_emb=np.full((count, dim), dim**-0.5, np.float16))
        writer.commit()
        pixels = torch.from_numpy(rng.integers(0, 256, (len(names), *size, 3), dtype=np.uint8))
        live = PartWriter(writer, "images", WHOLE, "uint8")
        live.add(np.arange(len(names)), pixels, None)
        live.commit()
        for todo in plan_boundary(writer, backbone, BoundaryConfig(parse_mode(args.mode))):
            parts = PartWriter(writer, todo.side, todo.cut.depth, todo.dtype)
            inputs = pixels if todo.side == "images" else torch.from_numpy(backbone.tokenize(texts))
            start = time.monotonic()
            with torch.inference_mode():
                for at in range(0, len(inputs), 32):
                    rows = np.arange(at, min(at + 32, len(inputs)))
                    parts.add(rows, *todo.cut.below(inputs[rows]))
            parts.commit()
            took[todo.side] = (time.monotonic() - start) / len(inputs)
    return took


def train(args: argparse.Namespace, kind: str, path: Path) -> dict[str, Any]:
    """Return the seconds of each step after the first, the losses, and the peak memory."""
    import torch

    from embed.backbones.load import load_backbone
    from embed.cache.store import Cache
    from embed.modes import parse_mode
    from heads.config import UnfreezeConfig
    from heads.data.comparisons import Pairs
    from heads.unfreeze.model import unfrozen
    from heads.unfreeze.train import Data, new_loop

    libraries = _resident_mib("VmRSS")
    torch.set_num_threads(args.threads)
    cache, backbone, mode = Cache.open(path), load_backbone(source(args)), parse_mode(args.mode)
    count = args.pairs * args.batches
    rows = np.arange(count)
    ones = np.ones(count, np.float32)
    pairs = Pairs(PICTURES_A_PAIR * rows, PICTURES_A_PAIR * rows + 1, ones, ones, rows, rows)
    data = Data(np.arange(PICTURES_A_PAIR * count), np.repeat(rows, PICTURES_A_PAIR), pairs)
    config = UnfreezeConfig(
        args.mode, "triplet", batch_size=args.pairs, epochs=args.steps + 1, accumulate=args.accumulate
    )
    if kind == "original":
        step = _original(cache, backbone, mode, data, pairs, config)
    else:
        step = new_loop(unfrozen(cache, backbone, config, live=kind == "live"), data, config).take_step
    seconds, processors, losses = [], [], []
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Path("/proc/self/clear_refs").write_text("5")  # this resets the peak
    for _ in range(args.steps + 1):
        start, start_cpu = time.monotonic(), time.process_time()
        losses.append(step())
        seconds.append(time.monotonic() - start)
        processors.append(time.process_time() - start_cpu)
    peak = _resident_mib("VmHWM")
    return {
        "step_s": statistics.median(seconds[1:]),
        "step_cpu_s": statistics.median(processors[1:]),
        "steps_s": seconds[1:],
        "losses": losses,
        "peak_mib": peak,
        "process_mib": max(whole, peak),
        "libraries_mib": libraries,
    }


def _resident_mib(line: str) -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[line].split()[0]) / 1024


def _original(cache: Any, backbone: Any, mode: Any, data: Any, pairs: Any, config: Any) -> Any:
    import torch
    from torch.nn import functional as F

    from embed.backbones.backbone import normalize_pixels
    from embed.cache.boundary import Boundary
    from embed.modes import WHOLE
    from embed.unfreeze.trainable import moved_names

    model, preprocess = backbone.model.requires_grad_(True), backbone.identity.preprocess
    names = set(moved_names(mode, model, preprocess))
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[mode.optimizer]
    optimizer = kind([p for name, p in model.named_parameters() if name in names], lr=config.learning_rate)
    pixels = Boundary(cache, "images", WHOLE, "uint8")
    tokens = torch.from_numpy(backbone.tokenize(cache.metadata("prompts", ["caption"])["caption"].to_pylist()))
    place = iter(range(10**6))

    def step() -> float:
        epoch, at = divmod(next(place), -(-len(pairs) // config.batch_size))
        order = np.random.default_rng([config.seed, epoch]).permutation(len(pairs))
        batch = order[at * config.batch_size : (at + 1) * config.batch_size]
        anchor = F.normalize(model.encode_text(tokens[data.prompt[pairs.a[batch]]]), dim=1)
        positive, negative = (
            F.normalize(model.encode_image(normalize_pixels(pixels.take(side[batch])[0], preprocess)), dim=1)
            for side in (pairs.a, pairs.b)
        )
        gap = (anchor - positive).square().sum(1) - (anchor - negative).square().sum(1)
        loss = torch.relu(gap + 0.3).mean()
        model.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _beyond_libraries(result: dict[str, Any]) -> float:
    return result["peak_mib"] - result["libraries_mib"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--mode", default="visual_upper_layers_textual_upper_layers")
    parser.add_argument("--pairs", type=int, default=32, help="a step")
    parser.add_argument("--accumulate", type=int, default=1, help="number of parts in which a step is computed")
    parser.add_argument("--steps", type=int, default=5, help="measured steps, after one that is not measured")
    parser.add_argument("--batches", type=int, default=2, help="different batches; so many pairs are cached")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(train(args, args.run[0], Path(args.run[1]))))
        return 0
    options = [f"--{name}={getattr(args, name)}" for name in OPTIONS]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cache")
        below = make_cache(args, path)
        for kind in args.kinds:
            command = [sys.executable, __file__, *options, "--run", kind, str(path)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            results[kind] = json.loads(done.stdout.splitlines()[-1])
            shown = {name: f"{value:.3f}" for name, value in results[kind].items() if isinstance(value, float)}
            print(kind, *(f"{name} {value}" for name, value in shown.items()), flush=True)
    # What the boundary costs once for the data of one step.
    once_s = args.pairs * (PICTURES_A_PAIR * below.get("images", 0.0) + below.get("prompts", 0.0))
    summary: dict[str, Any] = {"model": args.model, "mode": args.mode, "pairs": args.pairs, "once_s": once_s}
    ours = results["boundary"]
    for kind in results.keys() - {"boundary"}:
        theirs = results[kind]
        summary[kind] = {
            "times_as_fast": theirs["step_s"] / ours["step_s"],
            "times_as_fast_cpu": theirs["step_cpu_s"] / ours["step_cpu_s"],
            "share_of_memory": ours["peak_mib"] / theirs["peak_mib"],
            "share_beyond_libraries": _beyond_libraries(ours) / _beyond_libraries(theirs),
            "break_even_epochs": once_s / max(1e-9, theirs["step_s"] - ours["step_s"]),
            "loss_difference": max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)),
        }
        print(f"against {kind}: " + ", ".join(f"{name} {value:.3g}" for name, value in summary[kind].items()))
    print(json.dumps({**summary, "results": results}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
