"""Decode thousands of mutated pictures with `embed.inputs.images.load_pixels`: pixels or an ImageError must come out.

    python benchmarks/fuzz_images.py [PICTURE_OR_FOLDER ...] --count 2000 --seed 0 [--json]

Seeds are the given pictures, or small ones that are made here, one of each kind that can be decoded; robustness.py does
the same for AVIF. Decoding runs in a separate process, which is restarted if it dies or hangs; mutation i of a seed is
always the same. It prints counts by outcome, the peak memory of that process and the slowest picture. It exits with 1
if a picture crashed, hung or raised another error than ImageError."""

import argparse
import io
import json
import resource
import select
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from embed.inputs.images import ImageError, load_pixels
from embed.spec import Preprocess

SPEC = Preprocess((224, 224), "shortest", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
STALL_S = 60.0
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def small_pictures() -> list[bytes]:
    """Return one small picture of every format and of the encodings in it."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    rgb = Image.fromarray(noise).resize((48, 36), Image.Resampling.BICUBIC)
    grey16 = Image.fromarray(np.arange(48 * 36, dtype=np.uint16).reshape(36, 48) * 37)
    rgba = rgb.convert("RGBA")
    rgba.putalpha(rgb.convert("L"))
    frames: dict[str, Any] = {"save_all": True, "append_images": [rgb.rotate(90 * i) for i in range(1, 3)]}
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "JPEG", {"exif": exif}),
        (rgb, "JPEG", {"progressive": True}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "PNG", {"exif": exif}),
        (rgba, "PNG", {}),
        (grey16, "PNG", {}),
        (rgb.quantize(16), "PNG", {"transparency": 3}),
        (rgb, "PNG", frames),
        (rgb, "GIF", frames),
        (rgb, "WEBP", {"exif": exif}),
        (rgba, "WEBP", {"lossless": True}),
        (rgb, "WEBP", frames),
        (rgb, "BMP", {}),
        (rgb.quantize(16), "BMP", {}),
        (rgb, "PPM", {}),
        (grey16, "PPM", {}),
        (rgb, "TIFF", {"exif": exif}),
        (rgb, "TIFF", frames),
        (grey16, "TIFF", {}),
        *((rgb, "TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
        (rgb.convert("1"), "TIFF", {"compression": "group4"}),
    ]
    return [encoded(image, format, **options) for image, format, options in kinds]


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def read_seeds(paths: list[Path]) -> list[bytes]:
    if not paths:
        return small_pictures()
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [file.read_bytes() for file in files if file.is_file()]


def mutated(seeds: list[bytes], seed: int, index: int) -> bytes:
    """Return the `index`-th mutation: one to three of flipped bits, edited numbers, cuts, splices and repeats."""
    rng = np.random.default_rng((seed, index))
    data = bytearray(seeds[index % len(seeds)])
    for _ in range(rng.integers(1, 4)):
        # Half of all edits are in the first bytes, which hold sizes and tables.
        span = min(len(data), 128) if rng.random() < 0.5 else len(data)
        if span < 2:
            break
        at = int(rng.integers(span))
        match rng.integers(6):
            case 0:
                for place in rng.integers(0, span, rng.integers(1, 17)):
                    data[place] ^= 1 << int(rng.integers(8))
            case 1:
                size = int(rng.choice([1, 2, 4]))
                value = int(rng.choice(INTERESTING)) & (256**size - 1)
                data[at : at + size] = value.to_bytes(size, "little" if rng.random() < 0.5 else "big")
            case 2:
                del data[at + 1 :]
            case 3:
                other = seeds[int(rng.integers(len(seeds)))]
                data[at:] = other[min(at, len(other) - 1) :]
            case 4:
                data[at:at] = data[at : at + int(rng.integers(1, 65))] * int(rng.integers(1, 65))
            case _:
                del data[at : at + int(rng.integers(1, 65))]
    return bytes(data)


def work(seeds: list[bytes], seed: int, first: int, last: int) -> None:
    """Run in the child: print a line of JSON for each picture, with outcome, seconds, and the peak memory so far."""
    for index in range(first, last):
        data = mutated(seeds, seed, index)
        start = time.perf_counter()
        try:
            load_pixels(data, SPEC)
            outcome = "pixels"
        except ImageError as error:
            outcome = f"{error.stage}: {error.reason}"
        except Exception as error:
            outcome = f"ESCAPED: {type(error).__name__}: {error}"
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps([outcome, time.perf_counter() - start, peak_mib]), flush=True)


def fuzz(arguments: list[str], count: int) -> dict[str, Any]:
    """Return counts by outcome of `count` mutations, decoded by child processes started with `arguments`."""
    outcomes: Counter[str] = Counter()
    bad: dict[int, str] = {}
    slowest_s = peak_mib = first_mib = 0.0
    index = 0
    while index < count:
        command = [sys.executable, __file__, *arguments, "--work", str(index), str(count)]
        with subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            assert child.stdout is not None
            while select.select([child.stdout], [], [], STALL_S)[0] and (line := child.stdout.readline()):
                outcome, seconds, memory_mib = json.loads(line)
                if outcome.startswith("ESCAPED"):
                    bad[index] = outcome
                outcomes[outcome] += 1
                slowest_s, peak_mib = max(slowest_s, seconds), max(peak_mib, memory_mib)
                first_mib = first_mib or memory_mib
                index += 1
            stalled = child.poll() is None and index < count
            child.kill()
        if index < count:
            bad[index] = "STALLED" if stalled else f"CRASHED with {child.returncode}"
            outcomes[bad[index]] += 1
            index += 1
    return {
        "pictures": count,
        "outcomes": dict(outcomes.most_common()),
        "bad": bad,
        "slowest_s": round(slowest_s, 3),
        "first_mib": round(first_mib),
        "peak_mib": round(peak_mib),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=Path, metavar="PICTURE_OR_FOLDER")
    parser.add_argument("--count", type=int, default=2000, help="number of mutated pictures (default 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations (default 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout, nothing else")
    parser.add_argument("--work", nargs=2, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(read_seeds(args.seeds), args.seed, *args.work)
        return 0
    report = fuzz([*map(str, args.seeds), "--seed", str(args.seed)], args.count)
    if args.json:
        print(json.dumps(report))
    else:
        for outcome, number in report["outcomes"].items():
            print(f"{number:7} {outcome}")
        print(
            f"{report['pictures']:7} pictures; peak {report['peak_mib']} MiB, {report['first_mib']} after the first;"
            f" slowest {report['slowest_s']} s; bad: {report['bad'] or 'none'}"
        )
    return 1 if report["bad"] else 0


if __name__ == "__main__":
    sys.exit(main())
