"""Shared by all sections of gpu.py: where to measure, on which pictures, and how to time and print."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TypeVar

from embed.cli.console import table
from embed.config import Runner
from embed.spec import Precision, Source
from runtime.config import Precision as BundlePrecision

Size = TypeVar("Size")
WARM = 3  # runs before the timed ones


@dataclass(frozen=True)
class Context:
    """The surroundings of a section. `folder` is temporary but outlives a section, so graphs are exported once."""

    device: str  # "cuda" or "cpu"
    dry_run: bool
    photos: Path
    folder: Path
    engines: tuple[tuple[Runner, Precision], ...]  # the engines of the embedding job
    precisions: tuple[BundlePrecision, ...]  # the precisions of the served bundle
    workers: int  # the number of decoding processes
    models: tuple[str, ...]  # measured one after another; in a dry run a tiny one replaces each

    def say(self, text: str = "") -> None:
        """Print at once, so that a run that is stopped has printed its results."""
        print(text, flush=True)

    def show(self, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print a table."""
        self.say("\n".join(table(header, rows)))

    def sized(self, full: Size, tiny: Size) -> Size:
        """Return `full`, or `tiny` in a dry run."""
        return tiny if self.dry_run else full

    @property
    def machine_cache(self) -> Path:
        """The folder of exported graphs (see embed.engines.machine)."""
        return self.folder / "machine"

    def source(self, name: str) -> Source:
        """Return the architecture with random weights from a seed; in a dry run a tiny one of the same kind."""
        if not self.dry_run:
            return Source(name, "random:0")
        from unfreeze_tiny import make_folder

        folder = self.folder / "tiny"
        if not folder.exists():
            make_folder(folder)
        return Source(f"local-dir:{folder}")

    def jpegs(self) -> list[Path]:
        """Return the photos. Raise FileNotFoundError if there are none."""
        found = sorted(path for path in self.photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
        if not found:
            raise FileNotFoundError(f"{self.photos} holds no JPEG files")
        return found

    def pictures(self, count: int) -> Path:
        """Return a folder of `count` files with different bytes.

        They are the photos repeated, with different bytes after the end of each picture.
        """
        folder = self.folder / f"pictures-{count}"
        if not folder.exists():
            jpegs = [path.read_bytes() for path in self.jpegs()]
            folder.mkdir()
            for i, data in enumerate(islice(cycle(jpegs), count)):
                (folder / f"{i:06d}.jpg").write_bytes(data + i.to_bytes(4, "little"))
        return folder

    def photo_sizes(self) -> dict[str, float]:
        """Return the sizes of the photos, without which a rate of decoding has no meaning."""
        from PIL import Image

        pixels = []
        for path in self.jpegs():
            with Image.open(path) as image:
                pixels.append(image.width * image.height)
        size_bytes = [path.stat().st_size for path in self.jpegs()]
        return {"megapixels": statistics.mean(pixels) / 1e6, "kilobytes": statistics.mean(size_bytes) / 1e3}

    def times_s(self, run: Callable[[], object], repeats: int) -> list[float]:
        """Return the seconds of each of `repeats` runs, after some untimed ones; on a GPU from its own events."""
        if self.device == "cpu":
            for _ in range(WARM):
                run()
            return [elapsed_s(run) for _ in range(repeats)]
        import torch

        for _ in range(WARM):
            run()
        torch.cuda.synchronize()
        pairs = []
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            run()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairs]

    def median_s(self, run: Callable[[], object], repeats: int) -> float:
        """Return the median of `times_s`."""
        return statistics.median(self.times_s(run, repeats))

    def release(self) -> None:
        """Free what earlier work left on the device."""
        import gc

        gc.collect()
        if self.device != "cpu":
            import torch

            torch.cuda.empty_cache()


def elapsed_s(run: Callable[[], object]) -> float:
    """Return the seconds of one call of a function that returns only when its work is done."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
