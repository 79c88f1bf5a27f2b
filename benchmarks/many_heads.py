"""Compare five heads in a bundle with one: time to score, bytes on disk, and how much outputs change.

Each head is a fusion head with a committee of five, with random weights on a random ViT-B/32: nothing is downloaded,
and time does not depend on weights. The bundle of five also has a blend and zero-shot CLIP's cosine. The two bundles
take turns, and each is first in every other round; the ratio is the median of the rounds' ratios. A service encodes a
prompt once, so prompts are encoded before.

    python benchmarks/many_heads.py [--model ViT-B-32] [--precisions fp32 int8] [--pictures 8] [--rounds 30] [--json]

The last line with --json is one JSON document.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path[0] = str(Path(__file__).parents[1])  # not this folder, which holds another `embed`
from embed.backbones.backbone import Backbone  # noqa: E402
from embed.backbones.load import load_backbone  # noqa: E402
from embed.cli.console import table  # noqa: E402
from embed.spec import Source  # noqa: E402
from export.bundle_writer import export_outputs  # noqa: E402
from export.config import ExportConfig  # noqa: E402
from export.outputs import NamedHead, Outputs  # noqa: E402
from export.parity import generated_pictures  # noqa: E402
from heads.committee import Committee  # noqa: E402
from heads.config import HeadConfig  # noqa: E402
from heads.models import Head, build_head  # noqa: E402
from runtime.config import SessionConfig  # noqa: E402
from runtime.scoring.scorer import Scorer  # noqa: E402

HEADS, MEMBERS = 5, 5
PROMPT = "a photo of a red bicycle"
SIDE = 320  # side of a picture to score, in pixels
WARM_UP = 3  # rounds that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, help="threads of each session; by default one for each core")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name), args)
    rows = [
        [precision, f"{one['one_ms']:.1f}", f"{one['many_ms']:.1f}", f"{one['ratio']:.3f}", f"{one['off_by']:.1e}"]
        for precision, one in result["precisions"].items()
    ]
    header = ["precision", "one head ms", f"{HEADS} heads ms", "ratio", "outputs off by"]
    print(*table(header, rows), sep="\n", file=sys.stderr)
    megabytes = {name: f"{size / 1e6:.1f} MB" for name, size in result["bytes"].items()}
    print(f"weights: {megabytes}; {result['machine']}", file=sys.stderr)
    if args.json:
        print(json.dumps(result))


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    backbone = load_backbone(Source(args.model, None if args.model == "starter" else "random:0"))
    files = []
    for number, pixels in enumerate(generated_pictures(max(16, args.pictures), seed=2)):
        files.append(folder / f"{number}.jpg")
        Image.fromarray(pixels).resize((SIDE, SIDE)).save(files[-1], quality=90)
    config = ExportConfig(tuple(args.precisions), pictures=tuple(files[:16]), max_flips=0.99)
    heads = tuple(some_head(backbone, number) for number in range(HEADS))
    export_outputs(folder / "one", backbone, Outputs(heads[:1]), config)
    weights = {f"head_{number}": 1 / HEADS for number in range(HEADS)}
    export_outputs(folder / "many", backbone, Outputs(heads, True, {"blend": weights}), config)
    data = [path.read_bytes() for path in files[: args.pictures]]
    found = {}
    for precision in args.precisions:
        session = SessionConfig(precision=precision, threads=args.threads)
        one, many = (Scorer.load(folder / name, session) for name in ("one", "many"))
        found[precision] = compare(one, many, data, args.rounds)
    sizes = {name: (folder / name / "weights.bin").stat().st_size for name in ("one", "many")}
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads of torch"
    return {"heads": HEADS, "pictures": args.pictures, "precisions": found, "bytes": sizes, "machine": machine}


def some_head(backbone: Backbone, number: int) -> NamedHead:
    """Make a head. Random weights say nothing about precision, so any share of flips is accepted."""
    config = HeadConfig("fusion", backbone.identity.dim)
    members = [random_head(config, 100 * number + member) for member in range(1, MEMBERS + 1)]
    committee = Committee(members, {"gains": [1.0] * MEMBERS, "offsets": [0.0] * MEMBERS}, MEMBERS).eval()
    manifest = {"head": {"kind": "fusion", "dim": config.dim}, "identity": backbone.identity.to_json()}
    return NamedHead(f"head_{number}", random_head(config, 100 * number), committee, manifest)


def random_head(config: HeadConfig, seed: int) -> Head:
    head, generator = build_head(config, seed), torch.Generator().manual_seed(seed)
    list(head.parameters())[-2].data.normal_(0, 1, generator=generator)
    return head.eval()


def compare(one: Scorer, many: Scorer, data: list[bytes], rounds: int) -> dict[str, float]:
    """Return median milliseconds of both, the median of their ratios, and the difference of the first head's
    outputs."""
    times: dict[str, list[float]] = {"one": [], "many": []}
    for number in range(rounds + WARM_UP):
        for name, scorer in (("one", one), ("many", many))[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            scorer.score_items(PROMPT, data)
            times[name].append(1000 * (time.perf_counter() - start))
    alone, among = (np.array(times[name][WARM_UP:]) for name in ("one", "many"))
    expected, found = (scorer.score_items(PROMPT, data).outputs for scorer in (one, many))
    off_by = max(float(np.abs(found[name] - values).max()) for name, values in expected.items())
    return {
        "one_ms": float(np.median(alone)),
        "many_ms": float(np.median(among)),
        "ratio": float(np.median(among / alone)),
        "off_by": off_by,
    }


if __name__ == "__main__":
    main()
