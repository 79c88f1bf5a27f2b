"""Measure the time from JPEG bytes in memory to scores, for a bundle of ours and the usual ways, in one run.

    transformers   as in PickScore's model card: CLIPModel and CLIPProcessor, one prompt with n pictures
    open_clip      its own transform and tokenizer, eager
    ours           Scorer at fp32 and int8; "seen" is a prompt that was scored before, "new" another one each time

All have the shapes of ViT-B/32 and random weights: nothing is downloaded, and time does not depend on weights. The ways
take turns, round by round, so that changes of the machine's load affect all. The figures are medians, and ratios to
transformers with a new prompt. Also measured are a cold process, from its start to the first score, and its peak
memory.

    python benchmarks/score.py --images FOLDER [--batch 1 8] [--rounds 20] [--json]

The last line with --json is one JSON document.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path[0] = str(Path(__file__).parents[1])  # not this folder, which holds another `embed`
from embed.backbones.backbone import Backbone  # noqa: E402
from embed.backbones.load import load_backbone  # noqa: E402
from embed.cli.console import table  # noqa: E402
from embed.inputs.fetch import some_pictures  # noqa: E402
from embed.spec import Source  # noqa: E402
from export.bundle_writer import export_bundle  # noqa: E402
from export.config import ExportConfig  # noqa: E402
from heads.config import HeadConfig  # noqa: E402
from heads.models import build_head  # noqa: E402
from runtime.config import SessionConfig  # noqa: E402
from runtime.scoring.scorer import Scorer  # noqa: E402

# The pause between two ways, because threads of torch and onnxruntime spin after their work and slow down the next one.
PAUSE_S = 0.1

Way = Callable[[str, list[bytes]], Any]
PROMPT = "a photo of a red bicycle number {} leaning against an old brick wall"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of JPEG files")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    paths = some_pictures(args.images, max(64, *args.batch))
    data = [path.read_bytes() for path in paths]
    backbone = load_backbone(Source("ViT-B-32", "random:0"))
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        make_bundle(bundle, backbone, paths[:16])
        scorers = {p: Scorer.load(bundle, SessionConfig(precision=p)) for p in ("fp32", "int8")}
        ways: dict[str, tuple[Way, bool]] = {
            "transformers": (transformers_way(Path(folder)), True),
            "open_clip": (open_clip_way(backbone), True),
            "ours fp32, new": (scorers["fp32"].score, True),
            "ours int8, new": (scorers["int8"].score, True),
            "ours fp32, seen": (scorers["fp32"].score, False),
            "ours int8, seen": (scorers["int8"].score, False),
        }
        result: dict[str, Any] = {"score_ms": {n: measure(ways, data[:n], args.rounds) for n in args.batch}}
        result["cold"] = cold_start(bundle, str(paths[0]))
    for count, times in result["score_ms"].items():
        base = times["transformers"]
        rows = [[name, f"{ms:.1f}", f"{base / ms:.2f}x"] for name, ms in times.items()]
        print(f"\n{count} pictures", *table(["way", "ms", "speed"], rows), sep="\n", file=sys.stderr)
    print(f"\ncold process: {result['cold']}", file=sys.stderr)
    if args.json:
        print(json.dumps(result))


def make_bundle(path: Path, backbone: Backbone, pictures: list[Path]) -> None:
    """Make a bundle. Random weights say nothing about precision, so any share of flips is accepted."""
    head = build_head(HeadConfig("fusion", backbone.identity.dim)).eval()
    torch.nn.init.normal_(list(head.parameters())[-2])
    manifest = {"head": {"kind": "fusion"}, "identity": backbone.identity.to_json()}
    export_bundle(
        path, backbone, head, manifest, ExportConfig(("fp32", "int8"), pictures=tuple(pictures), max_flips=0.99)
    )


def measure(ways: dict[str, tuple[Way, bool]], data: list[bytes], rounds: int) -> dict[str, float]:
    """Return median milliseconds of each way."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 2):
        for name, (way, new_prompt) in ways.items():
            prompt = PROMPT.format(number if new_prompt else 0)
            if new_prompt and name.startswith("ours"):
                prompt = f"{name} {prompt}"  # different for each way and round, because prompts are remembered
            time.sleep(PAUSE_S)
            start = time.perf_counter()
            way(prompt, data)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(values[2:])) for name, values in times.items()}


def transformers_way(folder: Path) -> Way:
    """Return the model card's way; the tokenizer's files are written from open_clip's vocabulary."""
    import open_clip
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    simple = open_clip.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in simple.encoder.items()}
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.__getitem__)
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges)
    processor = CLIPProcessor(CLIPImageProcessor(), tokenizer)
    model = CLIPModel(CLIPConfig()).eval()

    def score(prompt: str, data: list[bytes]) -> Any:
        images = [Image.open(BytesIO(item)) for item in data]
        pixels = processor(images=images, return_tensors="pt")
        text = processor(text=prompt, padding=True, truncation=True, max_length=77, return_tensors="pt")
        with torch.no_grad():
            image_features = features(model.get_image_features(**pixels))
            text_features = features(model.get_text_features(**text))
            return model.logit_scale.exp() * (text_features @ image_features.T)[0]

    def features(output: Any) -> torch.Tensor:
        vectors = output if isinstance(output, torch.Tensor) else output.pooler_output
        return vectors / vectors.norm(dim=-1, keepdim=True)

    return score


def open_clip_way(backbone: Backbone) -> Way:
    import open_clip

    transform = open_clip.image_transform(224, is_train=False)
    model = backbone.model

    def score(prompt: str, data: list[bytes]) -> Any:
        pixels = torch.stack([transform(Image.open(BytesIO(item))) for item in data])
        with torch.inference_mode():
            vectors = model.encode_image(pixels, normalize=True)
            return vectors @ model.encode_text(backbone.tokenizer([prompt]), normalize=True)[0]

    return score


def cold_start(bundle: Path, picture: str) -> dict[str, float]:
    """Return the seconds of a whole process, and its peak memory; from the second of two runs, with files in memory."""
    argv = ["score", str(bundle), "--prompt", "a cat", picture]
    code = f"from runtime.cli.main import main; main({argv!r}); print(open('/proc/self/status').read())"
    for _ in range(2):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        wall_s = time.perf_counter() - start
    peak_kb = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("VmHWM"))
    return {"wall_s": round(wall_s, 2), "peak_mb": round(int(peak_kb) / 1000)}


if __name__ == "__main__":
    main()
