"""Measure everything that is measured on a GPU, in one command of at most seven minutes.

    python benchmarks/gpu.py --photos FOLDER --json FILE                  no network is needed
    python benchmarks/gpu.py --dry-run                                    all of it with tiny sizes on a CPU
    python benchmarks/gpu.py --sections job,search --engines torch:fp16,onnx:fp16 --workers 16

    a ceilings    a large matrix product, and copies on the device and to it
    b towers      onnxruntime's graphs and torch, by backbone and batch
    c job         the whole embedding job on JPEG files; decoding, copying and the engine apart
    d service     the service on loopback under 64 clients
    e parity      scores and flips against fp32 on the CPU
    f training    an epoch of a head, and of a backbone's top blocks
    g tuning      a step of tuning a generator
    h search      exact search on the device, against FAISS and our index on the CPU

Each section runs in a separate process, prints while it runs, and is written to --json when it ends. If one fails, the
others still run, and the exit code is then 1. These processes are forked from one that has imported the libraries but
has not used the device, so that no section waits for imports. Weights are random, because time does not depend on them.
If matplotlib is installed, a plot is drawn beside the JSON.
"""

import argparse
import contextlib
import gc
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# This folder holds files named like our packages, so it comes last.
sys.path[:1] = [str(ROOT)]
sys.path += [str(ROOT / "tests" / "helpers"), str(HERE)]

SECTIONS = {
    "a": "ceilings",
    "b": "towers",
    "c": "job",
    "d": "service",
    "e": "parity",
    "f": "training",
    "g": "tuning",
    "h": "search",
}
# The longest section is last, because what does not fit into the time is lost.
ORDER = [SECTIONS[letter] for letter in "adcegfhb"]
LIMIT_S = 420.0
SHARE = 0.4  # the share of the time that a section may take, unless it is the last
# Libraries that take long to import; those that are not installed are skipped.
LIBRARIES = ["torch", "torchvision", "open_clip", "timm", "onnx", "onnxruntime", "pyarrow", "PIL", "torch.export"]
LIBRARIES += ["torch.onnx._internal.exporter._registration", "onnxscript.optimizer", "torch.utils.flop_counter"]
LIBRARIES += ["transformers", "scipy.stats", "pandas"]


def names(text: str) -> list[str]:
    """Return sections from letters or names. Raise ArgumentTypeError for unknown ones."""
    found = [SECTIONS.get(name, name) for name in text.split(",") if name]
    if unknown := sorted(set(found) - set(SECTIONS.values())):
        raise argparse.ArgumentTypeError(f"unknown sections {unknown}; there are {', '.join(SECTIONS.values())}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of JPEG files; without one, some are made")
    parser.add_argument("--json", type=Path, help="file for the figures, rewritten after each section")
    parser.add_argument("--sections", type=names, default=ORDER, help="letters or names: a,c,search")
    parser.add_argument("--skip", type=names, default=[], help="sections to leave out")
    parser.add_argument("--engines", help="engines of the job, RUNNER:PRECISION,...; on a GPU torch:fp16,onnx:fp16")
    parser.add_argument("--models", default="ViT-B-32,ViT-L-14", help="models of towers, job and parity (%(default)s)")
    parser.add_argument("--precisions", help="precisions of the served bundle; on a GPU fp16-cuda,fp16")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="decoding processes (%(default)s)")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="for all sections together (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on the CPU")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the section ends and the folder is removed
    with tempfile.TemporaryDirectory(prefix="plaudit-gpu-") as folder:
        args.folder = Path(folder)
        prepare(args)
        return run_all(args)


