"""Load the service with ViT-B/32, and a simple service to compare with, as ratios within one run.

    python benchmarks/serve.py --photos ../shared/data/photos [--pictures small|large] [--decoding exact|scaled]

Each request is one picture and one of 1,000 prompts, from 1, 8 and 64 clients in a second process. Pictures are the
photos as they are, or JPEGs of 12 megapixels made from them.

    plaudit       `python -m runtime serve`, fp32 and int8 graphs of one bundle
    naive         FastAPI, a session of the same bundle's model.onnx, one run for each request (load.py)

Weights are seeded random ones, because time does not depend on them. The last line of stdout is one JSON document.
overload.py measures more load than the service can handle, and score.py measures scoring without a service.
"""

import argparse
import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from embed.cli.console import table  # noqa: E402

MODEL = "ViT-B-32"
TAG = "laion2b_s34b_b79k"  # the random weights get the preprocessing of this tag
PRECISIONS = ("fp32", "int8")
CLIENTS = (1, 8, 64)
LOAD = Path(__file__).with_name("load.py")


def load_torch(checkpoint: Path) -> Any:
    """Return the backbone with seeded random weights."""
    from embed.backbones.load import load_backbone
    from embed.spec import Source

    if not checkpoint.exists():
        import open_clip
        import torch

        torch.manual_seed(0)
        torch.save(open_clip.create_model(MODEL).state_dict(), checkpoint)
    return load_backbone(Source(MODEL, f"{TAG}@{checkpoint}"))


def make_bundle(folder: Path, photos: Path, decoding: Literal["exact", "scaled"] = "exact") -> Path:
    """Make a bundle whose score is the scaled cosine of picture and prompt, as in PickScore.

    `scaled` needs photos that are large.
    """
    bundle = folder / ("bundle" if decoding == "exact" else "bundle-scaled")
    if not (bundle / "bundle.json").exists():
        from dataclasses import asdict

        from export.bundle_writer import export_bundle
        from export.config import ExportConfig
        from heads.config import HeadConfig
        from heads.models import build_head

        backbone = load_torch(folder / "vit-b-32.pt")
        config = HeadConfig("cosine", backbone.identity.dim)
        pictures = tuple(sorted(photos.iterdir())[:32])
        manifest = {"head": asdict(config), "identity": backbone.identity.to_json()}
        # Random weights give similar scores, so the number of pairs that int8 flips means nothing here.
        export = ExportConfig(PRECISIONS, pictures=pictures, max_flips=0.99, decoding=decoding)
        export_bundle(bundle, backbone, build_head(config), manifest, export)
    return bundle


class Server:
    """A service in a separate process, until the block ends."""

    def __init__(self, name: str, bundle: Path, precision: str, *options: str) -> None:
        self.name = f"{name} {precision}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = (
            ["-m", "runtime", "serve", str(bundle), "--precision", precision, "--port", str(self.port), *options]
            if name == "plaudit"
            else [str(LOAD), "naive", str(bundle), precision, str(self.port)]
        )
        self.log = open(bundle.parent / f"{name}-{precision}.log", "w")  # noqa: SIM115
        self.process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=self.log, stderr=self.log)

    def __enter__(self) -> "Server":
        import urllib.request

        for _ in range(600):
            time.sleep(0.2)
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/live", timeout=5).close()
                return self
            except OSError:
                if self.process.poll() is not None:
                    break
        self.__exit__()
        raise RuntimeError(f"{self.name} did not start; see {self.log.name}")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)
        self.log.close()

    def load(self, *options: str) -> dict[str, Any]:
        """Return what load.py measures, from a separate process."""
        command = [sys.executable, str(LOAD), "client", str(self.port), *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def measure_service(bundle: Path, photos: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Return requests a second, p50 and p99 by server and number of clients, from the round of median throughput."""
    servers = [(name, precision) for name in ("naive", "plaudit") for precision in PRECISIONS]
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for round_ in range(rounds):  # in turns, so that changes of the machine's load affect all
        for name, precision in servers:
            with Server(name, bundle, precision) as server:
                for clients in CLIENTS:
                    one = server.load("--photos", str(photos), "--clients", str(clients), "--seconds", str(seconds))
                    found.setdefault(server.name, {}).setdefault(clients, []).append(one)
                    print(f"round {round_}, {server.name}, {clients} clients: {one}", file=sys.stderr)
    return {
        name: {
            str(clients): sorted(runs, key=lambda run: run["requests_per_s"])[len(runs) // 2]
            for clients, runs in by_clients.items()
        }
        for name, by_clients in found.items()
    }


def large_pictures(folder: Path, photos: Path) -> Path:
    """Make a folder of JPEGs like those of phones, with 12 megapixels and some 2 MB: enlarged photos with noise."""
    import numpy as np
    from PIL import Image

    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(0)
    for i, path in enumerate(sorted(photos.iterdir())[:12]):
        if not (picture := folder / f"{i}.jpg").exists():
            image = Image.open(path).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)
            grain = Image.fromarray(noise.integers(0, 256, (750, 1000, 3), np.uint8)).resize(image.size)
            Image.blend(image, grain, 0.12).save(picture, quality=88)
    return folder


def machine() -> dict[str, object]:
    """Describe the machine and the software of the measurement."""
    from importlib.metadata import version

    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    packages = ("onnxruntime", "pillow", "uvicorn", "starlette")
    return {
        "cpus": os.cpu_count(),
        "processor": found[1] if found else platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of JPEG files")
    parser.add_argument("--work", type=Path, default=Path("benchmark-serve"), help="where the bundle is kept")
    parser.add_argument("--pictures", choices=("small", "large"), default="small")
    parser.add_argument("--decoding", choices=("exact", "scaled"), default="exact", help="plaudit's way; %(default)s")
    parser.add_argument("--seconds", type=float, default=10, help="seconds of each measurement (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="%(default)s")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    photos = args.photos if args.pictures == "small" else large_pictures(args.work / "large", args.photos)
    bundle = make_bundle(args.work, photos, args.decoding)
    served = measure_service(bundle, photos, args.seconds, args.rounds)
    rows = [
        [
            name,
            clients,
            f"{one['requests_per_s']:.1f}",
            *(f"{one['requests_per_s'] / served[f'naive {p}'][clients]['requests_per_s']:.2f}" for p in PRECISIONS),
            f"{one['p50_ms']:.0f}",
            f"{one['p99_ms']:.0f}",
            one["statuses"],
        ]
        for name, by_clients in served.items()
        for clients, one in by_clients.items()
    ]
    against = [f"of naive {precision}" for precision in PRECISIONS]
    header = ["", "clients", "requests/s", *against, "p50 ms", "p99 ms", "answers"]
    print(*table(header, rows), "", sep="\n")
    print(json.dumps({"machine": machine(), "pictures": args.pictures, "service": served}))


if __name__ == "__main__":
    main()
