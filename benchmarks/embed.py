"""Compare our embedding job with others on the same pictures and weights, as ratios within one run.

    python benchmarks/embed.py --photos ../shared/data/photos --clip-retrieval ENV/bin/clip-retrieval

Whole processes are timed, from their start to the finished files:

    plaudit auto    the engine that `--precision auto` chooses
    plaudit fp32    the fastest engine in fp32
    open_clip       open_clip in eager fp32 with a plain PyTorch DataLoader, saving one .npy
    clip-retrieval  `clip-retrieval inference` with its own defaults, from its own environment; it needs
                    setuptools<81, and for a fair comparison the same torch as here

Also timed, with the model loaded and warm, is the chosen engine on pixels in memory ("compute only"). Pictures are
`--photos` repeated and made different by trailing bytes. Weights: ViT-B/32 with seeded random weights from a file,
which all others load too, and the starter, which only plaudit loads. What an engine costs once on a machine (export,
quantising, trials) is timed separately. The last line of stdout is one JSON document."""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # not this folder, which holds a file named like the package `embed`

from embed.cli.console import table  # noqa: E402
from embed.engines.choice import Engine  # noqa: E402
from embed.engines.towers import Towers  # noqa: E402
from embed.jobs.build import TRIAL_RECORDS  # noqa: E402
from embed.spec import Source  # noqa: E402

MODEL = "ViT-B-32"
TAG = "laion2b_s34b_b79k"  # the random weights get the preprocessing of this tag
BATCH = 32
ROUNDS = 3


