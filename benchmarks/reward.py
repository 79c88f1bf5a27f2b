"""Compare the differentiable reward with the scores that are served, and measure its cost, as ratios within one run.

    python benchmarks/reward.py --images ../shared/data/photos examples/emoji/images [--heads HEAD...]
    python benchmarks/reward.py --images examples/emoji/images --samples 20 --pictures 64   # a trial of the script

near      scores every picture of each folder with the reward and with Pillow and uint8, for twelve prompts: starter and
          ViT-B/32 with random weights, each with a random fusion head, and the heads of --heads
several   three heads on one backbone as `Rewards`, compared with the first of them alone
speed     pictures of 512 x 512 floats, as a generator makes them, in batches of 32, without a gradient: with the
          reward, and as 8 bits with open_clip's transform and encode_image, each with a cosine of one prompt

The two sides of a ratio take turns, batch by batch, and the ratio is of each side's fastest batch, on which other users
of the machine have the least effect. The last line is one JSON document.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path[0] = str(Path(__file__).parents[1])  # not this folder, which holds files named like our packages
from embed.backbones.backbone import Backbone  # noqa: E402
from embed.backbones.load import load_backbone  # noqa: E402
from embed.cli.console import progress, table  # noqa: E402
from embed.devices import resolve_device  # noqa: E402
from embed.inputs.fetch import some_pictures  # noqa: E402
from embed.spec import Source  # noqa: E402
from heads.config import PROMPTS, HeadConfig  # noqa: E402
from heads.models import Head, build_head  # noqa: E402
from heads.reward.certificate import certify  # noqa: E402
from heads.reward.module import DTYPES, Reward, source_of  # noqa: E402
from heads.reward.several import Rewards  # noqa: E402

SOURCES = {"starter": Source("starter"), "ViT-B-32": Source("ViT-B-32", "random:0")}
SIDE = 512  # side of a picture, in pixels
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders of pictures")
    parser.add_argument("--heads", type=Path, nargs="*", default=[], help="folders of more heads to measure")
    parser.add_argument("--samples", type=int, default=1000, help="the most pictures from a folder")
    parser.add_argument("--pictures", type=int, default=1152, help="pictures for each side of the speed")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=list(DTYPES), default="fp32")
    args = parser.parse_args()
    device, dtype = resolve_device(args.device), DTYPES[args.precision]
    backbones = {name: load_backbone(source, device) for name, source in SOURCES.items()}
    near = {}
    for folder in args.images:
        paths = some_pictures(folder, args.samples)
        for name, backbone in backbones.items():
            rewards = [Reward(backbone, random_head(backbone), dtype=one) for one in (dtype, torch.float32)]
            near[f"{name}, {folder.name}"] = figures(*rewards, paths)
        for head in args.heads:
            backbone = load_backbone(source_of(head), device)
            rewards = [Reward.on(backbone, head, one) for one in (dtype, torch.float32)]
            near[f"{head.name}, {folder.name}"] = figures(*rewards, paths)
    print(
        *table(("near", *next(iter(near.values()))), [(name, *found.values()) for name, found in near.items()]),
        sep="\n",
    )
    several = {name: cost_of_three(backbone, dtype, device) for name, backbone in backbones.items()}
    speed = against_open_clip(backbones["ViT-B-32"], dtype, device, args.pictures)
    print(*(f"{name}: {json.dumps(found)}" for name, found in (("several", several), ("speed", speed))), sep="\n")
    about = {"device": device, "precision": args.precision, "threads": torch.get_num_threads()}
    print(json.dumps({**about, "near": near, "several": several, "speed": speed}))


def random_head(backbone: Backbone, seed: int = 0, kind: str = "fusion") -> Head:
    """Return a head whose scores differ."""
    head = build_head(HeadConfig(kind, backbone.identity.dim))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        if parameter.ndim:
            parameter.data.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return head.eval()


def figures(reward: Reward, exact: Reward, paths: Sequence[Path]) -> dict[str, Any]:
    found = asdict(certify(reward, exact, paths, PROMPTS, progress))
    found["difference_in_deviations"] = found["max_score_difference"] / found["score_deviation"]
    names = ("pictures", "pairs", "equal_pixels", "min_cosine", "flips", "difference_in_deviations")
    return {name: float(f"{found[name]:.9g}") for name in names}


def cost_of_three(backbone: Backbone, dtype: torch.dtype, device: str) -> dict[str, float]:
    """Return the seconds of a batch with its gradient, for three rewards and for one."""
    pixels = torch.rand(8, 3, SIDE, SIDE, device=device)
    three = {name: (Reward(backbone, random_head(backbone, i), dtype=dtype), 1.0) for i, name in enumerate("abc")}
    rewards = Rewards(three).standardise([(pixels, "a cat")])
    one = Reward(backbone, random_head(backbone), dtype=dtype)

    def with_gradient(reward: Reward | Rewards) -> Callable[[], object]:
        return lambda: torch.autograd.grad(reward(given := pixels.clone().requires_grad_(), "a cat").sum(), given)

    return ratio(with_gradient(rewards), with_gradient(one), 20, device, ("three_s", "one_s"))


def against_open_clip(backbone: Backbone, dtype: torch.dtype, device: str, pictures: int) -> dict[str, float]:
    """Return the seconds of a batch, for the reward and for open_clip."""
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    spec, model = backbone.identity.preprocess, backbone.model
    of_spec = {name: getattr(spec, name) for name in ("size", "mean", "std", "interpolation", "resize_mode")}
    transform = image_transform_v2(PreprocessCfg(**of_spec), is_train=False)
    reward = Reward(backbone, random_head(backbone, kind="cosine"), dtype=dtype)
    pixels = torch.rand(BATCH, 3, SIDE, SIDE, device=device)
    text = model.encode_text(torch.from_numpy(backbone.tokenize(["a cat"])).to(device), normalize=True)

    @torch.no_grad()
    def theirs() -> float:
        levels = (pixels * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        batch = torch.stack([transform(Image.fromarray(one)) for one in levels]).to(device)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return float((model.encode_image(batch, normalize=True).float() @ text.float().T).sum())

    @torch.no_grad()
    def ours() -> float:
        return float(reward(pixels, "a cat").sum())

    found = ratio(ours, theirs, max(2, -(-pictures // BATCH)), device, ("reward_s", "open_clip_s"))
    return {"pictures": BATCH * max(2, -(-pictures // BATCH)), **found}


def ratio(
    ours: Callable[[], object], theirs: Callable[[], object], times: int, device: str, names: tuple[str, str]
) -> dict[str, float]:
    """Return the fastest run of each, with both taking turns, and the first divided by the second."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(times + 1):
        for run, taken in zip((ours, theirs), seconds, strict=True):
            start = time.perf_counter()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                taken.append(time.perf_counter() - start)
    first, second = map(min, seconds)
    return {names[0]: round(first, 4), names[1]: round(second, 4), "ratio": round(first / second, 4)}


if __name__ == "__main__":
    main()