def prepare(args: argparse.Namespace) -> None:
    """Make photos if none were given, and the files that make a checkout look like an installed package."""
    if args.photos is None:
        args.photos = args.folder / "photos"
        make_photos(args.photos, (160, 120) if args.dry_run else (640, 480))
    try:
        importlib.metadata.version("plaudit")
    except importlib.metadata.PackageNotFoundError:
        info = args.folder / "site" / "plaudit-0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plaudit\nVersion: 0\n")
    paths = [str(args.folder / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def make_photos(folder: Path, size: tuple[int, int]) -> None:
    """Make a few JPEGs of soft random colours."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    for i in range(24):
        colours = np.random.default_rng(i).integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)


def run_all(args: argparse.Namespace) -> int:
    """Run the wanted sections one after another, and return the exit code."""
    end = time.monotonic() + args.limit_s
    found: dict[str, Any] = {"dry_run": args.dry_run, "machine": {}, "sections": {}, "failed": {}, "seconds": {}}
    wanted = ["machine", *(each for each in args.sections if each not in args.skip)]
    for name in wanted:
        print(f"\n== {name}", flush=True)
        start = time.monotonic()
        if name == "tuning":
            result, fault = {"state": "not built yet"}, None
            print("not built yet", flush=True)
        else:
            left_s = end - start
            # Even if a section hangs, there is time for those after it.
            result, fault = run_apart(name, args, left_s if name == wanted[-1] else min(left_s, SHARE * args.limit_s))
        found["seconds"][name] = time.monotonic() - start
        if fault is not None:
            found["failed"][name] = fault
            print(f"{name} failed: {fault}", flush=True)
        elif name == "machine":
            found["machine"] = result
        else:
            found["sections"][name] = result
        print(f"{name}: {found['seconds'][name]:.1f} s", flush=True)
        write(args.json, found)
    if args.json:
        from on_gpu.plot import plot

        plot(found["sections"], args.json.with_suffix(".svg"))
    return 1 if found["failed"] else 0


def write(path: Path | None, found: dict[str, Any]) -> None:
    """Write the JSON so that a reader always finds a complete file."""
    if path is not None:
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(found, indent=1))
        part.replace(path)


def run_apart(name: str, args: argparse.Namespace, left_s: float) -> tuple[dict[str, Any], str | None]:
    """Run a section in a separate process. Return its figures, and what went wrong or None."""
    if left_s <= 0:
        return {}, "no time is left"
    context = multiprocessing.get_context("forkserver")
    # If there are few sections, only the libraries that all of them need are imported.
    context.set_forkserver_preload(LIBRARIES if len(args.sections) > 2 else LIBRARIES[:1])
    process = context.Process(target=run_here, args=(name, args))
    process.start()
    try:
        process.join(left_s)
        code = process.exitcode
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # with all processes that it has started
        process.join()
    if code is None:
        return {}, f"stopped after {left_s:.0f} s, the time being spent"
    if code != 0:
        return {}, (args.folder / f"{name}.error").read_text() if code == 1 else f"exit code {code}"
    return json.loads((args.folder / f"{name}.json").read_text()), None


def run_here(name: str, args: argparse.Namespace) -> None:
    """Run the section in this process, which leads its own process group."""
    os.setpgid(0, 0)
    gc.freeze()  # so that garbage collection does not look through what was imported before
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        found = importlib.import_module(f"on_gpu.{name}").measure(context(args))
        (args.folder / f"{name}.json").write_text(json.dumps(found))
    except Exception as error:
        traceback.print_exc()
        (args.folder / f"{name}.error").write_text(f"{type(error).__name__}: {error}")
        sys.exit(1)


def context(args: argparse.Namespace) -> Any:
    """Return the surroundings of a section. Raise RuntimeError if there is no GPU and this is no dry run."""
    import torch
    from on_gpu.common import Context

    if not (args.dry_run or torch.cuda.is_available()):
        raise RuntimeError("torch finds no CUDA device here; --dry-run measures tiny sizes on the CPU")
    device, precisions, pairs = "cuda", "fp16-cuda,fp16", "onnx:fp16-cuda,onnx:fp16,torch:fp16"
    if args.dry_run:
        device, precisions, pairs = "cpu", "fp32", "onnx:fp32,torch:fp32"
    return Context(
        device,
        args.dry_run,
        args.photos,
        args.folder,
        tuple(tuple(pair.split(":")) for pair in (args.engines or pairs).split(",")),
        tuple((args.precisions or precisions).split(",")),
        args.workers,
        tuple(args.models.split(",")),
    )


if __name__ == "__main__":
    raise SystemExit(main())