def write_pictures(photos: Path, folder: Path, count: int) -> None:
    """Write `count` files with different bytes."""
    folder.mkdir()
    sources = sorted(path for path in photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    for i, source in enumerate(islice(cycle(sources), count)):
        (folder / f"{i:05d}.jpg").write_bytes(source.read_bytes() + i.to_bytes(4, "little"))


def write_checkpoint(path: Path) -> None:
    import open_clip
    import torch

    torch.manual_seed(0)
    torch.save(open_clip.create_model(MODEL).state_dict(), path)


def timed(command: list[str], name: str) -> float:
    """Return the seconds of a whole process. Raise RuntimeError with its output if it fails."""
    print(f"{name} ...", file=sys.stderr)
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    elapsed_s = time.monotonic() - start
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return elapsed_s


def ours(pictures: Path, out: Path, source: Source, machine: Path, *options: str) -> list[str]:
    weights = ["--pretrained", source.pretrained] if source.pretrained else []
    command = [sys.executable, "-m", "embed", "cache", str(pictures), "--model", source.model, *weights]
    return [*command, "--out", str(out), "--machine-cache", str(machine), "--device", "cpu", *options]


def open_clip_loader(pictures: Path, checkpoint: Path, out: Path) -> None:
    """Embed with what most people write first: open_clip's own transform and model with a DataLoader."""
    import open_clip
    import torch
    from PIL import Image

    model, _, transform = open_clip.create_model_and_transforms(MODEL, pretrained=str(checkpoint))
    files = sorted(pictures.iterdir())

    class Pictures(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, i: int) -> Any:
            return transform(Image.open(files[i]))

    loader = torch.utils.data.DataLoader(Pictures(), batch_size=BATCH, num_workers=os.cpu_count() or 1)
    with torch.inference_mode():
        vectors = [torch.nn.functional.normalize(model.eval().encode_image(x), dim=-1).numpy() for x in loader]
    np.save(out, np.concatenate(vectors).astype(np.float16))


def compute_only(source: Source, machine: Path, engine: Engine, count: int) -> float:
    """Return pictures per second of a warm engine on random pixels."""
    towers = Towers(source, machine, ["projected"])
    run = towers.runner("images", engine)
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, *towers.identity.preprocess.size, 3), np.uint8)
    run(pixels)
    start = time.monotonic()
    for _ in range(count // BATCH):
        run(pixels)
    return count // BATCH * BATCH / (time.monotonic() - start)


def compute_only_in_its_own_process(source: Source, machine: Path, engine: Engine, count: int) -> float:
    """Do the same in a separate process, which is not affected by what ran in this one."""
    task = json.dumps([source.model, source.pretrained, str(machine), engine.to_json(), count])
    done = subprocess.run(
        [sys.executable, __file__, "--compute", task],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return float(done.stdout.splitlines()[-1])


def measure(
    folder: Path, source: Source, count: int, ways: dict[str, list[str]], rivals: dict[str, list[str]]
) -> dict[str, Any]:
    """Return pictures per second of all ways for one backbone; for plaudit, medians."""
    pictures, machine = folder / "pictures", folder / "machine"
    once: dict[str, float] = {}
    engines: dict[str, Engine] = {}
    ours_s: dict[str, list[float]] = {name: [] for name in ways}
    warm: dict[str, list[float]] = {name: [] for name in ways}
    for name, options in ways.items():
        out = folder / name.replace(" ", "-")
        once[name] = timed(ours(folder / "first", out, source, machine, *options), f"{source.model}, {name}, once")
        shutil.rmtree(out)
    for _ in range(ROUNDS):  # in turns, so that changes of the machine's load affect all
        for name, options in ways.items():
            out = folder / name.replace(" ", "-")
            ours_s[name].append(timed(ours(pictures, out, source, machine, *options), f"{source.model}, {name}"))
            manifest = json.loads((out / "manifest.json").read_text())
            engines[name] = Engine(**manifest["engines"]["images"][-1])
            shutil.rmtree(out)
            warm[name].append(compute_only_in_its_own_process(source, machine, engines[name], count))
    seconds = {name: statistics.median(times) for name, times in ours_s.items()}
    seconds |= {name: timed(command, name) for name, command in rivals.items()}
    rates = {name: count / elapsed_s for name, elapsed_s in seconds.items()}
    rates |= {f"{name}, compute only": statistics.median(found) for name, found in warm.items()}
    return {
        "model": source.model,
        "pictures": count,
        "per_s": rates,
        "once_s": once,
        "engines": {name: engine.to_json() for name, engine in engines.items()},
    }


def ratios(result: dict[str, Any]) -> dict[str, float]:
    rates = result["per_s"]
    found = {}
    for name in result["engines"]:
        for other in ("clip-retrieval", "open_clip"):
            if other in rates:
                found[f"{name} / {other}"] = rates[name] / rates[other]
        found[f"{name} / its compute only"] = rates[name] / rates[f"{name}, compute only"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=False, help="folder of JPEG files")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--clip-retrieval", type=Path, help="the command clip-retrieval; by default it is left out")
    parser.add_argument("--models", nargs="+", choices=("vit", "starter"), default=["vit", "starter"])
    parser.add_argument("--precisions", nargs="+", choices=("auto", "fp32"), default=["auto", "fp32"])
    parser.add_argument("--compute", help=argparse.SUPPRESS)
    parser.add_argument("--open-clip", nargs=3, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compute:
        model, pretrained, machine, engine, count = json.loads(args.compute)
        print(compute_only(Source(model, pretrained), Path(machine), Engine(**engine), count))
        return 0
    if args.open_clip:
        open_clip_loader(*args.open_clip)
        return 0
    if not args.photos:
        parser.error("--photos is needed")
    ways = {f"plaudit {name}": ["--precision", name] for name in args.precisions}
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(args.photos, folder / "pictures", args.count)
        write_pictures(args.photos, folder / "first", TRIAL_RECORDS)
        if "vit" in args.models:
            checkpoint = folder / "vit.pt"
            write_checkpoint(checkpoint)
            rivals = {
                "open_clip": [
                    *(sys.executable, __file__, "--open-clip"),
                    *map(str, (folder / "pictures", checkpoint, folder / "open_clip.npy")),
                ]
            }
            if args.clip_retrieval:
                rivals["clip-retrieval"] = [
                    *(str(args.clip_retrieval), "inference"),
                    *("--input_dataset", str(folder / "pictures"), "--output_folder", str(folder / "clip-retrieval")),
                    *("--clip_model", f"open_clip:{MODEL}/{checkpoint}", "--use_jit", "False"),
                    *("--enable_text", "False"),
                ]
            results.append(measure(folder, Source(MODEL, f"{TAG}@{checkpoint}"), args.count, ways, rivals))
        if "starter" in args.models:
            results.append(measure(folder, Source("starter"), args.count, ways, {}))
    for result in results:
        result["ratios"] = ratios(result)
        print(f"\n{result['model']}, {result['pictures']} pictures")
        for line in table(["", "pictures per second"], [(k, f"{v:.1f}") for k, v in result["per_s"].items()]):
            print(line)
        for line in table(["", "ratio"], [(k, f"{v:.2f}") for k, v in result["ratios"].items()]):
            print(line)
        for k, v in result["once_s"].items():
            print(f"{k}: first run on a machine, with {TRIAL_RECORDS} pictures, {v:.0f} s")
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
